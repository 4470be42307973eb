"""Circuits: what flows from tokens through heads and modes to a target."""

from tl_bilinear.circuits.circuit import Circuit as Circuit
from tl_bilinear.circuits.circuit import Edge as Edge
from tl_bilinear.circuits.circuit import Node as Node
from tl_bilinear.circuits.dataset import CircuitSet as CircuitSet
from tl_bilinear.circuits.dataset import trace_dataset as trace_dataset
from tl_bilinear.circuits.faithfulness import Faithfulness as Faithfulness
from tl_bilinear.circuits.faithfulness import measure_faithfulness as measure_faithfulness
from tl_bilinear.circuits.joins import unsplit as unsplit
from tl_bilinear.circuits.recurring import RecurringMode as RecurringMode
from tl_bilinear.circuits.trace import trace_circuit as trace_circuit

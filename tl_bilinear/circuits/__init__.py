"""Circuits: what flows from tokens through heads and modes to a target."""

from tl_bilinear.circuits.circuit import Circuit as Circuit
from tl_bilinear.circuits.circuit import Edge as Edge
from tl_bilinear.circuits.circuit import Node as Node
from tl_bilinear.circuits.trace import trace_circuit as trace_circuit

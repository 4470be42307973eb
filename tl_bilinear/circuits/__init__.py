"""Circuits: what flows from tokens through heads and modes to a target."""

from tl_bilinear.circuits.attention_pairs import ScorePairs as ScorePairs
from tl_bilinear.circuits.attention_pairs import score_pairs as score_pairs
from tl_bilinear.circuits.circuit import Circuit as Circuit
from tl_bilinear.circuits.circuit import Edge as Edge
from tl_bilinear.circuits.circuit import Node as Node
from tl_bilinear.circuits.dataset import CircuitSet as CircuitSet
from tl_bilinear.circuits.dataset import trace_dataset as trace_dataset
from tl_bilinear.circuits.expand import expand_paths as expand_paths
from tl_bilinear.circuits.expansion import PathExpansion as PathExpansion
from tl_bilinear.circuits.faithfulness import Faithfulness as Faithfulness
from tl_bilinear.circuits.faithfulness import measure_faithfulness as measure_faithfulness
from tl_bilinear.circuits.joins import unsplit as unsplit
from tl_bilinear.circuits.mlp_pairs import SourcePairs as SourcePairs
from tl_bilinear.circuits.mlp_pairs import pair_table as pair_table
from tl_bilinear.circuits.mlp_pairs import source_pairs as source_pairs
from tl_bilinear.circuits.path_entries import PathEntries as PathEntries
from tl_bilinear.circuits.path_term import PathTerm as PathTerm
from tl_bilinear.circuits.path_values import PathValues as PathValues
from tl_bilinear.circuits.recurring import RecurringMode as RecurringMode
from tl_bilinear.circuits.score_terms import ScoreTerm as ScoreTerm
from tl_bilinear.circuits.trace import trace_circuit as trace_circuit
from tl_bilinear.circuits.virtual_tokens import VirtualModes as VirtualModes

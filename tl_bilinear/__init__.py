"""tl_bilinear: bilinear transformers, read from their weights inside TransformerLens.

Importing this package loads torch and nothing heavier: transformer_lens, transformers,
circuitsvis and matplotlib are loaded by the first call that needs them.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_bilinear.ablation import Ledger as Ledger
    from tl_bilinear.ablation import ModeSet as ModeSet
    from tl_bilinear.ablation import WeightEdit as WeightEdit
    from tl_bilinear.ablation import ablate as ablate
    from tl_bilinear.ablation import ablate_ as ablate_
    from tl_bilinear.ablation import load_modes as load_modes
    from tl_bilinear.ablation import project_inputs as project_inputs
    from tl_bilinear.ablation import project_inputs_ as project_inputs_
    from tl_bilinear.ablation import project_outputs as project_outputs
    from tl_bilinear.ablation import project_outputs_ as project_outputs_
    from tl_bilinear.ablation import save_modes as save_modes
    from tl_bilinear.ablation import undo_ as undo_
    from tl_bilinear.attribution import attribute_components as attribute_components
    from tl_bilinear.attribution import attribute_modes as attribute_modes
    from tl_bilinear.checkpoints import bundled_models as bundled_models
    from tl_bilinear.checkpoints import load as load
    from tl_bilinear.checkpoints import save_pretrained as save_pretrained
    from tl_bilinear.checkpoints.dictionaries import load_dictionary as load_dictionary
    from tl_bilinear.checkpoints.dictionaries import save_dictionary as save_dictionary
    from tl_bilinear.checkpoints.public_names import register as register
    from tl_bilinear.circuits import Circuit as Circuit
    from tl_bilinear.circuits import CircuitSet as CircuitSet
    from tl_bilinear.circuits import Faithfulness as Faithfulness
    from tl_bilinear.circuits import PathExpansion as PathExpansion
    from tl_bilinear.circuits import ScorePairs as ScorePairs
    from tl_bilinear.circuits import SourcePairs as SourcePairs
    from tl_bilinear.circuits import expand_paths as expand_paths
    from tl_bilinear.circuits import measure_faithfulness as measure_faithfulness
    from tl_bilinear.circuits import score_pairs as score_pairs
    from tl_bilinear.circuits import source_pairs as source_pairs
    from tl_bilinear.circuits import trace_circuit as trace_circuit
    from tl_bilinear.circuits import trace_dataset as trace_dataset
    from tl_bilinear.conversion import bilinearize as bilinearize
    from tl_bilinear.decompositions import HOSVD as HOSVD
    from tl_bilinear.decompositions import CPDecomposition as CPDecomposition
    from tl_bilinear.decompositions import DifferenceModes as DifferenceModes
    from tl_bilinear.decompositions import Eigendecomposition as Eigendecomposition
    from tl_bilinear.decompositions import InputMode as InputMode
    from tl_bilinear.decompositions import Mode as Mode
    from tl_bilinear.decompositions import OutputMode as OutputMode
    from tl_bilinear.decompositions import Reconstruction as Reconstruction
    from tl_bilinear.decompositions import SharedSubspace as SharedSubspace
    from tl_bilinear.decompositions import SimilarityMatrix as SimilarityMatrix
    from tl_bilinear.decompositions import SingularDecomposition as SingularDecomposition
    from tl_bilinear.decompositions import TensorSimilarity as TensorSimilarity
    from tl_bilinear.decompositions import cp_decompose as cp_decompose
    from tl_bilinear.decompositions import difference_modes as difference_modes
    from tl_bilinear.decompositions import eigendecompose as eigendecompose
    from tl_bilinear.decompositions import hosvd as hosvd
    from tl_bilinear.decompositions import pair_squares as pair_squares
    from tl_bilinear.decompositions import reconstruct as reconstruct
    from tl_bilinear.decompositions import shared_subspace as shared_subspace
    from tl_bilinear.decompositions import similarity_matrix as similarity_matrix
    from tl_bilinear.decompositions import singular_decompose as singular_decompose
    from tl_bilinear.decompositions import tensor_similarity as tensor_similarity
    from tl_bilinear.dictionary import Dictionary as Dictionary
    from tl_bilinear.features import Interactions as Interactions
    from tl_bilinear.features import interactions as interactions
    from tl_bilinear.gaussian import gaussian_inner as gaussian_inner
    from tl_bilinear.gaussian import sphere_inner as sphere_inner
    from tl_bilinear.hosts import adopt_ as adopt_
    from tl_bilinear.hosts import get_host as get_host
    from tl_bilinear.hosts.freezing import freeze_gates_ as freeze_gates_
    from tl_bilinear.hosts.self_check import NotBilinearError as NotBilinearError
    from tl_bilinear.hosts.self_check import self_check as self_check
    from tl_bilinear.quadratic_map import QuadraticMap as QuadraticMap
    from tl_bilinear.reading import read_modes as read_modes
    from tl_bilinear.tensor import BilinearTensor as BilinearTensor
    from tl_bilinear.training import TrainingConfig as TrainingConfig
    from tl_bilinear.training import train as train
    from tl_bilinear.unlearning import Edit as Edit
    from tl_bilinear.unlearning import Question as Question
    from tl_bilinear.unlearning import UnlearningReport as UnlearningReport
    from tl_bilinear.unlearning import editable as editable
    from tl_bilinear.unlearning import find_modes as find_modes
    from tl_bilinear.unlearning import fit_edit as fit_edit
    from tl_bilinear.unlearning import load_questions as load_questions
    from tl_bilinear.unlearning import output_modes as output_modes
    from tl_bilinear.unlearning import repair_ as repair_
    from tl_bilinear.unlearning import unlearn as unlearn

__version__ = version("tl_bilinear")

_ROOMS = {
    "BilinearTensor": "tensor",
    "QuadraticMap": "quadratic_map",
    "gaussian_inner": "gaussian",
    "sphere_inner": "gaussian",
    "Eigendecomposition": "decompositions",
    "Mode": "decompositions",
    "eigendecompose": "decompositions",
    "SingularDecomposition": "decompositions",
    "singular_decompose": "decompositions",
    "register": "checkpoints.public_names",
    "adopt_": "hosts",
    "get_host": "hosts",
    "freeze_gates_": "hosts.freezing",
    "self_check": "hosts.self_check",
    "NotBilinearError": "hosts.self_check",
    "load": "checkpoints",
    "save_pretrained": "checkpoints",
    "bundled_models": "checkpoints",
    "bilinearize": "conversion",
    "train": "training",
    "TrainingConfig": "training",
    "attribute_modes": "attribution",
    "attribute_components": "attribution",
    "ablate": "ablation",
    "trace_circuit": "circuits",
    "Circuit": "circuits",
    "trace_dataset": "circuits",
    "CircuitSet": "circuits",
    "measure_faithfulness": "circuits",
    "Faithfulness": "circuits",
    "read_modes": "reading",
    "Dictionary": "dictionary",
    "load_dictionary": "checkpoints.dictionaries",
    "save_dictionary": "checkpoints.dictionaries",
    "Interactions": "features",
    "interactions": "features",
    "hosvd": "decompositions",
    "HOSVD": "decompositions",
    "cp_decompose": "decompositions",
    "pair_squares": "decompositions",
    "CPDecomposition": "decompositions",
    "tensor_similarity": "decompositions",
    "similarity_matrix": "decompositions",
    "TensorSimilarity": "decompositions",
    "SimilarityMatrix": "decompositions",
    "difference_modes": "decompositions",
    "DifferenceModes": "decompositions",
    "shared_subspace": "decompositions",
    "SharedSubspace": "decompositions",
    "reconstruct": "decompositions",
    "Reconstruction": "decompositions",
    "expand_paths": "circuits",
    "PathExpansion": "circuits",
    "source_pairs": "circuits",
    "SourcePairs": "circuits",
    "score_pairs": "circuits",
    "ScorePairs": "circuits",
    "Question": "unlearning",
    "UnlearningReport": "unlearning",
    "load_questions": "unlearning",
    "unlearn": "unlearning",
    "save_modes": "ablation",
    "load_modes": "ablation",
    "ModeSet": "ablation",
    "ablate_": "ablation",
    "WeightEdit": "ablation",
    "undo_": "ablation",
    "Ledger": "ablation",
    "OutputMode": "decompositions",
    "InputMode": "decompositions",
    "project_outputs": "ablation",
    "project_outputs_": "ablation",
    "project_inputs": "ablation",
    "project_inputs_": "ablation",
    "editable": "unlearning",
    "find_modes": "unlearning",
    "output_modes": "unlearning",
    "fit_edit": "unlearning",
    "Edit": "unlearning",
    "repair_": "unlearning",
}

_FOLDERS = (
    "ablation",
    "attribution",
    "checkpoints",
    "circuits",
    "conversion",
    "decompositions",
    "features",
    "hosts",
    "optimisation",
    "sweeps",
    "toys",
    "training",
    "unlearning",
    "views",
)

__all__ = [
    "BilinearTensor",
    "QuadraticMap",
    "gaussian_inner",
    "sphere_inner",
    "Eigendecomposition",
    "Mode",
    "eigendecompose",
    "SingularDecomposition",
    "singular_decompose",
    "register",
    "adopt_",
    "get_host",
    "freeze_gates_",
    "self_check",
    "NotBilinearError",
    "load",
    "save_pretrained",
    "bundled_models",
    "bilinearize",
    "train",
    "TrainingConfig",
    "attribute_modes",
    "attribute_components",
    "ablate",
    "Dictionary",
    "load_dictionary",
    "save_dictionary",
    "Interactions",
    "interactions",
    "__version__",
    "hosvd",
    "HOSVD",
    "cp_decompose",
    "pair_squares",
    "CPDecomposition",
    "tensor_similarity",
    "similarity_matrix",
    "TensorSimilarity",
    "SimilarityMatrix",
    "difference_modes",
    "DifferenceModes",
    "shared_subspace",
    "SharedSubspace",
    "reconstruct",
    "Reconstruction",
    "trace_circuit",
    "Circuit",
    "trace_dataset",
    "CircuitSet",
    "measure_faithfulness",
    "Faithfulness",
    "read_modes",
    "expand_paths",
    "PathExpansion",
    "source_pairs",
    "SourcePairs",
    "score_pairs",
    "ScorePairs",
    "Question",
    "UnlearningReport",
    "load_questions",
    "unlearn",
    "save_modes",
    "load_modes",
    "ModeSet",
    "ablate_",
    "WeightEdit",
    "undo_",
    "Ledger",
    "OutputMode",
    "InputMode",
    "project_outputs",
    "project_outputs_",
    "project_inputs",
    "project_inputs_",
    "editable",
    "find_modes",
    "output_modes",
    "fit_edit",
    "Edit",
    "repair_",
]


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:
        return importlib.import_module(f"tl_bilinear.{name}")
    if name not in _ROOMS:
        raise AttributeError(f"module 'tl_bilinear' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tl_bilinear.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_FOLDERS])

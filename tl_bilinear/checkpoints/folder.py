"""A local folder, checked against its own configuration before it is loaded.

transformers initialises what a file lacks and ignores what it does not expect; here either
is an error that names the tensor, and so is a file that is cut, damaged or transposed.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_bilinear.checkpoints.config_file import require_as_many_layers
from tl_bilinear.checkpoints.error import CheckpointError as CheckpointError
from tl_bilinear.checkpoints.error import one_line
from tl_bilinear.checkpoints.layouts import find_layout
from tl_bilinear.checkpoints.layouts.layout import AbstractLayout, Config, Read
from tl_bilinear.checkpoints.memory import require_memory
from tl_bilinear.checkpoints.own_format import WEIGHTS, read_own_format, read_settings
from tl_bilinear.checkpoints.placement import Placement
from tl_bilinear.checkpoints.tokenizer import read_tokenizer
from tl_bilinear.checkpoints.weight_files import Shape, WeightFiles, open_weights
from tl_bilinear.decompositions.arguments import is_finite
from tl_bilinear.hosts.to_plain import PlainModel


def read_folder(
    folder: Path, config: Config, dtype: torch.dtype | None, where: Placement
) -> tuple[Any, Any]:
    """The folder's transformers model, in eval mode, and its tokenizer (None without one).

    What transformers knows keeps its own class; a layout of `layouts/` becomes a Llama. Code
    in the folder is never run; nothing is downloaded but a tokenizer that the configuration
    names and the folder lacks. Weights may still be mapped files that nothing has read.

    Raises:
        CheckpointError: what is wrong, where, and what to do.
    """
    weights = open_weights(folder)
    require_as_many_layers(folder, config, len(weights.tensors))
    layout = find_layout(config, weights.tensors.keys())
    if layout is None:
        model = _own_class(folder, weights, dtype, where.device_map)
    else:
        model = _as_llama(folder, config, weights, layout, dtype, where.device_map)
    elsewhere = layout.tokenizer_id(config) if layout is not None else None
    tokenizer = read_tokenizer(folder, elsewhere, model.config.vocab_size)
    if where.device_map is None:
        model = model.to(where.device)
    return model.eval(), tokenizer


def read_plain(folder: Path, config: Config, dtype: torch.dtype | None) -> tuple[PlainModel, Any]:
    """The model in a folder of our own format, and its tokenizer (None without one).

    Raises:
        CheckpointError: what is wrong, where, and what to do.
    """
    settings = read_settings(folder / "config.json", config)
    weights = open_weights(folder, only=WEIGHTS)
    require_as_many_layers(folder, config, len(weights.tensors))
    _require_shapes(folder, "our own format", weights.shapes, settings.shapes())
    require_memory(folder, weights.size_as(dtype), dtype or weights.dtype)
    plain = read_own_format(config, settings, weights, dtype)
    return plain, read_tokenizer(folder, None, settings.d_vocab)


def _own_class(
    folder: Path, weights: WeightFiles, dtype: torch.dtype | None, device_map: Any
) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config_file = folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise _no_model(config_file, error) from None
    require_memory(folder, weights.size_as(dtype), dtype or weights.dtype)
    ties, failure = config.tie_word_embeddings, None  # loading unties what differs
    if weights.are_safetensors:
        try:
            with without_progress_bar():
                model = AutoModelForCausalLM.from_pretrained(
                    folder,
                    config=config,
                    dtype=dtype or "auto",
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    attn_implementation="eager",
                    device_map=device_map,
                )
        except Exception as error:
            failure = error
        else:
            pairs = dict(model._tied_weights_keys or {}) if ties else {}
            _require_tied(folder, pairs, weights.shapes, weights.read)
            _require_state(folder, model, weights.shapes)
            return model
    # A model without weights, for the names and shapes that its class expects.
    try:
        with torch.device("meta"):
            expected = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    # Wrong values fail wherever a class first uses them: a division, an index, an attribute.
    except Exception as error:
        raise _no_model(config_file, error) from None
    _require_state(folder, expected, weights.shapes)
    _require_tied(folder, _ties(expected), weights.shapes, weights.read)
    if failure is not None:
        raise failure
    state = {name: weights.read(name) for name in weights.tensors}
    return from_state(type(expected), config, state, dtype or weights.dtype, device_map)


def _no_model(config_file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"transformers has no causal language model for {config_file} ({one_line(error)}): "
        "correct config.json"
    )


def _as_llama(
    folder: Path,
    config: Config,
    weights: WeightFiles,
    layout: AbstractLayout,
    dtype: torch.dtype | None,
    device_map: Any,
) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    _require_shapes(folder, layout.name, weights.shapes, layout.expected(config, weights.shapes))
    settings = layout.settings(config, weights.shapes)
    require_memory(folder, weights.size_as(dtype), dtype or weights.dtype)
    # Products are taken in the dtype that is asked for, so that float64 is exact to float64.
    target = dtype or weights.dtype
    state = layout.convert(
        config, weights.tensors.keys(), lambda name: weights.read(name).to(target)
    )
    try:
        llama_config = LlamaConfig(**settings)
        with torch.device("meta"):
            expected = LlamaForCausalLM(llama_config)
    except Exception as error:
        raise CheckpointError(
            f"{folder / 'config.json'} gives no Llama configuration ({one_line(error)}): "
            "correct config.json"
        ) from None
    _require_state(folder, expected, {name: tuple(value.shape) for name, value in state.items()})
    _require_tied(folder, _ties(expected), state, state.__getitem__)
    return from_state(LlamaForCausalLM, llama_config, state, target, device_map)


def from_state(
    model_class: Any,
    config: Any,
    state: dict[str, Tensor],
    dtype: torch.dtype | None,
    device_map: Any = None,
) -> Any:
    """A transformers model of these weights, which must be all that it has."""
    with without_progress_bar():
        return model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            attn_implementation="eager",
            device_map=device_map,
        )


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Reading a small file needs no bar of its own between a caller's."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _require_state(folder: Path, model: Any, found: Mapping[str, Shape]) -> None:
    """Every tensor of a transformers model, tied ones apart, and nothing else."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    kept = {name: shape for name, shape in expected.items() if name in found or name not in tied}
    _require_shapes(folder, type(model).__name__, found, kept)


def _ties(model: Any) -> dict[str, str]:
    """Names that are to be another tensor, and which."""
    return dict(model.all_tied_weights_keys) if model.config.tie_word_embeddings else {}


def _require_tied(
    folder: Path, pairs: Mapping[str, str], found: Collection[str], read: Read
) -> None:
    """A stored tensor that is to be another one must equal it: one of the two would be lost."""
    for name, source in pairs.items():
        if name in found and source in found and not torch.equal(read(name), read(source)):
            raise CheckpointError(
                f"{folder}: {name} is stored and differs from {source}, and config.json says "
                'that they are one (tie_word_embeddings): set "tie_word_embeddings": false, or '
                f"remove {name} if it is left over"
            )


def _require_shapes(
    folder: Path, kind: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]
) -> None:
    wrong = [_mismatch(name, found[name], expected[name]) for name in found if name in expected]
    problems = [problem for problem in wrong if problem]
    problems += [f"{name} is missing" for name in expected if name not in found]
    problems += [_surplus(name) for name in found if name not in expected]
    if problems:
        shown = "; ".join(problems[:4])
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{folder} does not match its config.json ({kind}): {shown}{more}. "
            "Correct config.json or write the weights again"
        )


def _mismatch(name: str, found: Shape, expected: Shape) -> str | None:
    if found == expected:
        return None
    text = f"{name} has shape {list(found)}, expected {list(expected)}"
    if len(found) == 2 and found == expected[::-1]:
        text += " (it is transposed: nn.Linear stores [out, in])"
    return text


def _surplus(name: str) -> str:
    text = f"{name} has no place in this model"
    if name.endswith("_proj.bias"):
        kind = "mlp_bias" if ".mlp." in name else "attention_bias"
        text += f' (it would be dropped: set "{kind}": true)'
    return text


def require_finite(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError with the names of tensors that hold NaN or infinite numbers.

    Reads every weight, which a boot need not otherwise.
    """
    bad = [name for name, value in state.items() if not is_finite(value)]
    if bad:
        raise CheckpointError(
            f"{folder}: {', '.join(bad[:4])} holds NaN or infinite numbers; the file is damaged "
            "or the training diverged: use an earlier checkpoint"
        )

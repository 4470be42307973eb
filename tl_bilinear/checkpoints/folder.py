"""A local Hugging Face folder, checked against its own configuration before it is loaded.

transformers initialises what a file lacks and ignores what it does not expect; here either
is an error that names the tensor, and so is a file that is cut, damaged or transposed.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
Shape = tuple[int, ...]


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be loaded as it stands."""


def read_folder(folder: Path, dtype: torch.dtype | None, device: str) -> tuple[Any, Any]:
    """The folder's transformers model, in eval mode, and its tokenizer (None without one).

    Code in the folder is never run, and nothing is downloaded.

    Raises:
        CheckpointError: what is wrong, where, and what to do.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    _require_config(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    found = _stored_shapes(folder)
    with torch.device("meta"):
        expected_model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    _require_shapes(folder, expected_model, found)
    with _without_progress_bar():
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",
        )
    _require_finite(folder, model)
    return model.to(device).eval(), _tokenizer(folder, config.vocab_size)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Reading a small file needs no bar of its own between a caller's."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _require_config(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no config.json: give a folder written by save_pretrained"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}): fetch the file again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(
            f"{path} has no `model_type`: transformers cannot tell which class it is for"
        )


def _stored_shapes(folder: Path) -> dict[str, Shape]:
    """Name and shape of every stored tensor, from the files' headers."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, Shape] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (safe_open is no dict)
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be read as safetensors ({error}): the file is cut or damaged"
                f"{_first_lost(path)}, fetch or write it again"
            ) from None
    return shapes


def _first_lost(path: Path) -> str:
    """ ", from NAME on": the first tensor that a cut file no longer holds, if it can be told.

    A safetensors file is the header's length (8 bytes), a JSON header with each tensor's
    offsets, and the data.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(start - 8, size)))
            ends = {key: entry["data_offsets"][1] for key, entry in header.items() if key[0] != "_"}
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""
    lost = [
        key for key, end in sorted(ends.items(), key=lambda item: item[1]) if start + end > size
    ]
    return f", from {lost[0]} on" if lost else ""


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks the shards {missing}: fetch them")
        return [folder / name for name in names]
    raise CheckpointError(
        f"{folder} has no {SINGLE} (nor {INDEX}): save the model with save_pretrained, which "
        "writes safetensors; pickled weights are not read"
    )


def _require_shapes(folder: Path, model: Any, found: dict[str, Shape]) -> None:
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    wrong = [_mismatch(name, found[name], expected[name]) for name in found if name in expected]
    problems = [problem for problem in wrong if problem]
    problems += [
        f"{name} is missing" for name in expected if name not in found and name not in tied
    ]
    problems += [_surplus(name) for name in found if name not in expected]
    if problems:
        shown = "; ".join(problems[:4])
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{folder} does not match its config.json ({type(model).__name__}): {shown}{more}. "
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


def _require_finite(folder: Path, model: Any) -> None:
    bad = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(
            f"{folder}: {', '.join(bad[:4])} holds NaN or infinite numbers; the file is damaged "
            "or the training diverged: use an earlier checkpoint"
        )


def _tokenizer(folder: Path, vocab_size: int) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens but the model only "
            f"{vocab_size}: they do not belong together"
        )
    return tokenizer

"""Toy models as files: config.json and model.safetensors in a folder, bundled or local."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tl_bilinear.checkpoints.bundled import ZOO
from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.optimisation.files import replace_file
from tl_bilinear.toys.classifier import BilinearClassifier, ClassifierConfig
from tl_bilinear.toys.modular import ModularTask
from tl_bilinear.toys.modular_model import ModularConfig, ModularModel

TOYS = ZOO / "toys"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def bundled_toys() -> tuple[str, ...]:
    """Names that `load_classifier` and `load_modular` know without a folder."""
    return tuple(sorted(path.parent.relative_to(TOYS).as_posix() for path in TOYS.rglob(CONFIG)))


def load_classifier(name: str | Path = "digits") -> BilinearClassifier:
    """A bilinear classifier in float32, from its bundled name or a folder of `save_toy`.

    Raises:
        CheckpointError: no such folder, another kind of model, or a damaged file.
    """
    folder = _folder(name)
    config = _config(folder, "classifier")
    return _filled(folder, BilinearClassifier(_made(ClassifierConfig, config["model"], folder)))


def load_modular(name: str | Path) -> tuple[ModularModel, ModularTask]:
    """A model of two operations modulo p, and the task with the split that it was trained on.

    Raises:
        CheckpointError: no such folder, another kind of model, or a damaged file.
    """
    folder = _folder(name)
    config = _config(folder, "modular")
    task = dict(config.get("task", {}))
    task["operations"] = tuple(task.get("operations", ()))
    model = ModularModel(_made(ModularConfig, config["model"], folder))
    return _filled(folder, model), _made(ModularTask, task, folder)


def save_toy(
    model: BilinearClassifier | ModularModel,
    folder: str | Path,
    *,
    task: ModularTask | None = None,
    **about: Any,
) -> Path:
    """Write a toy model as `load_classifier` or `load_modular` reads it, each file whole.

    Args:
        folder: files of the same names in it are replaced.
        task: what a ModularModel was trained on.
        about: more for config.json, as the recipe and what was measured.

    Raises:
        ValueError: a ModularModel without its task.
    """
    from safetensors.torch import save

    modular = isinstance(model, ModularModel)
    if modular and task is None:
        raise ValueError("`task` is missing: give the ModularTask that the model was trained on")
    config: dict[str, Any] = {"kind": "modular" if modular else "classifier"}
    config["model"] = asdict(model.config)
    if task is not None:
        config["task"] = asdict(task)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    replace_file(folder / WEIGHTS, save(weights))
    replace_file(folder / CONFIG, (json.dumps(config | about, indent=2) + "\n").encode())
    return folder


def read_config(name: str | Path) -> dict[str, Any]:
    """What config.json of a toy model says: kind, sizes, task, recipe, measured accuracy."""
    return _config(_folder(name), None)


def read_safetensors(path: Path, needed: tuple[str, ...]) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        CheckpointError: it is missing or damaged, or lacks one of `needed`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give a folder that save_toy wrote")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error})") from None
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise CheckpointError(f"{path} lacks {missing}: it holds {sorted(tensors)}")
    return tensors


def _folder(name: str | Path) -> Path:
    folder = TOYS / name if str(name) in bundled_toys() else Path(name)
    if not folder.is_dir():
        raise CheckpointError(
            f"{str(name)!r} is neither a bundled toy model {list(bundled_toys())} nor a folder"
        )
    return folder


def _config(folder: Path, kind: str | None) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {CONFIG}: give a folder of save_toy") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error})") from None
    found = config.get("kind") if isinstance(config, dict) else None
    if found not in ("classifier", "modular") or not isinstance(config.get("model"), dict):
        raise CheckpointError(f"{path} describes no toy model: give a folder of save_toy")
    if kind is not None and found != kind:
        other = "load_modular" if found == "modular" else "load_classifier"
        raise CheckpointError(f"{folder} holds a {found} model: use {other}")
    return config


def _made(kind: Any, fields: dict[str, Any], folder: Path) -> Any:
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None


def _filled(folder: Path, model: Any) -> Any:
    """The model with the folder's weights, in eval mode."""
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    stored = read_safetensors(folder / WEIGHTS, tuple(parameters))
    for name, parameter in parameters.items():
        value = stored[name]
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} has shape {tuple(value.shape)}, and config.json asks "
                f"for {tuple(parameter.shape)}"
            )
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise CheckpointError(f"{folder / WEIGHTS}: {name} holds no finite numbers: damaged")
        with torch.no_grad():
            parameter.copy_(value)
    return model.eval()

"""What a run of the dictionary trainer is at a step, and its file."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tl_bilinear.optimisation.files import replace_file

FILE = "state.safetensors"


@dataclass
class TrainingState:
    """Weights, Adam's moments and each latent's silence; changed in place by every step."""

    weights: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    silent: Tensor
    """Tokens since each latent fired."""
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def begin(cls, weights: dict[str, Tensor]) -> "TrainingState":
        """Before the first step."""
        return cls(
            weights=weights,
            first={name: torch.zeros_like(w) for name, w in weights.items()},
            second={name: torch.zeros_like(w) for name, w in weights.items()},
            silent=torch.zeros_like(weights["encoder_bias"], dtype=torch.long),
        )


def fingerprint(config: object, activations: Tensor) -> str:
    """Sixteen hex digits of a recipe and of all its activations."""
    digest = hashlib.sha256(repr(config).encode())
    digest.update(str((tuple(activations.shape), activations.dtype)).encode())
    digest.update(activations.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def claim_state(folder: Path, config: object, activations: Tensor) -> TrainingState | None:
    """The state to go on from; None in a new folder, which is made this run's own.

    Raises:
        ValueError: the folder's run has another recipe or other activations, or is damaged.
    """
    run = fingerprint(config, activations)
    folder.mkdir(parents=True, exist_ok=True)
    claim, path = folder / "run.txt", folder / FILE
    if claim.exists() and claim.read_text().strip() != run:
        raise ValueError(
            f"{folder} holds a run with another recipe or on other activations: give another "
            "folder, or delete this one"
        )
    claim.write_text(run + "\n")
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            record = json.loads(file.metadata()["record"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to begin again") from None
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "first": {}, "second": {}}
    for name, tensor in tensors.items():
        if "." in name:
            group, key = name.split(".")
            groups[group][key] = tensor.to(activations.device)
    return TrainingState(**groups, silent=tensors["silent"].to(activations.device), **record)


def write_state(state: TrainingState, folder: Path) -> None:
    """Write the state whole or not at all."""
    tensors = {"silent": state.silent}
    for group in ("weights", "first", "second"):
        tensors |= {f"{group}.{name}": t for name, t in getattr(state, group).items()}
    record = {"step": state.step, "seconds": state.seconds, "curve": state.curve}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(folder / FILE, save(whole, {"record": json.dumps(record)}))

"""The state of a training run between steps, kept in a folder that a killed run resumes from."""

import io
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tl_bilinear.optimisation.files import replace_file


class TrainingRun:
    """Weights, optimizer, step and metrics; `training.pt` and `metrics.jsonl` in a folder.

    `training.pt` is written first and under another name, and the metrics when it has been: a run
    that was cut off at any moment is found as its last checkpoint left it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        folder: str | Path | None,
        identity: dict[str, Any],
    ):
        """Make the folder, where one is given, and take up the run that lies in it.

        Args:
            identity: what a run must share to be gone on with; plain numbers and strings.

        Raises:
            ValueError: a folder that cannot be written, that holds a run of another identity, or
                a damaged one.
        """
        self.model, self.optimizer, self.identity = model, optimizer, identity
        self.folder = None if folder is None else Path(folder)
        self.step, self.seconds = 0, 0.0
        self.metrics: list[dict[str, float]] = []
        self._clock = time.perf_counter()
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                replace_file(self.folder / ".writable", b"")
                (self.folder / ".writable").unlink()
            except OSError as error:
                raise ValueError(
                    f"nothing can be written to {self.folder} ({error.strerror}): give another "
                    "out_folder"
                ) from error
            self._resume(self.folder / "training.pt")

    def record(self, metrics: dict[str, float]) -> None:
        """Count one step as done, with its numbers."""
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now
        self.step += 1
        self.metrics.append({**metrics, "seconds": round(self.seconds, 3)})

    def save(self) -> None:
        """Write the state; the one before stays until the new one is whole.

        Raises:
            OSError: it cannot be written, as on a full disk; the checkpoint before is intact.
        """
        if self.folder is None:
            return
        state = {
            "identity": self.identity,
            "step": self.step,
            "seconds": self.seconds,
            "metrics": self.metrics,
            "model": _tensors(self.model),
            "optimizer": self.optimizer.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        lines = "".join(json.dumps(entry) + "\n" for entry in self.metrics)
        try:
            replace_file(self.folder / "training.pt", buffer.getvalue())
            replace_file(self.folder / "metrics.jsonl", lines.encode())
        except OSError as error:
            raise OSError(
                error.errno,
                f"the checkpoint of step {self.step} could not be written ({error.strerror}); the "
                "one before it is intact: make room and run the same again",
                str(self.folder),
            ) from error

    def _resume(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            identity = state["identity"]
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read ({type(error).__name__}): delete it to start again."
            ) from error
        changed = [key for key, value in self.identity.items() if identity.get(key) != value]
        if changed:
            was = ", ".join(f"{key}={identity.get(key)!r}" for key in changed)
            now = ", ".join(f"{key}={self.identity[key]!r}" for key in changed)
            raise ValueError(
                f"{self.folder} holds a run with {was}, but this one has {now}: "
                "give another out_folder, or delete that one."
            )
        with torch.no_grad():
            for name, value in _tensors(self.model).items():
                value.copy_(state["model"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.metrics = state["metrics"]


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name: a bridge's `state_dict` renames some."""
    return {name: value.detach() for name, value in model.named_parameters()} | {
        name: value for name, value in model.named_buffers()
    }

"""A host of random weights without TransformerLens, whose import is most of a small process.

Run as a program it sweeps `steps` over the host, which tests kill, or start under torchrun.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tl_bilinear import BilinearTensor
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.norm import Norm


class SmallHost(AbstractHost):
    """RMSNorm without gain everywhere, no biases, no tokenizer."""

    kind = "SmallHost"

    def _norm(self, module):
        return Norm(gain=None, bias=None, centred=False)

    def _gate_activation(self, mlp):
        return mlp.act


def small_host(
    d_model: int = 6,
    d_mlp: int = 8,
    d_vocab: int = 20,
    n_layers: int = 2,
    dtype: torch.dtype = torch.float64,
    act=None,
) -> SmallHost:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    blocks = [
        SimpleNamespace(
            ln1=None,
            ln2=None,
            mlp=SimpleNamespace(
                W_gate=normal(d_model, d_mlp),
                W_in=normal(d_model, d_mlp),
                W_out=normal(d_mlp, d_model),
                act=act,
            ),
        )
        for _ in range(n_layers)
    ]
    cfg = SimpleNamespace(
        n_layers=n_layers, d_model=d_model, d_head=2, n_heads=2, n_ctx=8, model_name="small"
    )
    return SmallHost(
        SimpleNamespace(
            cfg=cfg,
            W_E=normal(d_vocab, d_model),
            W_U=normal(d_model, d_vocab),
            blocks=blocks,
            ln_final=None,
            tokenizer=None,
        )
    )


def steps(tensor: BilinearTensor, u: Tensor, seconds: float = 0.0) -> dict[str, Tensor]:
    """Traces of Q(u) and of its powers; slow enough to be killed in between, where it is told."""
    time.sleep(seconds)
    matrix = tensor.interaction_matrix(u)
    return {
        "trace": matrix.diagonal(dim1=-2, dim2=-1).sum(-1),
        "powers": torch.stack([matrix.matrix_power(p).sum((-2, -1)) for p in (2, 3)], -1),
        "image": (matrix @ u.unsqueeze(-1)).squeeze(-1),
    }


def log_calls(tensor: BilinearTensor, u: Tensor) -> dict[str, Tensor]:
    """`steps`, a tenth of a second each, noted in the file that the program was given."""
    with open(sys.argv[2], "a") as log:
        log.write(f"{len(u)}\n")
    return steps(tensor, u, 0.05)


def sweep(folder: str | Path, compute=steps, **options):
    """20 directions and 2 layers in 20 chunks."""
    from tl_bilinear.sweeps import run_sweep, token_directions

    host = small_host()
    settings = {"chunk": 2, "progress": False, "patience": 60.0, "memory": "1GiB", **options}
    return run_sweep(host, compute, token_directions(host), None, folder, **settings)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a finished sweep; nothing else may be in its folder."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert not [name for name in found if name.startswith((".", "failed"))]
    assert {"manifest.json", "directions.json", "index.parquet"} <= set(found)
    return found


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("layer*.safetensors"))


class Interrupted(Exception):
    pass


def breaking(tensor: Any, u: torch.Tensor, calls: list[int], at: list[int]) -> dict[str, Any]:
    """`steps`, which fails at the calls numbered in `at`."""
    calls.append(len(u))
    if len(calls) in at:
        raise Interrupted
    return steps(tensor, u)


def counted(at: list[int]) -> tuple[Callable[..., Any], list[int]]:
    calls: list[int] = []

    def compute(tensor, u):
        return breaking(tensor, u, calls, at)

    return compute, calls


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


if __name__ == "__main__":
    from small_host import log_calls as compute  # by the name that the test knows it by

    sweep(sys.argv[1], compute)

"""One row of the sweep benchmark's memory table: `sweep_memory.py d rank budget computation`.

A process of its own, since a peak cannot be taken back. One chunk is swept.
"""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet  # noqa: F401  (its import is not the sweep's)
import torch

from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.norm import NO_NORM
from tl_bilinear.sweeps import run_sweep
from tl_bilinear.sweeps.computations import make_computation
from tl_bilinear.sweeps.plan import MIB, Ranks, make_plan, parse_memory


class RandomLayer(AbstractHost):
    """One MLP without a norm, in float32."""

    kind = "RandomLayer"

    def _norm(self, module):
        return NO_NORM

    def _gate_activation(self, mlp):
        return None


def random_layer(d: int, rank: int) -> RandomLayer:
    torch.manual_seed(0)
    mlp = SimpleNamespace(
        W_gate=torch.randn(d, rank), W_in=torch.randn(d, rank), W_out=torch.randn(rank, d)
    )
    cfg = SimpleNamespace(n_layers=1, d_model=d, d_head=1, n_heads=1, n_ctx=1, model_name="random")
    blocks = [SimpleNamespace(mlp=mlp, ln2=None)]
    W_U = torch.randn(d, 8)
    return RandomLayer(
        SimpleNamespace(cfg=cfg, W_U=W_U, W_E=W_U.T, blocks=blocks, ln_final=None, tokenizer=None)
    )


def kib(name: str) -> int:
    """From /proc: ru_maxrss begins with what the parent process had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    d, rank, budget, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    torch.linalg.eigh(torch.eye(8) @ torch.eye(8))
    host = random_layer(d, rank)
    name, _, k = name.partition(",k=")
    settings = {"k": int(k), "eigenvectors": True} if k else {}
    computation = make_computation(name, settings)
    plan = make_plan(
        computation,
        host.mlp_tensor(0),
        (0,),
        10**6,
        memory=budget,
        chunk=None,
        threads=1,
        ranks=Ranks(0, 1, 1),
    )
    directions = torch.randn(plan.chunk, d)
    with tempfile.TemporaryDirectory() as parent:
        before = kib("VmRSS")
        run_sweep(host, computation, directions, None, f"{parent}/s", memory=budget, progress=False)
        peak = kib("VmHWM") - before
    allowed = (parse_memory(budget) or 0) / MIB
    estimated = plan.needed / MIB
    sizes = f"{allowed:.0f} {estimated:.0f} {peak / 1024:.0f}"
    print(f"d={d},rank={rank} {sys.argv[4]} {plan.chunk} {sizes}")


if __name__ == "__main__":
    main()

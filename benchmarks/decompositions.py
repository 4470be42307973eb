"""`python benchmarks/decompositions.py`: decompositions beside the best of what others have.

One thread, one process, contenders interleaved round by round, medians of CPU time. Shapes are
drawn from a seed around the stated sizes, so that nothing can be tuned to one of them. Per row:
CPU milliseconds, ours over the fastest contender, the spread of ours against itself in the same
run, what a call adds to the peak of a forked process, and the operations of our matrix products
(counted by torch, LAPACK's apart) over the floor of one product per direction.

A case is a function of a seeded generator that returns a `Case`; add it to CASES. Below them stand
the rows of `higher_order.py` and `interactions.py`. What is missed is in the table as measured.
"""

import argparse
import importlib.util
import platform
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from higher_order import page as higher_order
from interactions import cases as interaction_cases
from measure import cpu_seconds, peak_mib
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tl_bilinear import BilinearTensor, eigendecompose
from tl_bilinear.decompositions.interaction_operator import InteractionOperator, interaction_matrix

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One row: ours against contenders, and the target that the issue sets."""

    name: str
    ours: Run
    contenders: dict[str, Run]
    target: str
    floor: float
    """Operations of one matrix product per direction: Q(u) built once, 2 d^2 rank."""
    goals: dict[str, float]
    """Per contender, how many times ours it should at least take."""
    skipped: dict[str, str] = field(default_factory=dict)
    check: Callable[[], str] = lambda: ""
    """What the result must show beside its time."""


def jitter(rng: random.Random, size: int) -> int:
    """A size within 5 % of the stated one."""
    return size + rng.randint(-size // 20, size // 20)


def layer(rng: random.Random, d: int, rank: int, modes: int, dtype: torch.dtype) -> BilinearTensor:
    """Random neurons and `modes` planted ones, 3 to 9 times above the bulk's edge for u = e_0."""
    generator = torch.Generator().manual_seed(rng.randint(0, 2**31))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    bulk = rank - modes
    legs = normal(2, d, bulk) / d**0.5
    planted = torch.linalg.qr(normal(d, modes)).Q
    edge = 2 * (bulk / 2 / d) ** 0.5
    sizes = edge * torch.linspace(9, 3, modes, dtype=torch.float64) * normal(modes).sign()
    out = torch.cat([normal(8, bulk), sizes.expand(8, -1) * (1 + 0.05 * normal(8, modes))], dim=1)
    left, right = (torch.cat([leg, planted], dim=1) for leg in legs)
    return BilinearTensor(left, right, out).to(dtype)


def einsum_matrix(tensor: BilinearTensor, u: Tensor) -> Tensor:
    matrix = torch.einsum("o,or,ir,jr->ij", u, tensor.out, tensor.left, tensor.right)
    return (matrix + matrix.T) / 2


def product_matrix(tensor: BilinearTensor, u: Tensor) -> Tensor:
    matrix = (tensor.left * (u @ tensor.out)) @ tensor.right.T
    return (matrix + matrix.T) / 2


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def full_spectra(rng: random.Random, dtype: torch.dtype) -> Case:
    """All eigenpairs of two directions (the cost is per direction)."""
    d, rank = jitter(rng, 1024), jitter(rng, 4096)
    tensor = layer(rng, d, rank, 10, dtype)
    u = torch.eye(2, 8, dtype=dtype)
    alone = [product_matrix(tensor, each) for each in u]
    contenders: dict[str, Run] = {
        "product, eigh": lambda: [torch.linalg.eigh(product_matrix(tensor, v)) for v in u],
        "(floor) eigh alone + product": lambda: [
            (torch.linalg.eigh(matrix), (tensor.left * (v @ tensor.out)) @ tensor.right.T)
            for matrix, v in zip(alone, u, strict=True)
        ],
    }
    skipped = {}
    if torch.backends.opt_einsum.is_available():
        contenders["einsum (opt_einsum), eigh"] = lambda: [
            torch.linalg.eigh(einsum_matrix(tensor, v)) for v in u
        ]
    else:
        skipped["einsum with opt_einsum, eigh"] = (
            "opt_einsum is not installed; torch.einsum contracts left to right and would build "
            "rank x d x d numbers. The contraction that opt_einsum finds is the row's product"
        )
    return Case(
        name=f"full spectra, 2 directions, d {d}, rank {rank}, {str(dtype)[6:]}",
        ours=lambda: eigendecompose(tensor, u, dtype=dtype),
        contenders=contenders,
        target="never slower than the best; within 1.3 of eigh alone + one product",
        floor=len(u) * 2 * d * d * rank,
        goals={"product, eigh": 1.0, "(floor) eigh alone + product": 1 / 1.3},
        skipped=skipped,
        check=lambda: beside_eigh(tensor, alone[0]),
    )


def beside_eigh(tensor: BilinearTensor, matrix: Tensor) -> str:
    """What a result needs beside a product and eigh, which the contenders leave out."""
    values, columns = torch.linalg.eigh(matrix)

    def finish() -> object:
        vectors = columns.mT[values.abs().argsort(descending=True, stable=True)]
        largest = vectors.gather(-1, vectors.abs().argmax(-1, keepdim=True))
        finite = [each.aminmax() for each in (tensor.left, tensor.right, tensor.out, values)]
        return vectors.mul_(torch.where(largest < 0, -1.0, 1.0)), finite

    took = statistics.median(cpu_seconds(finish, 1) for _ in range(5)) * 1e3
    return (
        f"ordering by |lambda|, signs and looking for NaN, which the contenders leave out, take "
        f"{took:.0f} ms per direction"
    )


def top_eight(rng: random.Random, d: int, directions: int, compute: torch.dtype) -> Case:
    """Eight pairs by |lambda| of float32 weights, low rank plus noise."""
    d = jitter(rng, d)
    rank = jitter(rng, 4 * d)
    tensor = layer(rng, d, rank, 10, torch.float32)
    u = torch.eye(directions, 8)
    same = tensor.to(compute)
    alone = [product_matrix(same, each.to(compute)) for each in u]
    found: list = []

    def ours() -> object:
        found[:] = [eigendecompose(tensor, u, 8, dtype=compute, tolerance=1e-4)]
        return found[0]

    def lobpcg() -> object:
        matrices = [product_matrix(same, each.to(compute)) for each in u]
        return [
            torch.lobpcg(matrix, k=8, largest=largest, tol=1e-4)
            for matrix in matrices
            for largest in (True, False)
        ]

    contenders: dict[str, Run] = {
        "product, eigh": lambda: [
            torch.linalg.eigh(product_matrix(same, each.to(compute))) for each in u
        ],
        "(floor) eigh alone": lambda: [torch.linalg.eigh(matrix) for matrix in alone],
        "product, torch.lobpcg at both ends": lobpcg,
    }
    skipped = {}
    if installed("scipy"):
        contenders["scipy eigsh, LinearOperator"] = lambda: [eigsh(same, each) for each in u]
    else:
        skipped["scipy eigsh"] = "scipy is not installed"

    def check() -> str:
        result = found[0]
        matrices = torch.stack([product_matrix(tensor.to(torch.float64), v.double()) for v in u])
        vectors, values = result.eigenvectors.double(), result.eigenvalues.double()
        residuals = (vectors @ matrices - values[..., None] * vectors).norm(dim=-1)
        return (
            f"{result.method}; residuals {float((residuals / values.abs()).max()):.0e} relative. "
            + where_the_time_goes(tensor, u[0])
        )

    return Case(
        name=f"top 8, {directions} direction(s), d {d}, rank {rank}, in {str(compute)[6:]}",
        ours=ours,
        contenders=contenders,
        target=f"{3 if d < 1500 else 6} times faster than full eigh; residuals below 1e-4",
        floor=directions * 2 * d * d * rank,
        goals={"product, eigh": 3.0 if d < 1500 else 6.0},
        skipped=skipped,
        check=check,
    )


def where_the_time_goes(tensor: BilinearTensor, u: Tensor) -> str:
    """What bounds the Krylov method: Q built once, or the factors read for every product."""
    weights = u @ tensor.out
    block = torch.randn(1, 12, tensor.d_in)
    operator = InteractionOperator(tensor, weights[None], torch.zeros(1))

    def product() -> object:
        return operator([0], block)

    def build() -> object:
        return interaction_matrix(tensor, weights)

    built, factored = (
        1e3 * statistics.median(cpu_seconds(run, 1) for _ in range(3)) for run in (build, product)
    )
    return (
        f"Q built once in float32 takes {built:.0f} ms, a factored product with 12 vectors "
        f"{factored:.0f} ms (it reads both factors twice), and the search makes about 8 of either "
        "kind: that is the floor of ours"
    )


def eigsh(tensor: BilinearTensor, u: Tensor) -> object:
    from scipy.sparse.linalg import LinearOperator
    from scipy.sparse.linalg import eigsh as solve

    left, right = tensor.left.numpy(), tensor.right.numpy()
    weights = (u.to(tensor.dtype) @ tensor.out).numpy() / 2

    def product(x):
        return left @ (weights * (right.T @ x)) + right @ (weights * (left.T @ x))

    operator = LinearOperator((len(left),) * 2, matvec=product, dtype=left.dtype)
    return solve(operator, k=8, which="LM", tol=1e-4)


CASES: dict[str, Callable[[random.Random], Case]] = {
    "full64": lambda rng: full_spectra(rng, torch.float64),
    "full32": lambda rng: full_spectra(rng, torch.float32),
    "top1024": lambda rng: top_eight(rng, 1024, 1, torch.float64),
    "top1024x8": lambda rng: top_eight(rng, 1024, 8, torch.float64),
    "top1024x8_32": lambda rng: top_eight(rng, 1024, 8, torch.float32),
    "top2048": lambda rng: top_eight(rng, 2048, 1, torch.float64),
}


def in_place_product(total, left, right, *_, **__) -> int:
    """Operations of addmm_, from its shapes."""
    return 2 * left[0] * left[1] * right[1]


def measured(case: Case, rounds: int) -> list[str]:
    """The case's lines of the page."""
    runs = {"ours": case.ours, "ours again": case.ours, **case.contenders}
    case.ours()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(1e3 * cpu_seconds(run, 1))
    middle = {name: statistics.median(found) for name, found in times.items()}
    itself = [b / a for a, b in zip(times["ours"], times["ours again"], strict=True)]
    lines = [f"### {case.name}", "", "| | CPU ms | that / ours | MiB |", "|---|---:|---:|---:|"]
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True))
        for name in runs
    }
    for name, run in runs.items():
        if name != "ours again":
            lines.append(
                f"| {name} | {middle[name]:.0f} | {ratios[name]:.2f} | {peak_mib(run):.0f} |"
            )
    verdicts = [
        f"{name} {ratios[name]:.2f} ({'met' if ratios[name] >= goal else 'MISSED'}: {goal:.2f})"
        for name, goal in case.goals.items()
    ]
    lines += ["", f"Target: {case.target}. Measured: {'; '.join(verdicts)}."]
    lines.append(f"Ours against itself: {min(itself):.2f} to {max(itself):.2f}.")
    # In place, a product is not counted by itself.
    with FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.addmm_: in_place_product}
    ) as counter:
        case.ours()
    share = counter.get_total_flops() / case.floor
    lines.append(f"Operations of our products over one product per direction: {share:.2f}.")
    lines += [f"Result: {found}." for found in [case.check()] if found]
    lines += [f"Skipped: {name}: {reason}." for name, reason in case.skipped.items()]
    return [*lines, ""]


def interactions_page(rounds: int) -> Iterator[str]:
    """Lines of the page for interaction tables."""
    columns = ("contender ms", "ours ms", "contender / ours", "contender MiB", "ours MiB")
    yield f"| ours / contender | {' | '.join(columns)} |"
    yield "|---|---:|---:|---:|---:|---:|"
    for row in interaction_cases(rounds):
        yield (
            f"| {row.name} | {row.baseline:.0f} | {row.contender:.0f} | {1 / row.ratio:.2f} "
            f"| {row.baseline_mib:.0f} | {row.contender_mib:.0f} |"
        )
    yield from ("", "Target: at least 2 at 8192 features and d 512, under 1024 MiB.", "")


def sections(wanted: list[str], rounds: int, seed: int) -> Iterator[str]:
    """The page, line by line, as it is measured."""
    yield "# Results of `python benchmarks/decompositions.py`"
    yield ""
    yield (
        f"torch {version('torch')}, Python {platform.python_version()}, one thread, {rounds} "
        f"rounds, seed {seed}. Medians of CPU time."
    )
    yield ""
    for name in wanted:
        if name in CASES:
            yield from measured(CASES[name](random.Random(f"{seed} {name}")), rounds)
    if "higher_order" in wanted:
        yield from ("### HOSVD, similarity, CP; float64", "")
        yield from higher_order(random.Random(f"{seed} higher order"), 1024)
    if "interactions" in wanted:
        yield from ("### Interactions of one output feature over all pairs, top 32; float32", "")
        yield from interactions_page(rounds)


def main() -> None:
    every = [*CASES, "higher_order", "interactions"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=every, help=", ".join(every))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the page here as well")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    lines = []
    for line in sections(given.cases, given.rounds, given.seed):
        print(line, flush=True)
        lines.append(line)
        if given.output:  # after every line: a run that is stopped keeps what it has
            given.output.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Interactions of one output feature over all pairs of input features, beside the dense table.

The contender streams blocks of the upper triangle (`interaction_table`); the baseline projects
and then looks for the largest: D Q D^T, its upper triangle, topk of the magnitudes. Both keep the
32 largest, in float32. `cases(rounds)` gives rows for `run.table`; alone:

    python benchmarks/interactions.py
"""

import argparse
from collections.abc import Callable

import torch
from measure import Comparison, compare

from tl_bilinear import BilinearTensor
from tl_bilinear.decompositions import InteractionTable, interaction_table

K = 32
SHAPES = ((512, 2048, 8192), (256, 1024, 4096), (384, 1536, 6144))


def problem(
    d: int, rank: int, n: int, seed: int = 0
) -> tuple[BilinearTensor, torch.Tensor, torch.Tensor]:
    """A Gaussian tensor, a direction, and n features of norm one; float32."""
    generator = torch.Generator().manual_seed(seed)
    tensor = BilinearTensor(*torch.randn(3, d, rank, generator=generator))
    features = torch.randn(n, d, generator=generator)
    features = features / features.norm(dim=-1, keepdim=True)
    return tensor, torch.randn(d, generator=generator), features


def dense(tensor: BilinearTensor, u: torch.Tensor, features: torch.Tensor) -> tuple:
    """The whole table, then the largest of its upper triangle and of its diagonal."""
    table = features @ tensor.interaction_matrix(u) @ features.T
    diagonal = table.diagonal().clone()
    table.triu_(1)
    flat = table.view(-1)
    places = flat.abs().topk(K).indices
    return flat[places], places, diagonal, diagonal.abs().topk(K).indices


def streamed(tensor: BilinearTensor, u: torch.Tensor, features: torch.Tensor) -> InteractionTable:
    """The same entries, and the moments of all."""
    return interaction_table(tensor, u, features, K)


def check(arguments: tuple) -> None:
    """Both find the same pairs."""
    _, places, _, diagonal = dense(*arguments)
    found, n = streamed(*arguments), len(arguments[2])
    pairs = found.cross_pairs[:, 0] * n + found.cross_pairs[:, 1]
    if set(pairs.tolist()) != set(places.tolist()):
        raise AssertionError("streamed and dense keep different pairs")
    if set(found.self_top.tolist()) != set(diagonal.tolist()):
        raise AssertionError("streamed and dense keep different self-interactions")


def cases(rounds: int) -> list[Comparison]:
    """One row per shape; both are checked against each other first."""
    rows = []
    for d, rank, n in SHAPES:
        arguments = problem(d, rank, n)
        check(arguments)
        contenders: list[Callable] = [dense, streamed]
        runs = [lambda f=f, arguments=arguments: f(*arguments) for f in contenders]
        name = f"interactions / dense table and topk, {n} features, d {d}, rank {rank}"
        rows.append(compare(name, *runs, rounds=rounds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    torch.set_num_threads(1)
    for row in cases(parser.parse_args().rounds):
        print(
            f"{row.name}: {row.baseline:.0f} ms and {row.contender:.0f} ms, ratio {row.ratio:.2f} "
            f"(noise {row.noise[0]:.2f}-{row.noise[1]:.2f}), {row.baseline_mib:.0f} MiB and "
            f"{row.contender_mib:.0f} MiB"
        )


if __name__ == "__main__":
    main()

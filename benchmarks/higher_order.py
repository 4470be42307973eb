"""HOSVD, similarity and CP beside dense contenders and beside the matrix products they need.

Rows of `python benchmarks/decompositions.py`, in float64. Alone, `python benchmarks/higher_order.py
4096x14336` measures one large shape in float32 with the peak of the whole process (minutes).
"""

import argparse
import importlib.util
import random
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from measure import compare

import tl_bilinear as tlb
from tl_bilinear.decompositions.cp_fit import fit

Run = Callable[[], object]
AT_LEAST_50, AT_LEAST_10 = (f"{n} at d 256, growing with d" for n in (50, 10))


@dataclass(frozen=True)
class Case:
    """Two ways to one result, or a result and the products that it cannot do without."""

    name: str
    baseline: Run
    contender: Run
    target: str
    rounds: int = 3


def random_tensor(d: int, rank: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    factors = (torch.randn(d, rank, generator=generator, dtype=dtype) for _ in range(3))
    return tlb.BilinearTensor(*factors)


def cases(rng: random.Random, largest: int = 1024) -> Iterator[Case]:
    """Every case up to a size, sizes within 5 %; dense contenders stop at d 256 (seconds)."""

    def sizes(*about: int) -> Iterator[tuple[int, int]]:
        for d in about:
            yield d + rng.randint(-d // 20, d // 20), 4 * d + rng.randint(-d // 5, d // 5)

    for d, rank in sizes(64, 128, 256):
        yield from dense_cases(random_tensor(d, rank), f"d {d}, rank {rank}")
    for d, rank in sizes(*(d for d in (256, 512, 1024) if d <= largest)):
        yield from floor_cases(random_tensor(d, rank), random_tensor(d, rank, 1), d, rank)
    for d, rank in sizes(64, 128):
        yield cp_case(random_tensor(d, rank), 16, f"d {d}, rank {rank}, 16 atoms")


def dense_cases(tensor: tlb.BilinearTensor, size: str) -> Iterator[Case]:
    """Ours finds the modes of all three unfoldings; the dense ones only those of the output."""

    def dense() -> torch.Tensor:
        built = tensor.to_dense()
        return ((built + built.mT) / 2).flatten(1)

    def by_svd():
        return torch.linalg.svd(dense(), full_matrices=False)

    def by_gram():
        unfolded = dense()
        return torch.linalg.eigh(unfolded @ unfolded.T)

    def ours():
        return tlb.hosvd(tensor)

    yield Case(f"hosvd (3 modes) / dense SVD (1 mode), {size}", by_svd, ours, AT_LEAST_50)
    yield Case(f"hosvd (3 modes) / dense Gram (1 mode), {size}", by_gram, ours, AT_LEAST_10, 5)
    if tensor.d_in <= 150 and importlib.util.find_spec("tensorly"):  # minutes beyond
        import tensorly
        from tensorly.decomposition import partial_tucker

        tensorly.set_backend("pytorch")
        shape = [tensor.d_out, tensor.d_in, tensor.d_in]

        def by_tensorly():
            built = dense().unflatten(1, shape[1:])
            return partial_tucker(built, rank=shape, modes=[0, 1, 2], n_iter_max=1)

        yield Case(f"hosvd / tensorly partial_tucker, {size}", by_tensorly, ours, "")


def floor_cases(a: tlb.BilinearTensor, b: tlb.BilinearTensor, d: int, rank: int) -> Iterator[Case]:
    """Against the same number of multiplications in the largest matrix products there are."""

    def products(wide: int, narrow: int) -> Run:
        def run() -> None:
            for _ in range(wide):
                square = a.left.T @ b.left
            for _ in range(narrow):
                square = a.left @ b.left.T
            del square

        return run

    size, rounds = f"d {d}, rank {rank}", 3 if d > 512 else 7
    yield Case(
        f"hosvd / its matrix products (10 rank^2 d + 6 rank d^2), {size}",
        products(5, 3),
        lambda: tlb.hosvd(a),
        "0.4 (1/2.5) at d 1024",
        rounds,
    )
    yield Case(
        f"tensor_similarity / its matrix products (20 rank^2 d), {size}",
        products(10, 0),
        lambda: tlb.tensor_similarity(a, b),
        "0.5 (1/2)",
        rounds,
    )


def cp_case(tensor: tlb.BilinearTensor, atoms: int, size: str, sweeps: int = 10) -> Case:
    """Ten sweeps, beside the two contractions that a sweep makes with the built tensor."""
    start = torch.randn(tensor.d_in, atoms, dtype=torch.float64)
    squared_norm = float(tensor.symmetrized().norm()) ** 2

    def dense() -> None:
        built = tensor.to_dense()
        outputs = torch.randn(tensor.d_out, atoms, dtype=torch.float64)
        for _ in range(sweeps):
            read = built @ start  # [d_out, d_in, atoms]
            _ = (read * start).sum(1)
            _ = torch.einsum("oir,or->ir", read, outputs)

    def ours():
        return fit(tensor, squared_norm, start, sweeps, 0.0)

    return Case(f"cp: {sweeps} sweeps / built and contracted densely, {size}", dense, ours, "", 7)


def parafac_error() -> str:
    """Reached errors at d 32, rank 128, 16 atoms: tensorly's parafac (no symmetry) and ours."""
    tensor = random_tensor(32, 128)
    dense = tensor.symmetrized().to_dense()
    started = time.process_time()
    ours = float(tlb.cp_decompose(tensor, 16, seed=1).error / dense.norm())
    text = f"cp_decompose: relative error {ours:.4f} in {time.process_time() - started:.1f} s; "
    if not importlib.util.find_spec("tensorly"):
        return text + "tensorly is not installed: no parafac to compare with"
    import tensorly
    from tensorly.decomposition import parafac

    tensorly.set_backend("pytorch")
    started = time.process_time()
    found = tensorly.cp_to_tensor(parafac(dense, rank=16, n_iter_max=500, tol=1e-8))
    error = float((found - dense).norm() / dense.norm())
    return text + f"parafac: {error:.4f} in {time.process_time() - started:.1f} s"


def large(d: int, rank: int) -> None:
    """hosvd and similarity once, float32 products, with the peak of this process."""
    a, b = (random_tensor(d, rank, seed, torch.float32) for seed in (0, 1))

    def products() -> float:
        started = time.process_time()
        part = slice(0, 2048)
        for _ in range(3):
            a.left[:, part].T @ b.left[:, part]
        return 3 * 2 * 2048**2 * d / (time.process_time() - started)

    runs = {
        "hosvd": (
            lambda: tlb.hosvd(a, k=64, dtype=torch.float32),
            10 * rank**2 * d + 6 * rank * d**2,
        ),
        "similarity": (lambda: tlb.tensor_similarity(a, b, dtype=torch.float32), 20 * rank**2 * d),
    }
    for name, (run, operations) in runs.items():
        before, started, wall = products(), time.process_time(), time.perf_counter()
        run()
        cpu, wall = time.process_time() - started, time.perf_counter() - wall
        floor = operations / ((before + products()) / 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{name}, d {d}, rank {rank}, float32: {cpu:.0f} s CPU ({wall:.0f} s wall), "
            f"{cpu / floor:.2f} of its matrix products, peak {peak:.1f} GiB"
        )


def page(rng: random.Random, largest: int) -> Iterator[str]:
    """Lines of the page: a table, then the errors that CP reaches."""
    yield from (
        "| ours / contender | contender ms | ours ms | contender / ours | contender itself "
        "| contender MiB | ours MiB | target |",
        "|---|---:|---:|---:|---|---:|---:|---|",
    )
    for case in cases(rng, largest):
        found = compare(case.name, case.baseline, case.contender, case.rounds)
        yield (
            f"| {found.name} | {found.baseline:.1f} | {found.contender:.1f} "
            f"| {1 / found.ratio:.2f} | {found.noise[0]:.2f}-{found.noise[1]:.2f} "
            f"| {found.baseline_mib:.0f} | {found.contender_mib:.0f} | {case.target} |"
        )
    yield from ("", parafac_error() + ".", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", metavar="DxR", help="for example 4096x14336")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    large(*map(int, parser.parse_args().shape.split("x")))


if __name__ == "__main__":
    main()

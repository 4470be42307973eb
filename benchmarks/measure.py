"""Two contenders, run in turn in one process: CPU time, its noise, and peak memory."""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """CPU milliseconds per call (median), ratios, and the peak memory that a call adds."""

    name: str
    baseline: float
    contender: float
    ratio: float
    """Median over rounds of contender / baseline."""
    noise: tuple[float, float]
    """Middle half of baseline / baseline, the same command against itself."""
    baseline_mib: float
    contender_mib: float


def compare(
    name: str,
    baseline: Callable[[], object],
    contender: Callable[[], object],
    rounds: int = 25,
    calls: int = 1,
) -> Comparison:
    """Baseline, contender, baseline again; every round once, so that drift meets all alike."""
    for warm_up in (baseline, contender):
        warm_up()
    times = [
        (cpu_seconds(baseline, calls), cpu_seconds(contender, calls), cpu_seconds(baseline, calls))
        for _ in range(rounds)
    ]
    noise = statistics.quantiles([again / first for first, _, again in times], n=4)
    return Comparison(
        name=name,
        baseline=1e3 * statistics.median(first for first, _, _ in times),
        contender=1e3 * statistics.median(second for _, second, _ in times),
        ratio=statistics.median(2 * b / (a + c) for a, b, c in times),
        noise=(noise[0], noise[2]),
        baseline_mib=peak_mib(baseline),
        contender_mib=peak_mib(contender),
    )


def cpu_seconds(run: Callable[[], object], calls: int) -> float:
    """Of one call, averaged over `calls`."""
    start = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - start) / calls


def peak_mib(run: Callable[[], object]) -> float:
    """MiB by which one call raises the peak of a forked process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)

    process = context.Process(target=child)
    process.start()
    peak = receiver.recv()
    process.join()
    return peak

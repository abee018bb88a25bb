"""Timing for benchmarks: interleaved repetitions, medians, spread, and a ratio against a baseline of the same run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

REPETITIONS = 15


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: what was measured, against what, in milliseconds."""

    name: str
    baseline: str
    median_ms: float
    spread_ms: float
    """Half the distance between the first and third quartile."""
    baseline_ms: float
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times the baseline it takes."""
        return self.median_ms / self.baseline_ms


def compare(
    name: str,
    work: Callable[[], object],
    baseline_name: str,
    baseline: Callable[[], object],
    note: str = "",
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Time both in turn, so that a noisy moment falls on both alike.

    ``time.thread_time`` as the clock counts what one thread computes, on a machine that others use as well.
    """
    work()
    baseline()
    ours: list[float] = []
    theirs: list[float] = []
    gc.disable()
    try:
        for _ in range(REPETITIONS):
            theirs.append(_time_ms(baseline, clock))
            ours.append(_time_ms(work, clock))
    finally:
        gc.enable()
    quartiles = statistics.quantiles(ours, n=4)
    return Row(
        name=name,
        baseline=baseline_name,
        median_ms=statistics.median(ours),
        spread_ms=(quartiles[2] - quartiles[0]) / 2,
        baseline_ms=statistics.median(theirs),
        note=note,
    )


def _time_ms(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return (clock() - started) * 1_000

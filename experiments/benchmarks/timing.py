"""Alternating runs of several contenders in one process: A, B, A, B …, so that a machine that drifts drifts for all."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Run = Callable[[], object]
"""Work that has ended when the call returns, its results on the host."""


class Contender(NamedTuple):
    """What is timed.

    Attributes:
        run: The work.
        warm_up: What comes once before, without being counted: by default `run` itself, which compiles it. Less of it
            where `run` is long and compiles nothing.
    """

    run: Run
    warm_up: Run | None = None


class Timing(NamedTuple):
    """Seconds of one contender, and what its last run returned."""

    warm_up: float
    runs: list[float]
    result: object

    @property
    def median(self) -> float:
        """The median run."""
        return statistics.median(self.runs)

    def record(self) -> dict:
        """What goes into the JSON."""
        return {
            "median": self.median,
            "min": min(self.runs),
            "max": max(self.runs),
            "runs": self.runs,
            "warm_up": self.warm_up,
        }


def alternate(contenders: Mapping[str, Contender], *, repeats: int) -> dict[str, Timing]:
    """Each contender warmed up once, then `repeats` rounds in which each runs once."""
    warm_ups = {name: _seconds(contender.warm_up or contender.run)[0] for name, contender in contenders.items()}
    runs: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, object] = {}
    for _ in range(repeats):
        for name, contender in contenders.items():
            seconds, results[name] = _seconds(contender.run)
            runs[name].append(seconds)
    return {name: Timing(warm_ups[name], runs[name], results[name]) for name in contenders}


def _seconds(run: Run) -> tuple[float, object]:
    gc.collect()  # what earlier runs left behind is not this one's cost
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result

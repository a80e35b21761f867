"""Seconds of something that is run several times, and how much memory the device took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax

from tajax.types import JsonObject

ENOUGH = 20.0
"""Seconds after which something is not run again: one run of that length says what it costs."""


def timed(run: Callable[[], object], repeats: int) -> JsonObject:
    """Seconds of a run whose work has ended when it returns: the first, which compiles, and the median of the others.

    Returns:
        `first`, `seconds`, the smallest and largest, and the number of `runs`; where one takes longer than `ENOUGH`
        fewer than `repeats`.
    """
    first, runs = _seconds(run), []
    while len(runs) < repeats and sum(runs) < ENOUGH:
        runs.append(_seconds(run))
    return {
        "first": first,
        "seconds": statistics.median(runs),
        "smallest": min(runs),
        "largest": max(runs),
        "runs": len(runs),
    }


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def peak_bytes() -> int | None:
    """The most that this process has had on its first device so far; None where the device does not tell."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

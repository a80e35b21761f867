"""The largest batch that fits into so much memory: where a line through compiled sizes says, verified by compiling."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

from experiments.scale import targets
from experiments.scale.programs import Job
from experiments.scale.records import Records, needed

__all__ = ["Capacity", "find", "known", "next_batch", "step_of"]

TRIES = 6
CLOSE = 1.05
"""How much larger, relatively, a compiled batch that does not fit may be than one that does, for the search to end."""


class Capacity(NamedTuple):
    """What was compiled on both sides of a limit.

    Attributes:
        fits: The largest batch that was compiled and fits; None: none.
        bytes: What it needs on each device.
        fails: The smallest compiled one that does not fit, or that the compiler refused; None: none was tried.
        settled: Whether the search came to its end: `fits` is where the line says, or `fails` is close to it.
    """

    fits: int | None
    bytes: int | None
    fails: int | None
    settled: bool


def step_of(job: Job) -> int:
    """Batches are multiples of this number: eight, or the number of devices if there are more."""
    return max(8, targets.TARGETS[job.device].chips)


def next_batch(sizes: Mapping[int, int | None], budget: int, step: int) -> int | None:
    """The batch to compile next, to learn which is the largest that fits.

    Through the two sizes nearest to the budget goes a line, and where it meets the budget is the answer, if that was
    compiled and fits. Where the compiler refused a size, or the line says what is known to be wrong, the search halves.

    Args:
        sizes: bytes that each compiled batch needs, None where the compiler refused; at least one.
        budget: bytes there are.
        step: the answer is a multiple of it.

    Returns:
        The size, or None where the search is at its end.
    """
    fitting = sorted(batch for batch, size in sizes.items() if size is not None and size <= budget)
    failing = sorted(batch for batch, size in sizes.items() if size is None or size > budget)
    low, high = (fitting[-1] if fitting else 0), (failing[0] if failing else None)
    if high is not None and (high - low <= step or (low and high <= low * CLOSE)):
        return None
    measured = {batch: size for batch, size in sizes.items() if size is not None}
    if len(measured) < 2:
        only = next(iter(sizes))
        return only // 2 // step * step or None if failing else 2 * only
    guess = _on_the_line(measured, budget, step)
    if guess in fitting:
        return None
    if low < guess and (high is None or guess < high):
        return guess
    if high is None:
        return 2 * low  # more memory for less: no line
    return (low + high) // 2 // step * step if high - low > step else None


def _on_the_line(measured: Mapping[int, int], budget: int, step: int) -> int:
    nearest = sorted(measured, key=lambda batch: abs(measured[batch] - budget))[:2]
    (first, second) = sorted(nearest)
    each = (measured[second] - measured[first]) / (second - first)
    if each <= 0:
        return first
    return max(int(first + (budget - measured[first]) / each) // step * step, 0)


def find(records: Records, job: Job, gigabytes: int, *, until: float = math.inf) -> Capacity:
    """Compiles a job with other batches until the largest one is known that fits into so many GB (10⁹ bytes).

    Args:
        records: what is known, and where it is kept.
        job: of any batch, which is where the search begins.
        gigabytes: of each device.
        until: nothing is begun after this time of `time.monotonic`.
    """
    records.make(job)
    for _ in range(TRIES):
        following = next_batch(_sizes(records, job), gigabytes * 10**9, step_of(job))
        if following is None or time.monotonic() > until:
            break
        records.make(job._replace(batch=following))
    return known(records, job, gigabytes)


def known(records: Records, job: Job, gigabytes: int) -> Capacity:
    """What the records say of it; nothing is compiled.

    Raises:
        ValueError: the job was compiled with no batch at all.
    """
    sizes, budget = _sizes(records, job), gigabytes * 10**9
    if not sizes:
        raise ValueError(f"nothing was compiled of {job}")
    fitting = [batch for batch, size in sizes.items() if size is not None and size <= budget]
    failing = [batch for batch, size in sizes.items() if size is None or size > budget]
    fits = max(fitting, default=None)
    settled = next_batch(sizes, budget, step_of(job)) is None
    return Capacity(fits, None if fits is None else sizes[fits], min(failing, default=None), settled)


def _sizes(records: Records, job: Job) -> dict[int, int | None]:
    """Bytes of each batch of the same job that was compiled."""
    found = {record["batch"]: needed(record) for record in records.all() if _same(record, job)}
    return dict(sorted(found.items()))


def _same(record: dict, job: Job) -> bool:
    return all(record[field] == value for field, value in job._asdict().items() if field != "batch")

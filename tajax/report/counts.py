"""Of how many examples accuracies are, and how far they can be off for that alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tajax.records import Accuracy, SingleTask, ZeroShot
from tajax.report.charts import Interval
from tajax.report.runs import Run
from tajax.results import Record, find

FEW = 100
"""Test examples below which a task's accuracy is too rough to compare: 5 points are one standard error."""
NORMAL = 1.959964  # of a standard normal variable 95 % lie between this and its negative


WHISKERS = "Whiskers: the 95 % interval that so many examples leave open (binomial, Wilson's)."


def notes(records: Sequence[Record]) -> Iterator[str]:
    """What stands below a table of accuracies; nothing where the records hold no counts."""
    counts = {
        r["task"]: r["count"]
        for kind in (ZeroShot, SingleTask)
        for r in find(records, kind, split="test")
        if "count" in r
    }
    if not counts:
        return
    few, many = min(counts.values()), max(counts.values())
    of = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    error = 50 / math.sqrt(few)  # √(p(1 − p)/n) in points, at p = 1/2
    yield f"Test accuracies are of {of} examples a task: each has a standard error of up to {error:.1f} points."
    small = [task for task, count in counts.items() if count < FEW]
    if small:
        more = "a normalised accuracy above 100 says nothing there."
        yield f"Fewer than {FEW} test examples of {', '.join(small)}: differences of some points, or {more}"


def intervals(runs: Iterable[Run], kinds: Mapping[str, type[Accuracy]]) -> dict[str, dict[str, Interval]]:
    """Of each kind of accuracy, for each task, the 95 % interval of its test accuracy in % and the count of examples.

    Args:
        runs: of one seed.
        kinds: stages that record accuracies, by name.
    """
    records = [record for run in runs for record in run.records]
    return {
        name: {
            str(r["task"]): (*interval(float(r["top1"]), int(r["count"])), int(r["count"]))
            for r in find(records, kind, split="test")
            if r.get("count")
        }
        for name, kind in kinds.items()
    }


def interval(top1: float, count: int) -> tuple[float, float]:
    """The 95 % interval in % of an accuracy measured on so many examples, by Wilson's score.

    It stays within 0 and 100, and is no point where all or none are right.

    Args:
        top1: the share that is right.
        count: n, of examples.

    Example:
        >>> [f"{end:.1f}" for end in interval(0.5, 100)], [f"{end:.1f}" for end in interval(1.0, 20)]
        (['40.4', '59.6'], ['83.9', '100.0'])
    """
    square = NORMAL**2 / count
    middle = (top1 + square / 2) / (1 + square)
    half = NORMAL / (1 + square) * math.sqrt(top1 * (1 - top1) / count + square / (4 * count))
    return 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)  # rounding may lead beyond

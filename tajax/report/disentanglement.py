"""Disentanglement errors of all pairs of tasks, one table for each distance."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tajax.report.tables import Table
from tajax.results import Record, find

# Distance of the records, title of its table, and how its numbers are written.
DISTANCES = (
    ("prediction", "Disentanglement error through the heads: predictions that change, in %", "{:.1%}"),
    ("symmetric_kl", "Disentanglement error of the features: symmetric KL, in nats", "{:.3f}"),
)


def tables(records: Sequence[Record]) -> list[Table]:
    """For each distance the matrix of pairs, the mean of ξ / 2 over [−1, 1]², and the means over a task's pairs.

    The last row is the mean of `relative`: what the other vector does by what the task's own vector does.
    """
    made = []
    for distance, title, form in DISTANCES:
        if measured := find(records, stage="disentanglement", distance=distance):
            made.append(_matrix(measured, title, form))
    return made


def _matrix(measured: Sequence[Record], title: str, form: str) -> Table:
    names = list(dict.fromkeys(name for r in measured for name in r["tasks"]))
    summaries = {frozenset(r["tasks"]): r["summary"] for r in measured}
    rows = [(a, *(_number(summaries.get(frozenset((a, b))), form) for b in names)) for a in names]
    of_task = [[r for r in measured if name in r["tasks"]] for name in names]
    rows.append(("mean", *(_number(_mean(pairs, "summary"), form) for pairs in of_task)))
    rows.append(("relative", *(_number(_mean(pairs, "relative"), "{:.2f}") for pairs in of_task)))
    first, counts = measured[0], sorted(count for r in measured for count in r["images"])
    images = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    notes = (
        f"{first.get('regime')} on {first.get('model')}, seed {first.get('seed')}. Mean over {len(measured)} pairs: "
        f"{_number(_mean(measured, 'summary'), form)}, relative {_number(_mean(measured, 'relative'), '{:.2f}')}.",
        f"ξ/2, mean over |α| ≤ 1 of a {len(first['coefs'])}×{len(first['coefs'])} grid, {images} {first['split']} "
        "images a task.",
        "relative: how far the other vector moves a task's outputs, by how far its own vector at α = 1 does"
        + (" (roots of the divergences)." if first["distance"] == "symmetric_kl" else "."),
    )
    return Table(title, ("task", *names), tuple(rows), notes, means=2)


def _mean(records: Sequence[Record], key: str) -> float | None:
    values = [r[key] for r in records]
    return None if None in values else statistics.fmean(values)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value).removesuffix("%")

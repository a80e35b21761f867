"""Disentanglement errors of all pairs of tasks, one table for each distance."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import numpy as np

from tajax.disentanglement import relative_terms
from tajax.report import charts
from tajax.report.charts import Axis
from tajax.report.runs import Series, several_seeds
from tajax.report.style import Figure
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


def figures(series: Series) -> list[Figure]:
    """The maps ξ(α₁, α₂) / 2 of all pairs, and the matrix of their means where there are many pairs."""
    made = []
    for distance in MAPS:
        matrices = list(_matrices(series, distance))
        made += [*matrices, *_maps(series, distance, points=FINE if matrices else 3)]
    return made


def _maps(series: Series, distance: str, *, points: int) -> Iterator[Figure]:
    title, caption, value = MAPS[distance]
    drawn = [
        (label, run, record, _map(record))
        for label, runs in series.items()
        for run in runs
        for record in find(run.records, stage="disentanglement", distance=distance)
        if len(record["coefs"]) >= points and (distance == "prediction" or min(record["own"]) > 0)
    ]
    if not drawn:
        return
    # One scale for all; the last percents of the far corners would take the contrast from all the rest.
    largest = 1.0 if distance == "prediction" else float(max(np.quantile(map_, 0.95) for *_, map_ in drawn)) or 1.0
    several, seeds = len(series) > 1, any(map(several_seeds, series.values()))
    panels = []
    for label, run, record, map_ in drawn[:MOST]:
        a, b = map(str, record["tasks"])
        parts = f"{a} – {b}", *((label,) if several else ()), *((f"seed {run.field('seed')}",) if seeds else ())
        heading, axes = " · ".join(parts), (f"α of {a}", f"α of {b}")
        panels.append(charts.heat_map(record["coefs"], map_.tolist(), value, title=heading, largest=largest, axes=axes))
    left = f" The first {MOST} of {len(drawn)} maps." if len(drawn) > MOST else ""
    yield Figure(f"disentanglement_{distance}", title, caption + left, tuple(panels), wide=False)


def _matrices(series: Series, distance: str) -> Iterator[Figure]:
    """Of each regime the mean ξ/2 of every pair, over seeds; where there are so many pairs that a table is tiring."""
    panels = []
    for label, runs in series.items():
        found = [r for run in runs for r in find(run.records, stage="disentanglement", distance=distance)]
        names = list(dict.fromkeys(str(name) for r in found for name in r["tasks"]))
        pairs: dict[frozenset[int], list[float]] = {}
        for record in found:
            pair = frozenset(names.index(str(name)) for name in record["tasks"])
            pairs.setdefault(pair, []).append(record["summary"])
        if len(pairs) > 3:
            cells = [(i, j, statistics.fmean(v)) for pair, v in pairs.items() for i in pair for j in pair if i != j]
            heading = label if len(series) > 1 else ""
            shown = Axis("ξ/2", ".0%" if distance == "prediction" else ".2f")
            panels.append(
                charts.matrix(
                    (names, names), cells, shown, titles=("task", "task"), title=heading, step=34, numbers=True
                )
            )
    if panels:
        title = f"Disentanglement error of every pair, {'heads' if distance == 'prediction' else 'features'}"
        caption = "Mean of ξ/2 over |α| ≤ 1; " + (
            "predictions that change." if distance == "prediction" else "in nats."
        )
        yield Figure(f"disentanglement_{distance}_pairs", title, caption, tuple(panels), wide=False)


MOST = 24  # maps on a page
FINE = 9  # points a side, of maps that are shown beside the matrix of their means
MAPS = {
    "prediction": (
        "Disentanglement maps through the heads",
        "ξ/2: the share of predictions on a task's images that change when the other task's vector is added, mean over "
        "both tasks. Darker is better; the white square is [−1, 1]².",
        Axis("ξ/2", ".1%"),
    ),
    "symmetric_kl": (
        "Disentanglement maps of the features",
        "How far the other vector moves a task's features, by how far its own vector at α = 1 does (roots of the "
        "symmetric KL), mean over both tasks. Darker is better; the scale ends at the 95th percentile.",
        Axis("relative ξ/2", ".2f"),
    ),
}


def _map(record: Record) -> np.ndarray:
    """[A, A]: of predictions as it is, of features relative to what the tasks' own vectors do."""
    terms = np.array(record["terms"])
    return (terms if record["distance"] == "prediction" else relative_terms(terms, record["own"], degree=2)).mean(
        axis=0
    )


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

"""Disentanglement errors of all pairs of tasks, one table for each distance."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import numpy as np

from tajax.disentanglement import relative_terms
from tajax.records import Disentanglement
from tajax.report import charts
from tajax.report.charts import Axis
from tajax.report.runs import Series, deviations, origin
from tajax.report.style import Figure
from tajax.report.tables import MISSING, Table, mean_of_all, number, spread, with_best
from tajax.results import Record, find

# Distance of the records, title of its table, and how its numbers are written: times what, digits.
DISTANCES = (
    ("prediction", "Disentanglement error through the heads: predictions that change, %", 100, 1),
    ("symmetric_kl", "Disentanglement error of the features: symmetric KL, nats", 1, 3),
)


def tables(records: Sequence[Record]) -> list[Table]:
    """For each distance the matrix of pairs, the mean of ξ / 2 over [−1, 1]², and the means over a task's pairs.

    The last row is the mean of `relative`: what the other vector does by what the task's own vector does.
    """
    made = []
    for distance, title, times, digits in DISTANCES:
        if measured := find(records, Disentanglement, distance=distance):
            made.append(_matrix(measured, title, times, digits))
    return made


def compared(series: Series) -> list[Table]:
    """Regimes side by side: means over all pairs, over seeds ± sample standard deviation."""
    body = []
    for label, runs in series.items():
        cells, most = [], 0
        for distance, _, times, digits in DISTANCES:
            groups = [g for run in runs if (g := find(run.records, Disentanglement, distance=distance))]
            most = max(most, len(groups))
            for means, factor, written in (
                ([mean_of_all(r["summary"] for r in group) for group in groups], times, digits),
                ([mean_of_all(r["relative"] for r in group) for group in groups], 1, 2),
            ):
                there = [factor * mean for mean in means if mean is not None]
                cells.append(spread(there, written) if there and len(there) == len(means) else MISSING)
        if most:
            body.append((label, str(most), *cells))
    if not body:
        return []
    titles = ("regime", "seeds", "heads ξ/2, %", "heads relative", "features ξ/2, nats", "features relative")
    notes = (
        "Heads: test predictions that another task's vector changes; features: symmetric KL. Relative: by what the "
        "task's own vector does at α = 1. Smaller is better." + deviations("±", series),
    )
    table = Table("Disentanglement error, mean over |α| ≤ 1 and all pairs of tasks", titles, tuple(body), notes)
    return [with_best(table, "heads ξ/2, %", lowest=True)]


def figures(series: Series) -> list[Figure]:
    """The maps ξ(α₁, α₂) / 2 of all pairs, and the matrix of their means where there are many pairs."""
    made = []
    for distance in MAPS:
        matrices = list(_matrices(series, distance))
        made += [*matrices, *_maps(series, distance, points=FINE if matrices else 3)]
    return made


def _maps(series: Series, distance: str, *, points: int) -> Iterator[Figure]:
    title, caption, value = MAPS[distance]
    maps: dict[tuple[tuple[str, str], str, tuple[float, ...]], list[np.ndarray]] = {}
    for label, runs in series.items():
        for record in (r for run in runs for r in find(run.records, Disentanglement, distance=distance)):
            if len(record["coefs"]) >= points and (distance == "prediction" or min(record["own"]) > 0):
                a, b = map(str, record["tasks"])
                maps.setdefault(((a, b), label, tuple(record["coefs"])), []).append(_map(record))
    if not maps:
        return
    pairs, labels = (list(dict.fromkeys(key[part] for key in maps)) for part in (0, 1))
    drawn = {key: np.mean(maps[key], axis=0) for key in sorted(maps, key=lambda key: pairs.index(key[0]))}
    # One scale for all; the last percents of the far corners would take the contrast from all the rest.
    largest = 1.0 if distance == "prediction" else float(max(np.quantile(m, 0.95) for m in drawn.values())) or 1.0
    most = max(MOST - MOST % len(labels), len(labels))
    panels = []
    for ((a, b), label, coefs), map_ in list(drawn.items())[:most]:
        heading, axes = " · ".join((f"{a} – {b}", *((label,) if len(series) > 1 else ()))), (f"α of {a}", f"α of {b}")
        panels.append(charts.heat_map(coefs, map_.tolist(), value, title=heading, largest=largest, axes=axes))
    caption += " Means over seeds." if any(len(found) > 1 for found in maps.values()) else ""
    caption += f" The first {most} of {len(drawn)} maps." if len(drawn) > most else ""
    columns = len(labels) if len(labels) > 1 else 0
    yield Figure(f"disentanglement_{distance}", title, caption, tuple(panels), wide=False, columns=columns)


def _matrices(series: Series, distance: str) -> Iterator[Figure]:
    """Of each regime the mean ξ/2 of every pair, over seeds; where there are so many pairs that a table is tiring."""
    matrices = {}
    for label, runs in series.items():
        found = [r for run in runs for r in find(run.records, Disentanglement, distance=distance)]
        names = list(dict.fromkeys(str(name) for r in found for name in r["tasks"]))
        pairs: dict[frozenset[int], list[float]] = {}
        for record in found:
            pair = frozenset(names.index(str(name)) for name in record["tasks"])
            pairs.setdefault(pair, []).append(record["summary"])
        if len(pairs) > 3:
            cells = [(i, j, statistics.fmean(v)) for pair, v in pairs.items() for i in pair for j in pair if i != j]
            matrices[label] = names, cells
    if matrices:
        panels = (
            charts.matrix(
                (names, names),
                cells,
                Axis("ξ/2", ".0%" if distance == "prediction" else ".2f"),
                titles=("task", "task"),
                title=label if len(series) > 1 else "",
                step=34,
                numbers=True,
                largest=max(v for _, cells in matrices.values() for _, _, v in cells),
            )
            for label, (names, cells) in matrices.items()
        )
        title = f"Disentanglement error of every pair, {'heads' if distance == 'prediction' else 'features'}"
        caption = "Mean of ξ/2 over |α| ≤ 1 for each pair of tasks; " + (
            "the share of test predictions that change." if distance == "prediction" else "symmetric KL in nats."
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


def _map(record: Disentanglement) -> np.ndarray:
    """[A, A]: of predictions as it is, of features relative to what the tasks' own vectors do."""
    terms, own = np.array(record["terms"]), np.array(record["own"])
    return (terms if record["distance"] == "prediction" else relative_terms(terms, own, degree=2)).mean(axis=0)


def _matrix(measured: Sequence[Disentanglement], title: str, times: int, digits: int) -> Table:
    names = list(dict.fromkeys(name for r in measured for name in r["tasks"]))
    summaries = {frozenset(r["tasks"]): r["summary"] for r in measured}
    rows = [(a, *(_times(summaries.get(frozenset((a, b))), times, digits) for b in names)) for a in names]
    of_task = [[r for r in measured if name in r["tasks"]] for name in names]
    rows.append(("mean", *(_times(mean_of_all(r["summary"] for r in pairs), times, digits) for pairs in of_task)))
    rows.append(("relative", *(number(mean_of_all(r["relative"] for r in pairs), 2) for pairs in of_task)))
    first, counts = measured[0], sorted(count for r in measured for count in r["images"])
    images = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    notes = (
        f"Mean over {len(measured)} pairs: {_times(mean_of_all(r['summary'] for r in measured), times, digits)}, "
        f"relative {number(mean_of_all(r['relative'] for r in measured), 2)}.",
        f"ξ/2, mean over |α| ≤ 1 of a {len(first['coefs'])}×{len(first['coefs'])} grid, {images} {first['split']} "
        "images a task; 0: the other task's vector changes nothing.",
        "relative: how far the other vector moves a task's outputs, by how far its own vector at α = 1 does"
        + (" (roots of the divergences)." if first["distance"] == "symmetric_kl" else "."),
    )
    return Table(title, ("task", *names), tuple(rows), notes, 2, origin(measured))


def _times(value: float | None, times: int, digits: int) -> str:
    return number(None if value is None else times * value, digits)

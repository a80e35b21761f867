"""Tables of kernel behaviour: models and their linearisations along their task vectors."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tajax.records import KernelBehaviour
from tajax.report import charts
from tajax.report.charts import PERCENT, Axis
from tajax.report.runs import Series, deviations, origin
from tajax.report.style import Figure
from tajax.report.tables import Table, number, percent
from tajax.results import Record, find


def tables(records: Sequence[Record]) -> list[Table]:
    """Each task where its model was fine-tuned to, α = 1, or at the end of the grid; from the records of one config."""
    found = find(records, KernelBehaviour)
    if not found:
        return []
    coefs = sorted({float(r["scaling_coef"]) for r in found})
    coef = 1.0 if 1.0 in coefs else coefs[-1]
    chosen = find(found, scaling_coef=coef)
    rows = [(str(r["task"]), number(r["norm"], 2), *_cells([r])) for r in chosen]
    mean = ("mean", number(statistics.fmean(float(r["norm"]) for r in chosen), 2), *_cells(chosen))
    title = f"Kernel behaviour on {chosen[0]['split']} at θ₀ + {coef:g} τ: the model and its linearisation"
    notes = (
        "gap: ‖f − f_lin‖ / ‖f − f(θ₀)‖ over all images; movement: ‖f − f(θ₀)‖ / ‖f(θ₀)‖.",
        "Accuracy in %, of the encoder itself (model) and of its first-order expansion (linearised); agreement "
        "of their predictions in %.",
    )
    return [Table(title, ("task", "‖ατ‖", *COLUMNS), (*rows, mean), notes, 1, origin(chosen))]


def curves(records: Sequence[Record]) -> list[Table]:
    """The means over tasks at each coefficient of the grid."""
    found = find(records, KernelBehaviour)
    if not found:
        return []
    grid = sorted({float(r["scaling_coef"]) for r in found})
    rows = tuple((f"{coef:g}", *_cells(find(found, scaling_coef=coef))) for coef in grid)
    title = "Kernel behaviour at each coefficient α, mean over tasks"
    return [Table(title, ("α", *COLUMNS), rows, of=origin(found))]


def figures(series: Series) -> list[Figure]:
    """The gap between model and linearisation, and the accuracy of both, along the task vectors."""
    gap: dict[str, dict[float, list[float]]] = {}
    both: dict[str, dict[str, dict[float, list[float]]]] = {"model": {}, "linearised": {}}
    for label, runs in series.items():
        for run in runs:
            records = find(run.records, KernelBehaviour)
            for coef in sorted({float(r["scaling_coef"]) for r in records}):
                chosen = find(records, scaling_coef=coef)
                mean, _, *accuracies, _ = _means(chosen)
                gap.setdefault(label, {}).setdefault(coef, []).append(mean)
                for points, top1 in zip(both.values(), accuracies, strict=True):
                    points.setdefault(label, {}).setdefault(coef, []).append(100 * top1)
    if not gap:
        return []
    alpha, accuracy = Axis("coefficient α", zero=True), Axis("test accuracy, %", PERCENT)
    drawn = [charts.curves(gap, alpha, Axis("relative gap", ".3f", zero=True))]
    if len(gap) == 1:
        lines = {name: next(iter(points.values())) for name, points in both.items()}
        drawn.append(charts.curves(lines, alpha, accuracy))
    else:
        ends = charts.ends_of_curves(both.values())
        drawn += [charts.curves(points, alpha, accuracy, ends=ends, title=name) for name, points in both.items()]
    caption = (
        "First: distance of the encoder from its first-order expansion along θ₀ + ατ, by how far it moves. Then: "
        "accuracy in % of the encoder and of its expansion. Means over tasks." + deviations("Bands", series)
    )
    return [Figure("kernel_gap", "How linear the model is along its task vectors", caption, tuple(drawn))]


COLUMNS = ("gap", "movement", "model", "linearised", "agreement")


def _means(records: Sequence[KernelBehaviour]) -> list[float]:
    """Of each of `COLUMNS`."""
    rows = [
        (r["relative_gap"], r["relative_movement"], r["top1"], r["linearized_top1"], r["agreement"]) for r in records
    ]
    return [statistics.fmean(map(float, column)) for column in zip(*rows, strict=True)]


def _cells(records: Sequence[KernelBehaviour]) -> tuple[str, ...]:
    gap, movement, *accuracies = _means(records)
    return number(gap, 3), number(movement, 3), *map(percent, accuracies)

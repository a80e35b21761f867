"""Tables of kernel behaviour: models and their linearisations along their task vectors."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tajax.report import charts
from tajax.report.charts import PERCENT, Axis
from tajax.report.runs import Series, deviations, origin
from tajax.report.style import Figure
from tajax.report.tables import Table, number, percent
from tajax.results import Record, find

STAGE = "kernel_behaviour"


def tables(records: Sequence[Record]) -> list[Table]:
    """Each task where its model was fine-tuned to, α = 1, or at the end of the grid; from the records of one config."""
    found = find(records, stage=STAGE)
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
    found = find(records, stage=STAGE)
    if not found:
        return []
    grid = sorted({float(r["scaling_coef"]) for r in found})
    rows = tuple((f"{coef:g}", *_cells(find(found, scaling_coef=coef))) for coef in grid)
    title = "Kernel behaviour at each coefficient α, mean over tasks"
    return [Table(title, ("α", *COLUMNS), rows, of=origin(found))]


def figures(series: Series) -> list[Figure]:
    """The gap between model and linearisation, and the accuracy of both, along the task vectors."""
    kinds = {"relative_gap": ("", 1), "top1": ("model", 100), "linearized_top1": ("linearised", 100)}
    found: dict[str, dict[str, dict[float, list[float]]]] = {key: {} for key in kinds}
    for label, runs in series.items():
        for run in runs:
            records = find(run.records, stage=STAGE)
            for coef in sorted({float(r["scaling_coef"]) for r in records}):
                chosen = find(records, scaling_coef=coef)
                for key, (_, times) in kinds.items():
                    mean = times * statistics.fmean(float(r[key]) for r in chosen)
                    found[key].setdefault(label, {}).setdefault(coef, []).append(mean)
    gap, *both = found.values()
    if not gap:
        return []
    alpha, accuracy = Axis("coefficient α", zero=True), Axis("test accuracy, %", PERCENT)
    drawn = [charts.curves(gap, alpha, Axis("relative gap", ".3f", zero=True))]
    names = [name for name, _ in kinds.values() if name]
    if len(gap) == 1:
        lines = {name: next(iter(points.values())) for name, points in zip(names, both, strict=True)}
        drawn.append(charts.curves(lines, alpha, accuracy))
    else:
        drawn += [charts.curves(p, alpha, accuracy, title=n) for n, p in zip(names, both, strict=True)]
    caption = (
        "First: distance of the encoder from its first-order expansion along θ₀ + ατ, by how far it moves. Then: "
        "accuracy in % of the encoder and of its expansion. Means over tasks." + deviations("Bands", series)
    )
    return [Figure("kernel_gap", "How linear the model is along its task vectors", caption, tuple(drawn))]


COLUMNS = ("gap", "movement", "model", "linearised", "agreement")


def _cells(records: Sequence[Record]) -> tuple[str, ...]:
    means = {
        name: statistics.fmean(float(r[name]) for r in records)
        for name in ("relative_gap", "relative_movement", "top1", "linearized_top1", "agreement")
    }
    ratios = (number(means[name], 3) for name in ("relative_gap", "relative_movement"))
    return *ratios, *(percent(means[name]) for name in ("top1", "linearized_top1", "agreement"))

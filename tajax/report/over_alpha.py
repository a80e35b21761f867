"""Curves of the accuracy over the grid of scaling coefficients, between the levels of what is and is not merged."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable

from tajax.records import Accuracy, SingleTask, Sweep, TaskAddition, ZeroShot
from tajax.report import charts
from tajax.report.charts import PERCENT, Axis
from tajax.report.runs import Run, Series, deviations
from tajax.report.style import Figure
from tajax.results import find

PRETRAINED, SINGLE = "the pre-trained model", "each fine-tuned model on its own task"


def figures(series: Series) -> Iterable[Figure]:
    """The mean over tasks by α, and of a single regime the accuracy on each of its tasks."""
    means: dict[str, dict[float, list[float]]] = {}
    tasks: dict[str, dict[float, list[float]]] = {}
    for label, runs in series.items():
        swept = [curves for run in runs if (curves := _curves(run))]
        common = set.intersection(*(set(points) for curves in swept for points in curves.values())) if swept else set()
        for coef, curves in itertools.product(sorted(common), swept):
            means.setdefault(label, {}).setdefault(coef, []).append(statistics.fmean(p[coef] for p in curves.values()))
            for task, points in curves.items():
                tasks.setdefault(task, {}).setdefault(coef, []).append(points[coef])
    alpha, top1 = Axis("scaling coefficient α", zero=True), Axis("validation accuracy, %", PERCENT)
    if means:
        chosen = {
            label: sorted({float(r["scaling_coef"]) for run in series[label] for r in find(run.records, TaskAddition)})
            for label in means
        }
        rings = " Rings: the tuned coefficient." if any(chosen.values()) else ""
        model = _model_in_words(series)
        rules, own, dashed = _levels({label: series[label] for label in means})
        yield Figure(
            "accuracy_over_alpha",
            "Accuracy against the scaling coefficient",
            f"Validation accuracy in % of {model}, mean over tasks, by α.{rings}{dashed}" + deviations("Bands", series),
            (charts.curves(means, alpha, top1, marks=chosen, rules=rules, levels=own),),
        )
    if len(means) == 1 and 1 < len(tasks) <= 20:
        (coefs,) = chosen.values()
        yield Figure(
            "accuracy_over_alpha_by_task",
            "Accuracy against the scaling coefficient, each task",
            f"Validation accuracy in % of {model} on each task, by α.{rings}" + deviations("Bands", series),
            (charts.curves(tasks, alpha, top1, marks=dict.fromkeys(tasks, coefs)),),
        )


def _model_in_words(series: Series) -> str:
    """The models of a sweep: of the sum of the vectors, or of what another method makes of them."""
    methods = {run.method for runs in series.values() for run in runs if find(run.records, TaskAddition)}
    return (
        "θ₀ + α Σ τ, of the vectors of all tasks"
        if methods == {"task_arithmetic"}
        else ("θ₀ + ατ, of the merged vector τ")
    )


def _levels(series: Series) -> tuple[list[tuple[float, str]], dict[str, float], str]:
    """Between what a merged model lies: heights with their words, those of single series, and what a caption says.

    The pre-trained model has one level where it is the same of all regimes, and is left out where it is not.
    """
    pretrained, single = (_level(series, kind) for kind in (ZeroShot, SingleTask))
    rules = []
    if len(pretrained) == len(series) and max(pretrained.values()) - min(pretrained.values()) < 1e-6:
        rules.append((next(iter(pretrained.values())), PRETRAINED))
    if len(series) == 1:
        rules += [(level, SINGLE) for level in single.values()]
        own, coloured = {}, ""
    else:
        own, coloured = single, f" Dashed in a colour: {SINGLE}, of that regime." if single else ""
    said = f" Dashed: {' and '.join(text for _, text in rules)}." if rules else ""
    return rules, own, said + coloured


def _level(series: Series, kind: type[Accuracy]) -> dict[str, float]:
    """The mean validation accuracy in % over tasks and runs of each label that has any."""
    found = {
        label: [float(r["top1"]) for run in runs for r in find(run.records, kind, split="val")]
        for label, runs in series.items()
    }
    return {label: 100 * statistics.fmean(values) for label, values in found.items() if values}


def _curves(run: Run) -> dict[str, dict[float, float]]:
    """Validation accuracy in % of each task at each α that was measured; seeds may have measured others."""
    curves: dict[str, dict[float, float]] = {}
    for record in find(run.records, Sweep, split="val"):
        curves.setdefault(str(record["task"]), {})[float(record["scaling_coef"])] = 100 * float(record["top1"])
    return curves

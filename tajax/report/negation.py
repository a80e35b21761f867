"""Tables of task negation and of task analogies. Accuracies are in percent."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias, TypeVar

from tajax.records import (
    Accuracy,
    AnalogySweep,
    Control,
    NegationSweep,
    SingleTask,
    TaskAnalogy,
    TaskNegation,
    ZeroShot,
)
from tajax.report import charts
from tajax.report.charts import PERCENT, Axis
from tajax.report.runs import Series, deviations, origin
from tajax.report.style import Figure
from tajax.report.tables import MISSING, Table, coefficient, mean_of_all, number, percent, spread, with_best
from tajax.results import Record, find

SPLITS = ("test", "val")
BEFORE = (
    "Before: the pre-trained model on the task; after: the negated one on it; control: the negated one on the control."
)
Swept = TypeVar("Swept", NegationSweep, AnalogySweep)
Curves: TypeAlias = dict[str, dict[float, list[float]]]  # of each regime at each coefficient the values of its runs


def tables(records: Sequence[Record]) -> list[Table]:
    """What negation and analogies came to, from the records of one config."""
    return [*_negation(records), *_analogy(records)]


def curves(records: Sequence[Record]) -> list[Table]:
    """Accuracy over the grid of coefficients of negation and analogies, where recorded."""
    made = []
    if sweep := find(records, NegationSweep):
        on_control = [r for r in sweep if r["measured_on"] != r["task"]]
        on_task = [r for r in sweep if r["measured_on"] == r["task"]]
        rows = _over_grid((on_task, on_control))
        made.append(
            Table(
                "Accuracy of θ₀ − ατ at each coefficient α, mean over tasks, %",
                ("α", "val task", "val control"),
                rows,
                of=origin(records),
            )
        )
    if analogies := find(records, AnalogySweep):
        rows = _over_grid([find(analogies, vector=vector) for vector in ("analogy", "c_alone")])
        columns = ("α", "val c + (b − a)", "val c alone")
        made.append(
            Table("Accuracy of θ₀ + ατ on the fourth task at each coefficient α, %", columns, rows, of=origin(records))
        )
    return made


def figures(series: Series) -> list[Figure]:
    """What negation forgets against what it keeps, and the curves of analogies."""
    task, control = "task, mean", "control, mean"
    forgetting: dict[str, Curves] = {task: {}, control: {}}
    analogies: dict[str, Curves] = {"c + (b − a)": {}, "c alone": {}}
    for label, runs in series.items():
        for run in runs:
            sweep = find(run.records, NegationSweep)
            _add_means(forgetting[task], label, [r for r in sweep if r["measured_on"] == r["task"]])
            _add_means(forgetting[control], label, [r for r in sweep if r["measured_on"] != r["task"]])
            for name, vector in zip(analogies, ("analogy", "c_alone"), strict=True):
                _add_means(analogies[name], label, find(run.records, AnalogySweep, vector=vector))
    made = []
    if forgetting[task]:
        caption = (
            "Validation accuracy in % of θ₀ − ατ on the task that is to be forgotten and on the control that is to be "
            "kept, means over tasks." + deviations("Bands", series)
        )
        drawn = _panels(forgetting)
        made.append(Figure("negation_over_alpha", "Forgetting against the coefficient", caption, drawn))
    if analogies["c alone"]:
        caption = "Validation accuracy in % on the fourth task, which nothing was trained on, of θ₀ + ατ." + deviations(
            "Bands", series
        )
        drawn = _panels(analogies)
        made.append(Figure("analogy_over_alpha", "Analogies against the coefficient", caption, drawn))
    return made


def _panels(kinds: dict[str, Curves]) -> tuple:
    """One panel with a line of each kind for one regime; for several a panel of each kind with a line for each.

    These have one scale from 0 on.
    """
    alpha, top1 = Axis("coefficient α", zero=True), Axis("validation accuracy, %", PERCENT, zero=True)
    if all(len(lines) == 1 for lines in kinds.values()):
        return (charts.curves({kind: next(iter(lines.values())) for kind, lines in kinds.items()}, alpha, top1),)
    ends = (0, charts.ends_of_curves(kinds.values())[1])
    return tuple(charts.curves(lines, alpha, top1, ends=ends, title=kind) for kind, lines in kinds.items())


def _add_means(points: Curves, name: str, group: Sequence[Swept]) -> None:
    """Adds a run's mean accuracy in % at each coefficient."""
    for coef in sorted({float(r["scaling_coef"]) for r in group}):
        mean = statistics.fmean(100 * float(r["top1"]) for r in find(group, scaling_coef=coef))
        points.setdefault(name, {}).setdefault(coef, []).append(mean)


def _over_grid(groups: Sequence[Sequence[Swept]]) -> tuple[tuple[str, ...], ...]:
    grid = sorted({record["scaling_coef"] for record in groups[0]})
    columns = [[_mean(r["top1"] for r in find(group, scaling_coef=coef)) for coef in grid] for group in groups]
    return tuple((f"{coef:g}", *values) for coef, *values in zip(grid, *columns, strict=True))


def _negation(records: Sequence[Record]) -> Iterator[Table]:
    negated = find(records, TaskNegation)
    if not negated:
        return
    tasks = list(dict.fromkeys(str(r["task"]) for r in negated))
    chosen = {str(r["task"]): r for r in negated}
    coefs = [chosen[task]["scaling_coef"] for task in tasks]
    columns: list[str] = ["α"]
    values: list[list[float | None]] = []
    for split in SPLITS:
        after = find(negated, split=split)
        for title, by_task in (
            ("before", {r["task"]: r["top1"] for r in find(records, ZeroShot, split=split)}),
            ("after", {r["task"]: r["top1"] for r in after}),
            ("control", {r["task"]: r["control_top1"] for r in after}),
        ):
            columns.append(f"{split} {title}")
            values.append([by_task.get(task) for task in tasks])
    rows = [
        (task, coefficient(coef, "" if chosen[task]["satisfied"] else " !"), *map(percent, accuracies))
        for task, coef, *accuracies in zip(tasks, coefs, *values, strict=True)
    ]
    means = ("mean", number(statistics.fmean(coefs), 2), *map(_mean, values))
    title = "Negation θ₀ − ατ: accuracy on the task to forget and on the control, %"
    notes = (BEFORE, *_notes(records, chosen))
    yield Table(title, ("task", *columns), (*rows, means), notes, 1, origin(negated))


def _notes(records: Sequence[Record], chosen: dict[str, TaskNegation]) -> Iterator[str]:
    control = {r["split"]: r["top1"] for r in find(records, Control)}
    first = next(iter(chosen.values()))
    pretrained = ", ".join(f"{split} {percent(control[split])}" for split in SPLITS if split in control)
    yield (
        f"Control {first['control']}: {pretrained} before; α forgets most among those that keep "
        f"{percent(first['control_required'])} of it on val."
    )
    yield from unlimited(find(records, Control))
    lost = [task for task, r in chosen.items() if not r["satisfied"]]
    if lost:
        yield f"! no α of the grid keeps the control for {', '.join(lost)}: the nearest miss is shown."
    ends = [task for task, r in chosen.items() if r["satisfied"] and r["at_end"]]
    if ends:
        yield f"α is the end of the grid for {', '.join(ends)}: evaluate.scaling_coefs that go on may forget more."
    kept = [task for task, r in chosen.items() if r["satisfied"] and r["scaling_coef"] == 0]
    if kept:
        yield f"α is 0 for {', '.join(kept)}: no step of the grid forgets anything and keeps the control."


def unlimited(control: Sequence[Control]) -> Iterator[str]:
    """That nothing limits the forgetting, where the pre-trained model knows nothing of the control.

    Args:
        control: the records of the stage `control`.
    """
    for r in (r for r in control if r["split"] == "val" and r["top1"] == 0):
        of = f"{r['count']} val images" if "count" in r else "val images"
        yield f"{r['task']}: the pre-trained model is right on none of the {of} of this control, so every α keeps it."


def compared(series: Series) -> list[Table]:
    """Regimes side by side in each analogy, over seeds ± sample standard deviation."""
    analogies: dict[tuple[str, ...], dict[str, list[list[Sequence[Accuracy]]]]] = {}
    for label, runs in series.items():
        for run in runs:
            if find(run.records, TaskAnalogy):
                tasks, measured = _measured(run.records)
                analogies.setdefault(tasks, {}).setdefault(label, []).append([group for *_, group in measured])
    made = []
    for (a, b, c, d), regimes in analogies.items():
        rows = []
        for label, seeds in regimes.items():
            top1 = (
                [r["top1"] for group in groups for r in find(group, split="test")]
                for groups in zip(*seeds, strict=True)
            )
            cells = (spread([100 * v for v in values], 1) if len(values) == len(seeds) else MISSING for values in top1)
            rows.append((label, str(len(seeds)), *cells))
        columns = ("regime", "seeds", "zero-shot", f"{c} alone", f"{c} + ({b} − {a})", f"fine-tuned on {d}")
        table = Table(f"Test accuracy on {d} by analogy, %", columns, tuple(rows))
        made.append(with_best(table, columns[4]))
    return made


def _measured(
    records: Sequence[Record],
) -> tuple[tuple[str, ...], tuple[tuple[str, float | None, Sequence[Accuracy]], ...]]:
    """The four tasks, and what was measured on the fourth, with its name and α."""
    found = find(records, TaskAnalogy)
    coefs = {r["vector"]: r["scaling_coef"] for r in found}
    a, b, c, d = tasks = tuple(dict.fromkeys(str(r["task"]) for r in find(records, ZeroShot)))
    return tasks, (
        ("zero-shot", None, find(records, ZeroShot, task=d)),
        (f"{c} alone", coefs.get("c_alone"), find(found, vector="c_alone")),
        (f"{c} + ({b} − {a})", coefs.get("analogy"), find(found, vector="analogy")),
        (f"fine-tuned on {d}", None, find(records, SingleTask, task=d)),
    )


def _analogy(records: Sequence[Record]) -> Iterator[Table]:
    found = find(records, TaskAnalogy)
    if not found:
        return
    (*_, d), measured = _measured(records)
    rows = []
    for name, coef, group in measured:
        top1 = {r["split"]: r["top1"] for r in group}
        rows.append((name, coefficient(coef), *(percent(top1.get(split)) for split in SPLITS)))
    title = f"Accuracy on {d}, %"
    note = f"α is tuned on validation images of {d}; no image of it was trained on but in the last row."
    yield Table(title, ("θ₀ + ατ, τ of", "α", *SPLITS), tuple(rows), (note,), of=origin(found))


def _mean(values: Iterable[float | None]) -> str:
    return percent(mean_of_all(values))

"""Accuracy of single and merged models: per task, over the grid of coefficients, and of regimes side by side.

Accuracies are in percent. *Normalised* is merged accuracy over single-task accuracy of the same regime and
split, averaged over tasks after the division (papers: TTA §2).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from tajax.records import (
    Accuracy,
    ExactScalingCoef,
    MergingFit,
    Pretrain,
    SingleTask,
    Sweep,
    TaskAddition,
    ZeroShot,
    stage_of,
)
from tajax.records import (
    Run as RunRecord,
)
from tajax.report import charts
from tajax.report.charts import PERCENT, Axis
from tajax.report.runs import Run, Series, deviations, origin, parameters
from tajax.report.style import Figure
from tajax.report.tables import MISSING, Number, Table, mean_of_all, number, percent, spread
from tajax.results import Record, by_config, find, seconds

Measure = Callable[[Sequence[Record], str], dict[str, float | None]]
"""`(records, split) -> numbers by task`."""


def _top1(kind: type[Accuracy]) -> Measure:
    return lambda records, split: {r["task"]: r["top1"] for r in find(records, kind, split=split)}


def _normalized(records: Sequence[Record], split: str) -> dict[str, float | None]:
    return {r["task"]: r["normalized_top1"] for r in find(records, TaskAddition, split=split)}


MEASURES: Mapping[str, Measure] = {  # by title of the column
    "zero-shot": _top1(ZeroShot),
    "fine-tuned": _top1(SingleTask),
    "merged": _top1(TaskAddition),
    "normalised": _normalized,
}
SPLITS = ("test", "val")
CURVE_ROWS = 12
FEW = 100
"""Test examples below which a task's accuracy is too rough to compare: 5 points are one standard error."""
MEANINGS = {
    stage_of(ZeroShot): "zero-shot: the pre-trained model",
    stage_of(SingleTask): "fine-tuned: on that task alone",
    stage_of(TaskAddition): "merged: one model for all tasks; normalised: merged / fine-tuned",
}


def accuracy_tables(records: Sequence[Record], *, provenance: bool = True) -> list[Table]:
    """The table of tasks of one config: zero-shot, single-task and merged accuracy on test and validation.

    Args:
        records: of one config.
        provenance: whether its notes say by what it was made.
    """
    own = stage_of(ZeroShot), stage_of(SingleTask)
    tasks = list(dict.fromkeys(str(r["task"]) for r in records if r["stage"] in own))
    columns: list[str] = []
    values: list[list[float | None]] = []
    for split in SPLITS:
        for title, measure in MEASURES.items():
            if measured := measure(records, split):
                columns.append(f"{split} {title}")
                values.append([measured.get(task) for task in tasks])
    if not columns:
        return []
    rows = [(task, *map(percent, row)) for task, row in zip(tasks, zip(*values, strict=True), strict=True)]
    means = ("mean", *(percent(mean_of_all(column)) for column in values))
    notes = (*_notes(records), *(_provenance(records) if provenance else ()))
    return [Table("Accuracy on each task, %", ("task", *columns), (*rows, means), notes, 1, origin(records))]


def curve_tables(records: Sequence[Record]) -> list[Table]:
    """Accuracy over the grid of coefficients, and the loss of a pre-training, where recorded."""
    tables = []
    single = {r["task"]: r["top1"] for r in find(records, SingleTask, split="val")}
    grid: dict[float, list[Sweep]] = {}
    for record in find(records, Sweep, split="val"):
        grid.setdefault(record["scaling_coef"], []).append(record)
    if grid:
        rows = []
        for coef, points in sorted(grid.items()):
            ratios = [p["top1"] / single[p["task"]] for p in points if single.get(p["task"])]
            top1 = statistics.fmean(p["top1"] for p in points)
            rows.append((f"{coef:g}", percent(top1), percent(statistics.fmean(ratios) if ratios else None)))
        titles = ("α", "val merged", "val normalised")
        title = "Accuracy at each scaling coefficient α, mean over tasks, %"
        tables.append(Table(title, titles, tuple(rows), of=origin(records)))
    steps = find(records, Pretrain)
    if steps:
        stride = max(1, -(-len(steps) // CURVE_ROWS))
        kept = [*steps[:-1:stride], steps[-1]]
        rows = [
            (str(r["step"]), number(r["loss"], 3), Number(r["learning_rate"], 6, written=f"{r['learning_rate']:.2g}"))
            for r in kept
        ]
        tables.append(Table("Pre-training, contrastive loss in nats", ("step", "loss", "learning rate"), tuple(rows)))
    return tables


def comparison(records: Iterable[Record]) -> Table:
    """Regimes side by side, from the records of many runs: mean over seeds ± sample standard deviation.

    Args:
        records: of any number of `results.jsonl` files. Runs with the same model, regime, method and tasks make one
            row, so they should differ in the seed alone.

    Raises:
        ValueError: no run among them got as far as task addition, or a row would hold one seed twice.
    """
    seeds: dict[tuple[str, tuple[str, ...]], list[object]] = {}
    together: dict[tuple[str, tuple[str, ...]], list[Sequence[Record]]] = {}
    for group in by_config(records).values():
        addition = find(group, TaskAddition, split="test")
        if not addition:
            continue
        tasks = tuple(sorted(str(r["task"]) for r in addition))
        method = _method(addition)
        key = (f"{group[0].get('regime')}{method and f', {method},'} on {group[0].get('model')}", tasks)
        if group[0].get("seed") in seeds.setdefault(key, []):
            raise ValueError(f"two runs of {key[0]} have seed {group[0].get('seed')}: not comparable.")
        seeds[key].append(group[0].get("seed"))
        together.setdefault(key, []).append(group)
    if not together:
        raise ValueError("nothing to compare: no run here has reached task addition.")
    return _side_by_side([(name, groups) for (name, _), groups in together.items()])


def compared(series: Series) -> list[Table]:
    """The same of runs that are put together already; nothing if none of them got as far as task addition."""
    reached = [
        (label, [run.records for run in runs if find(run.records, TaskAddition, split="test")])
        for label, runs in series.items()
    ]
    reached = [(label, groups) for label, groups in reached if groups]
    return [_side_by_side(reached)] if reached else []


def _side_by_side(named: Sequence[tuple[str, Sequence[Sequence[Record]]]]) -> Table:
    body = []
    for name, groups in named:
        runs = []
        for group in groups:
            coef = float(find(group, TaskAddition, split="test")[0]["scaling_coef"])
            means = (mean_of_all(measure(group, "test").values()) for measure in MEASURES.values())
            runs.append((*means, coef))
        *accuracies, coefs = zip(*runs, strict=True)
        numbers = [MISSING if None in column else spread([100 * a for a in column], 1) for column in accuracies]
        tasks = {str(r["task"]) for r in find(groups[0], TaskAddition, split="test")}
        body.append((name, *numbers, spread(list(coefs), 2), str(len(tasks)), str(len(runs))))
    titles = ("regime", *MEASURES, "α", "tasks", "seeds")
    untuned = "" if all(_tuned(group) for _, groups in named for group in groups) else ", and 1 where a method has none"
    notes = [f"{_meaning(MEANINGS)}; α is tuned on validation, one for all tasks{untuned}."]
    notes += ["± is one sample standard deviation over seeds."] if any(row[-1] != "1" for row in body) else []
    return Table("Test accuracy, mean over tasks, %", titles, tuple(body), tuple(notes))


def by_task(series: Series) -> list[Table]:
    """Of every regime the merged accuracy of each task, absolute and normalised: a row for each regime."""
    made = []
    for title, measure in (
        ("Test accuracy of the merged model on each task, %", "merged"),
        ("Normalised test accuracy of the merged model on each task, % of the fine-tuned one's", "normalised"),
    ):
        measured = {label: _of_tasks(runs, MEASURES[measure]) for label, runs in series.items()}
        measured = {label: tasks for label, tasks in measured.items() if tasks}
        names = list(dict.fromkeys(task for tasks in measured.values() for task in tasks))
        rows = []
        for label, tasks in measured.items():
            whole = len(tasks) == len(names) and len(set(map(len, tasks.values()))) == 1
            means = [statistics.fmean(run) for run in zip(*tasks.values(), strict=False)]
            cells = (spread(tasks[name], 1) if name in tasks else MISSING for name in names)
            rows.append((label, *cells, spread(means, 1) if whole else MISSING))
        if len(rows) > 1:
            made.append(Table(title, ("regime", *names, "mean"), tuple(rows)))
    return made


def figures(series: Series) -> list[Figure]:
    """Accuracy of each task, and over the grid of coefficients."""
    return [*_of_every_task(series), *_over_alpha(series)]


def _of_every_task(series: Series) -> Iterable[Figure]:
    kinds = {"zero-shot": ZeroShot, "merged": TaskAddition, "fine-tuned": SingleTask}
    measured = {
        label: {name: found for name in kinds if (found := _of_tasks(runs, MEASURES[name]))}
        for label, runs in series.items()
    }
    panels = {label: found for label, found in measured.items() if len(found) > 1}
    if panels:
        every = {name for of_label in panels.values() for name in of_label}
        few, means = (
            len(panels) == 1,
            [statistics.fmean(v) for found in panels.values() for m in found.values() for v in m.values()],
        )
        ends = 10 * math.floor(min(means) / 10), 10 * math.ceil(max(means) / 10)
        drawn = [
            charts.dots(found, Axis("test accuracy, %", PERCENT), ends=ends, title="" if few else label)
            for label, found in panels.items()
        ]
        yield Figure(
            "accuracy_by_task",
            "Accuracy of every task",
            f"Test accuracy in %. {_meaning(stage_of(kind) for name, kind in kinds.items() if name in every)}."
            + deviations("Whiskers", series),
            tuple(drawn),
        )
    normalized = {label: _of_tasks(runs, _normalized) for label, runs in series.items()}
    normalized = {label: found for label, found in normalized.items() if found}
    if len(normalized) > 1:
        yield Figure(
            "normalized_by_task",
            "Normalised accuracy of every task",
            "Test accuracy of the merged model in % of the fine-tuned one's of the same regime."
            + deviations("Whiskers", series),
            (charts.dots(normalized, Axis("normalised test accuracy, %", PERCENT), series="regime", line=False),),
        )


def _over_alpha(series: Series) -> Iterable[Figure]:
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
        model, levels = _model_in_words(series), _levels(series) if len(means) == 1 else ()
        dashed = f" Dashed: {' and '.join(text for _, text in levels)}." if levels else ""
        yield Figure(
            "accuracy_over_alpha",
            "Accuracy against the scaling coefficient",
            f"Validation accuracy in % of {model}, mean over tasks, by α.{rings}{dashed}" + deviations("Bands", series),
            (charts.curves(means, alpha, top1, marks=chosen, rules=levels),),
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
    additions = (find(run.records, TaskAddition) for runs in series.values() for run in runs)
    methods = {_method(addition) for addition in additions if addition}
    return "θ₀ + α Σ τ, of the vectors of all tasks" if methods == {""} else "θ₀ + ατ, of the merged vector τ"


def _levels(series: Series) -> tuple[tuple[float, str], ...]:
    """Between what a merged model lies: the mean validation accuracy of θ₀, and of each fine-tuned model alone."""
    names = {ZeroShot: "the pre-trained model", SingleTask: "each fine-tuned model on its own task"}
    measured = {
        name: [r["top1"] for runs in series.values() for run in runs for r in find(run.records, kind, split="val")]
        for kind, name in names.items()
    }
    return tuple((100 * statistics.fmean(values), name) for name, values in measured.items() if values)


def _curves(run: Run) -> dict[str, dict[float, float]]:
    """Validation accuracy in % of each task at each α that was measured; seeds may have measured others."""
    curves: dict[str, dict[float, float]] = {}
    for record in find(run.records, Sweep, split="val"):
        curves.setdefault(str(record["task"]), {})[float(record["scaling_coef"])] = 100 * float(record["top1"])
    return curves


def _of_tasks(runs: Iterable[Run], measure: Measure) -> dict[str, list[float]]:
    """Of each task the test values of all runs in %, one of each seed: several workflows measure the same at first."""
    values: dict[str, dict[object, float]] = {}
    for run in runs:
        for task, value in measure(run.records, "test").items():
            if value is not None:
                values.setdefault(task, {})[run.field("seed")] = 100 * value
    return {task: [*of_seed.values()] for task, of_seed in values.items()}


def _notes(records: Sequence[Record]) -> Iterable[str]:
    yield f"{_meaning(r['stage'] for r in records)}."
    addition = find(records, TaskAddition)
    if addition:
        exact = find(records, ExactScalingCoef)
        among = f": the best there is, as is all of {exact[0]['lower']:g}–{exact[0]['upper']:g}" if exact else ""
        by = f" of {method}" if (method := _method(addition)) else ""
        coarse = ", coarse to fine" if addition[0].get("search") == "coarse_to_fine" else ""
        how = f"tuned on validation{coarse}, one for all tasks{among}" if _tuned(records) else "which has none to tune"
        yield f"α = {addition[0]['scaling_coef']:g}{by}, {how}."
        yield from map(_about_fit, find(records, MergingFit))
    yield from _about_counts(records)
    if addition:
        yield from without_ratio(find(records, SingleTask), tuned=_tuned(records))


def _about_counts(records: Sequence[Record]) -> Iterator[str]:
    """How many examples the test accuracies are of, and how far they can be off for that alone."""
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


def _about_fit(fit: MergingFit) -> str:
    """What a merging method was fitted to; a split that is also measured on is not like any other."""
    counts = sorted(set(fit["images"].values()))
    many = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    seen = f"{many} {fit['split']} examples of each task, {'with' if fit['labels'] else 'without'} their labels"
    measured = ", which are among those that it is measured on" if fit["split"] == "test" else ""
    return f"{fit['method']} was fitted to {seen}{measured}."


def without_ratio(single: Sequence[SingleTask], *, tuned: bool = True) -> Iterator[str]:
    """Of which tasks no accuracy can be normalised, a line each, and what that means for α.

    Args:
        single: the records of the stage `single_task`.
        tuned: whether there is an α to tune.
    """
    never = [r for r in single if r["top1"] == 0]
    for r in never:
        of = f"{r['count']} {r['split']} images" if "count" in r else f"{r['split']} images"
        yield f"{r['task']}: the fine-tuned model is right on none of the {of}; there is no normalised accuracy there."
    tasks = [str(r["task"]) for r in never if r["split"] == "val"]
    if tasks and tuned:
        if len(tasks) == len(find(single, split="val")):
            yield "No task has a normalised validation accuracy: α is tuned on the accuracies as they are."
        else:
            yield f"α is tuned on the other tasks, without {', '.join(tasks)}."


def _meaning(stages: Iterable[object]) -> str:
    """What the columns or colours of these stages are, in a line."""
    there = set(stages)
    line = "; ".join(meaning for stage, meaning in MEANINGS.items() if stage in there)
    return line[:1].upper() + line[1:]


def _provenance(records: Sequence[Record]) -> Iterable[str]:
    for run in find(records, RunRecord)[:1]:
        if "trained_parameters" in run:
            yield f"{': '.join(parameters(run, records)).capitalize()}."
        if "versions" in run:
            versions = run["versions"]
            revision = f" at {run['git_revision']}" if "git_revision" in run else ""
            devices = f"{run['device_count']} × {run['device_kind']}"
            yield f"tajax {versions.get('tajax')}{revision}, JAX {versions.get('jax')}, {devices}."
    yield f"Config {records[0]['config_hash']}, {seconds(records):.0f} s."


def _method(addition: Sequence[TaskAddition]) -> str:
    """How the vectors were merged; empty for their sum."""
    return str(addition[0].get("method", "task_arithmetic")).replace("task_arithmetic", "")


def _tuned(records: Sequence[Record]) -> bool:
    """Whether α was chosen on validation images, as it is for every method that has one."""
    return all(record.get("tuned", True) for record in find(records, TaskAddition))

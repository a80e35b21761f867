"""Accuracy of single and merged models: per task, over the grid of coefficients, and of regimes side by side.

Accuracies are in percent. *Normalised* is merged accuracy over single-task accuracy of the same regime and
split, averaged over tasks after the division (papers: TTA §2).
"""

from __future__ import annotations

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
from tajax.report import charts, counts, over_alpha
from tajax.report.charts import PERCENT, Axis
from tajax.report.runs import Run, Series, deviations, origin, parameters
from tajax.report.style import Figure
from tajax.report.tables import MISSING, Number, Table, mean_of_all, number, percent, spread, with_best
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
    return with_best(Table("Test accuracy, mean over tasks, %", titles, tuple(body), tuple(notes)), "merged")


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
            made.append(with_best(Table(title, ("regime", *names, "mean"), tuple(rows)), "mean"))
    return made


def figures(series: Series) -> list[Figure]:
    """Accuracy of each task, and over the grid of coefficients."""
    return [*_of_every_task(series), *over_alpha.figures(series)]


def _of_every_task(series: Series) -> Iterable[Figure]:
    kinds = {"zero-shot": ZeroShot, "merged": TaskAddition, "fine-tuned": SingleTask}
    measured = {
        label: {name: found for name in kinds if (found := _of_tasks(runs, MEASURES[name]))}
        for label, runs in series.items()
    }
    panels = {label: found for label, found in measured.items() if len(found) > 1}
    if panels:
        every = {name for of_label in panels.values() for name in of_label}
        seeds = deviations("Whiskers", series)
        within = {label: {} if seeds else counts.intervals(series[label], kinds) for label in panels}
        ends = charts.ends(
            [
                *(values for found in panels.values() for tasks in found.values() for values in tasks.values()),
                *(
                    [end]
                    for found in within.values()
                    for tasks in found.values()
                    for near in tasks.values()
                    for end in near[:2]
                ),
            ]
        )
        drawn = [
            charts.dots(
                found,
                Axis("test accuracy, %", PERCENT),
                ends=ends,
                intervals=within[label],
                title="" if len(panels) == 1 else label,
            )
            for label, found in panels.items()
        ]
        known = any(tasks for found in within.values() for tasks in found.values())
        yield Figure(
            "accuracy_by_task",
            "Accuracy of every task",
            f"Test accuracy in %. {_meaning(stage_of(kind) for name, kind in kinds.items() if name in every)}."
            + (f" {counts.WHISKERS}" if known else seeds),
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
    yield from counts.notes(records)
    if addition:
        yield from without_ratio(find(records, SingleTask), tuned=_tuned(records))


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

"""Accuracy of single and merged models: per task, over the grid of coefficients, and of regimes side by side.

Accuracies are in percent. *Normalised* is merged accuracy over single-task accuracy of the same regime and
split, averaged over tasks after the division (papers: TTA §2).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from tajax.report.tables import Table, percent, spread
from tajax.results import Record, by_config, find, seconds

# Column title, stage of the record, and metric.
MEASURES = (
    ("zero-shot", "zero_shot", "top1"),
    ("single", "single_task", "top1"),
    ("merged", "task_addition", "top1"),
    ("norm.", "task_addition", "normalized_top1"),
)
SPLITS = ("test", "val")
CURVE_ROWS = 12


def accuracy_tables(records: Sequence[Record]) -> list[Table]:
    """The table of tasks of one config: zero-shot, single-task and merged accuracy on test and validation."""
    tasks = list(dict.fromkeys(r["task"] for r in records if r["stage"] in ("zero_shot", "single_task")))
    columns: list[str] = []
    values: list[list[float | None]] = []
    for split in SPLITS:
        for title, stage, metric in MEASURES:
            measured = {r["task"]: r[metric] for r in find(records, stage=stage, split=split)}
            if measured:
                columns.append(f"{split} {title}")
                values.append([measured.get(task) for task in tasks])
    if not columns:
        return []
    rows = [(str(task), *map(percent, row)) for task, row in zip(tasks, zip(*values, strict=True), strict=True)]
    means = ("mean", *(percent(None if None in column else statistics.fmean(column)) for column in values))
    first = records[0]
    title = f"{first.get('regime')} on {first.get('model')}, seed {first.get('seed')}"
    return [Table(title, ("task", *columns), (*rows, means), tuple(_notes(records)), means=1)]


def curve_tables(records: Sequence[Record]) -> list[Table]:
    """Accuracy over the grid of coefficients, and the loss of a pre-training, where recorded."""
    tables = []
    single = {r["task"]: r["top1"] for r in find(records, stage="single_task", split="val")}
    grid: dict[float, list[Record]] = {}
    for record in find(records, stage="sweep", split="val"):
        grid.setdefault(record["scaling_coef"], []).append(record)
    if grid:
        rows = []
        for coef, points in sorted(grid.items()):
            ratios = [p["top1"] / single[p["task"]] for p in points if single.get(p["task"])]
            top1 = statistics.fmean(p["top1"] for p in points)
            rows.append((f"{coef:g}", percent(top1), percent(statistics.fmean(ratios) if ratios else None)))
        titles = ("coefficient", "val merged", "val norm.")
        tables.append(Table("Mean over tasks at each scaling coefficient", titles, tuple(rows)))
    steps = find(records, stage="pretrain")
    if steps:
        stride = max(1, -(-len(steps) // CURVE_ROWS))
        kept = [*steps[:-1:stride], steps[-1]]
        rows = [(str(r["step"]), f"{r['loss']:.3f}", f"{r['learning_rate']:.2g}") for r in kept]
        tables.append(Table("Pre-training", ("step", "loss", "learning rate"), tuple(rows)))
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
    rows: dict[tuple[str, tuple[str, ...]], list[tuple[float, ...]]] = {}
    for group in by_config(records).values():
        addition = find(group, stage="task_addition", split="test")
        if not addition:
            continue
        tasks = tuple(sorted(str(r["task"]) for r in addition))
        method = _method(addition)
        key = (f"{group[0].get('regime')}{method and f', {method},'} on {group[0].get('model')}", tasks)
        if group[0].get("seed") in seeds.setdefault(key, []):
            raise ValueError(f"two runs of {key[0]} have seed {group[0].get('seed')}: not comparable.")
        seeds[key].append(group[0].get("seed"))
        run = [_mean(group, stage, "test", metric) for _, stage, metric in MEASURES]
        rows.setdefault(key, []).append((*run, float(addition[0]["scaling_coef"])))
    if not rows:
        raise ValueError("nothing to compare: no run here has reached task addition.")
    body = []
    for (name, tasks), runs in rows.items():
        *accuracies, coefs = zip(*runs, strict=True)
        numbers = [spread([100 * a for a in column], 1) for column in accuracies]
        body.append((name, str(len(tasks)), str(len(runs)), *numbers, spread(list(coefs), 2)))
    titles = ("regime", "tasks", "seeds", *(title for title, _, _ in MEASURES), "coef.")
    return Table("Test accuracy, mean over tasks", titles, tuple(body), ("± is the deviation over seeds.",))


def _notes(records: Sequence[Record]) -> Iterable[str]:
    yield "Accuracy in %; single: fine-tuned on that task alone; norm.: merged / single."
    addition = find(records, stage="task_addition")
    if addition:
        exact = find(records, stage="exact_scaling_coef")
        among = f": the best there is, as is all of {exact[0]['lower']:g}–{exact[0]['upper']:g}" if exact else ""
        by = f" of {method}" if (method := _method(addition)) else ""
        yield f"Scaling coefficient {addition[0]['scaling_coef']:g}{by}, tuned on validation, one for all tasks{among}."
    for run in find(records, stage="run")[:1]:
        if "trained_parameters" in run:
            trained, total = run["trained_parameters"], run["total_parameters"]
            yield f"Trained {trained:,} of {total:,} parameters of the image tower ({trained / total:.1%})."
        if "versions" in run:
            versions: Mapping[str, str] = run["versions"]
            revision = f" at {run['git_revision']}" if "git_revision" in run else ""
            devices = f"{run['device_count']} × {run['device_kind']}"
            yield f"tajax {versions.get('tajax')}{revision}, JAX {versions.get('jax')}, {devices}."
    yield f"Config {records[0]['config_hash']}, {seconds(records):.0f} s."


def _method(addition: Sequence[Record]) -> str:
    """How the vectors were merged; empty for their sum."""
    return str(addition[0].get("method", "task_arithmetic")).replace("task_arithmetic", "")


def _mean(records: Sequence[Record], stage: str, split: str, metric: str) -> float:
    return statistics.fmean(r[metric] for r in find(records, stage=stage, split=split))

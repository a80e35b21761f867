"""Readable tables from the records of a run, for the terminal and as Markdown. Needs no JAX and no devices.

Accuracies are in percent. *Normalised* is merged accuracy over single-task accuracy of the same regime and
split, averaged over tasks after the division (papers: TTA §2).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tajax import results
from tajax.results import Record, find

# Column title, stage of the record, and metric.
MEASURES = (
    ("zero-shot", "zero_shot", "top1"),
    ("single", "single_task", "top1"),
    ("merged", "task_addition", "top1"),
    ("norm.", "task_addition", "normalized_top1"),
)
SPLITS = ("test", "val")
WIDTH = 100  # columns of plain text
CURVE_ROWS = 12
RULED = box.Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)  # lines below head and above means


class Table(NamedTuple):
    """A table of strings: what both renderings start from.

    Attributes:
        title: one line.
        columns: titles; the first column holds names, the others numbers.
        rows: as many strings in each as there are columns.
        notes: lines below.
        means: how many rows at the end summarise those above.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    means: int = 0


def write(workdir: str | Path, *, file: TextIO | None = None) -> None:
    """Prints the accuracy tables of a run and writes `report.md` with these and the sweep into its directory.

    Args:
        workdir: directory with `results.jsonl`.
        file: where to print; standard output by default.

    Raises:
        ValueError: there is nothing to report.
    """
    workdir = Path(workdir)
    records = results.read(workdir / "results.jsonl")
    groups = list(_by_config(records).values())
    accuracy = [table for group in groups for table in accuracy_tables(group)]
    curves = [table for group in groups for table in curve_tables(group)]
    if not accuracy and not curves:
        raise ValueError(f"nothing to report: {workdir / 'results.jsonl'} holds no measured accuracy or loss.")
    temporary = workdir / "report.md.tmp"
    temporary.write_text(markdown([*accuracy, *curves]), encoding="utf-8")
    temporary.replace(workdir / "report.md")
    show(accuracy or curves, file=file)


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
    rows = [(str(task), *map(_percent, row)) for task, row in zip(tasks, zip(*values, strict=True), strict=True)]
    means = ("mean", *(_percent(None if None in column else statistics.fmean(column)) for column in values))
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
            rows.append((f"{coef:g}", _percent(top1), _percent(statistics.fmean(ratios) if ratios else None)))
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
        records: of any number of `results.jsonl` files. Runs with the same model, regime and tasks make one
            row, so they should differ in the seed alone.

    Raises:
        ValueError: no run among them got as far as task addition, or a row would hold one seed twice.
    """
    seeds: dict[tuple, list[object]] = {}
    rows: dict[tuple, list[tuple[float, ...]]] = {}
    for group in _by_config(records).values():
        addition = find(group, stage="task_addition", split="test")
        if not addition:
            continue
        tasks = tuple(sorted(str(r["task"]) for r in addition))
        key = (str(group[0].get("model")), str(group[0].get("regime")), tasks)
        if group[0].get("seed") in seeds.setdefault(key, []):
            raise ValueError(f"two runs of {key[1]} on {key[0]} have seed {group[0].get('seed')}: not comparable.")
        seeds[key].append(group[0].get("seed"))
        run = [_mean(group, stage, "test", metric) for _, stage, metric in MEASURES]
        rows.setdefault(key, []).append((*run, float(addition[0]["scaling_coef"])))
    if not rows:
        raise ValueError("nothing to compare: no run here has reached task addition.")
    body = []
    for (model, regime, tasks), runs in rows.items():
        *accuracies, coefs = zip(*runs, strict=True)
        numbers = [_spread([100 * a for a in column], 1) for column in accuracies]
        body.append((f"{regime} on {model}", str(len(tasks)), str(len(runs)), *numbers, _spread(list(coefs), 2)))
    titles = ("regime", "tasks", "seeds", *(title for title, _, _ in MEASURES), "coef.")
    return Table("Test accuracy, mean over tasks", titles, tuple(body), ("± is the deviation over seeds.",))


def show(tables: Iterable[Table], *, file: TextIO | None = None) -> None:
    """Prints tables, with colour in a terminal, elsewhere as plain text of at most `WIDTH` columns."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=WIDTH)
    for table in tables:
        console.print(Text(table.title, "bold"))
        grid = RichTable(box=RULED, pad_edge=False)
        grid.add_column(table.columns[0], overflow="fold")
        for column in table.columns[1:]:
            grid.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
        for index, row in enumerate(table.rows):
            if index == len(table.rows) - table.means:
                grid.add_section()
            grid.add_row(*map(Text, row))
        console.print(grid)
        for note in table.notes:
            console.print(Text(note))
        console.print()


def markdown(tables: Iterable[Table]) -> str:
    """The same tables as Markdown."""
    parts = []
    for table in tables:
        lines = [f"## {table.title}", "", _row(table.columns)]
        lines.append(_row(("---", *("---:" for _ in table.columns[1:]))))
        bold = len(table.rows) - table.means
        lines += [_row(r if i < bold else [f"**{cell}**" for cell in r]) for i, r in enumerate(table.rows)]
        lines += ["", *(f"- {note}" for note in table.notes), ""] if table.notes else [""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _notes(records: Sequence[Record]) -> Iterable[str]:
    yield "Accuracy in %; single: fine-tuned on that task alone; norm.: merged / single."
    addition = find(records, stage="task_addition")
    if addition:
        exact = find(records, stage="exact_scaling_coef")
        among = f": the best there is, as is all of {exact[0]['lower']:g}–{exact[0]['upper']:g}" if exact else ""
        yield f"Scaling coefficient {addition[0]['scaling_coef']:g}, tuned on validation, one for all tasks{among}."
    for run in find(records, stage="run")[:1]:
        if "trained_parameters" in run:
            trained, total = run["trained_parameters"], run["total_parameters"]
            yield f"Trained {trained:,} of {total:,} parameters of the image tower ({trained / total:.1%})."
        if "versions" in run:
            versions: Mapping[str, str] = run["versions"]
            revision = f" at {run['git_revision']}" if "git_revision" in run else ""
            devices = f"{run['device_count']} × {run['device_kind']}"
            yield f"tajax {versions.get('tajax')}{revision}, JAX {versions.get('jax')}, {devices}."
    yield f"Config {records[0]['config_hash']}, {_seconds(records):.0f} s."


def _seconds(records: Sequence[Record]) -> float:
    """Time over all processes that worked on a run: each starts its clock anew."""
    clocks = [float(r["elapsed_seconds"]) for r in records if "elapsed_seconds" in r]
    return sum(now for now, after in zip(clocks, [*clocks[1:], -1.0], strict=True) if after < now)


def _by_config(records: Iterable[Record]) -> dict[object, list[Record]]:
    groups: dict[object, list[Record]] = {}
    for record in records:
        groups.setdefault(record["config_hash"], []).append(record)
    return groups


def _mean(records: Sequence[Record], stage: str, split: str, metric: str) -> float:
    return statistics.fmean(r[metric] for r in find(records, stage=stage, split=split))


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean}±{statistics.stdev(values):.{digits}f}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

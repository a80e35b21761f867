"""From the records of runs to what an experiment shows: means over tasks, its README's tables, its results file."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments import protocol
from experiments.protocol import Run
from experiments.readmes import fill
from tajax import report, results
from tajax.report import Table, words
from tajax.results import Record


def mean(run: Run, stage: str, metric: str = "top1", *, split: str = "test", **fields: object) -> float:
    """The mean over tasks of what a run recorded; NaN where that is None for a task.

    Raises:
        ValueError: it recorded no such thing.
    """
    found = results.find(run.records, stage=stage, split=split, **fields)
    if not found:
        raise ValueError(f"{run.directory} has no record of stage {stage!r} on {split} with {fields}")
    return statistics.fmean(math.nan if record[metric] is None else float(record[metric]) for record in found)


def percents(fractions: Iterable[float]) -> str:
    """Mean ± deviation over seeds of fractions, in percent; a dash where one of them is NaN."""
    values = [100 * fraction for fraction in fractions]
    return report.percent(None) if any(map(math.isnan, values)) else report.spread(values, 1)


def write(folder: Path, benchmark: str, tables: Sequence[Table], records: Sequence[Record]) -> None:
    """Prints the tables of one benchmark, puts them into the README, and keeps the records they were made from.

    Args:
        folder: of the experiment: `README.md` has the lines `<!-- BENCHMARK -->` and `<!-- /BENCHMARK -->`; what is
            between them is replaced. The records go to `results/BENCHMARK.jsonl`.
        benchmark: its name.
        tables: what is shown, each under a heading of its own; of texts, what they say of images is said of texts.
        records: one a number; small.
    """
    tables = words.fitting(tables, [{"stage": "run", "examples": protocol.examples(benchmark)}])
    report.show(tables)
    kept = folder / "results" / f"{benchmark}.jsonl"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    fill(folder / "README.md", benchmark, re.sub("^##", "###", report.markdown(tables), flags=re.MULTILINE))


def kept(run: Run, *stages: str) -> list[Record]:
    """The records of some stages, and of the run itself: what says where the numbers came from."""
    return [record for record in run.records if record["stage"] in ("run", *stages)]


def curves(run: Run, stage: str) -> list[Record]:
    """The records of a sweep, one for all coefficients of a task: lists in place of `scaling_coef` and `top1`.

    Of a results file's records, which are such lists already, those.
    """
    points, together = ("scaling_coef", "top1"), {}
    found = results.find(run.records, stage=stage)
    if any(isinstance(record["scaling_coef"], list) for record in found):
        return found
    for record in found:
        shared = {key: value for key, value in record.items() if key not in (*points, "loss", "elapsed_seconds")}
        curve = together.setdefault(json.dumps(shared), shared | {key: [] for key in points})
        for key in points:
            curve[key].append(record[key])
    return list(together.values())


def took(runs: Iterable[Run]) -> str:
    """A note: how long the runs took together, and on what."""
    seconds, kinds = 0.0, []
    for run in runs:
        seconds += results.seconds(run.records)
        kinds += [f"{r['cpu_count']} cores, {r['device_kind']}" for r in run.records if r["stage"] == "run"]
    return f"{seconds / 60:.0f} minutes of runs ({', '.join(sorted(set(kinds)))})."

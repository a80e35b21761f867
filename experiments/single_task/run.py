"""Single-task accuracy of every regime, and what the non-linear model gains over its tangent space."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import destination, figures, protocol, published, summary
from experiments.protocol import Run
from tajax import data, report, results
from tajax.metrics import nonlinear_advantage

HERE = Path(__file__).resolve().parent
PAIRS = (("standard", "linear"), ("standard", "posthoc"), ("attention", "linear_attention"))  # non-linear, linear


def main() -> None:
    options = protocol.arguments(__doc__).parse_args()
    folder = destination.chosen(options, HERE)
    runs = {regime: [protocol.finetuned(options, regime, seed) for seed in options.seeds] for regime in options.regimes}
    every = [run for group in runs.values() for run in group]
    config = every[0].config
    classes = {task.name: len(task.class_names) for task in data.open_tasks(config.tasks, data_dir=config.data_dir)}
    where = f"on {protocol.tasks_in_words(options)}, in %"
    tables = [_accuracy(runs, list(classes), split, where) for split in report.accuracy.SPLITS]
    tables.append(_advantage(runs, classes, f"Non-linear advantage {where}"))
    tables[-1] = tables[-1]._replace(notes=(*tables[-1].notes, summary.took(every)))
    kept = [record for run in every for record in summary.kept(run, "zero_shot", "single_task")]
    summary.write(folder, options.benchmark, tables, kept)
    figures.save(draw(runs, list(classes)), folder / "results" / f"{options.benchmark}.png")
    ours = {(b, r): a for b in published.MODELS for r, a in _of_file(folder / "results" / f"{b}.jsonl").items()}
    beside = published.beside_ours("Real CLIP, mean test accuracy in %", published.SINGLE_TASK, ours)
    summary.fill(folder / "README.md", "published", report.markdown([beside]).replace("## ", "### "))


def _values(run: Run, stage: str, tasks: list[str], split: str) -> np.ndarray:
    found = {r["task"]: r["top1"] for r in results.find(run.records, stage=stage, split=split)}
    return np.array([found[task] for task in tasks])


def _lines(rows: dict[str, list[np.ndarray]]) -> tuple[tuple[str, ...], ...]:
    """A line for each name: a cell for each task, and the mean over tasks."""
    return tuple(
        (
            name,
            *(summary.percents(column) for column in zip(*seeds, strict=True)),
            summary.percents(map(np.mean, seeds)),
        )
        for name, seeds in rows.items()
    )


def _accuracy(runs: dict[str, list[Run]], tasks: list[str], split: str, where: str) -> report.Table:
    rows = {"zero-shot": [_values(next(iter(runs.values()))[0], "zero_shot", tasks, split)]}
    rows |= {regime: [_values(run, "single_task", tasks, split) for run in group] for regime, group in runs.items()}
    title = f"{ {'test': 'Test', 'val': 'Validation'}[split] } accuracy {where}"
    return report.Table(title, ("regime", *tasks, "mean"), _lines(rows))


def _advantage(runs: dict[str, list[Run]], classes: dict[str, int], title: str) -> report.Table:
    """(a_nonlinear − a_linear) / (1 − 1/K), seed by seed."""
    tasks, rows = list(classes), {}
    for nonlinear, linear in PAIRS:
        if nonlinear in runs and linear in runs:
            pairs = zip(runs[nonlinear], runs[linear], strict=True)
            accuracies = [[_values(run, "single_task", tasks, "test") for run in pair] for pair in pairs]
            rows[f"{nonlinear} over {linear}"] = [
                nonlinear_advantage(a, b, list(classes.values())) for a, b in accuracies
            ]
    notes = ("On test; positive: the model gains from leaving its tangent space (TTA, §4).",)
    return report.Table(title, ("regimes", *tasks, "mean"), _lines(rows), notes)


def draw(runs: dict[str, list[Run]], tasks: list[str]) -> Figure:
    """Test accuracy of each regime on each task."""
    figure = Figure(figsize=(9, 3.2))
    axes = figure.subplots()
    series = {"pre-trained": [100 * _values(next(iter(runs.values()))[0], "zero_shot", tasks, "test")]}
    series |= {r: [100 * _values(run, "single_task", tasks, "test") for run in group] for r, group in runs.items()}
    figures.bars(axes, tasks, series)
    axes.set(ylabel="test accuracy, %", ylim=(0, 100))
    figures.legend(figure, figures.over_seeds("whiskers", len(next(iter(runs.values())))), columns=7)
    return figure


def _of_file(path: Path) -> dict[str, str]:
    """The mean of each regime that somebody measured on real CLIP, if there are any."""
    records = results.find(results.read(path), stage="single_task", split="test")
    regimes = dict.fromkeys(str(record["regime"]) for record in records)
    return {r: f"{100 * statistics.fmean(x['top1'] for x in results.find(records, regime=r)):.1f}" for r in regimes}


if __name__ == "__main__":
    main()

"""Task addition: do the task vectors of a regime add up to one model for all tasks?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import destination, figures, protocol, published, summary
from experiments.protocol import Run
from tajax import report, results
from tajax.metrics import normalized_accuracy

HERE = Path(__file__).resolve().parent
PLAIN_SUM = 1.0  # the coefficient of an addition that nobody tuned


def main() -> None:
    options = protocol.arguments(__doc__).parse_args()
    folder = destination.chosen(options, HERE)
    runs = {regime: [protocol.finetuned(options, regime, seed) for seed in options.seeds] for regime in options.regimes}
    every = [run for group in runs.values() for run in group]
    title = f"Test accuracy on {protocol.tasks_in_words(options)}, mean over tasks, in %"
    notes = (
        "± is the deviation over seeds; norm.: merged / single-task accuracy of the same regime; coef.: α, tuned on "
        "validation; α = 1: merged validation accuracy of the plain sum.",
        summary.took(every),
    )
    table = report.Table(
        title, ("regime", "seeds", "zero-shot", "single", "merged", "norm.", "coef.", "α = 1"), (), notes
    )
    table = table._replace(rows=tuple(_row(regime, group) for regime, group in runs.items()))
    kept = [r for run in every for r in summary.kept(run, "zero_shot", "single_task", "task_addition")]
    kept += [curve for run in every for curve in summary.curves(run, "sweep")]
    summary.write(folder, options.benchmark, [table], kept)
    figures.save(draw(runs), folder / "results" / f"{options.benchmark}.png")
    ours = {(b, r): f"{a}/{n}" for b in published.MODELS for r, a, n in _of_file(folder / "results" / f"{b}.jsonl")}
    beside = published.beside_ours("Real CLIP: absolute / normalised, in %", published.ADDITION, ours)
    summary.fill(folder / "README.md", "published", report.markdown([beside]).replace("## ", "### "))


def _row(regime: str, runs: list[Run]) -> tuple[str, ...]:
    def over_seeds(stage: str, metric: str = "top1", **fields: object) -> str:
        return summary.percents(summary.mean(run, stage, metric, **fields) for run in runs)

    coefs = [summary.mean(run, "task_addition", "scaling_coef") for run in runs]
    plain = over_seeds("sweep", split="val", scaling_coef=PLAIN_SUM)
    measured = over_seeds("zero_shot"), over_seeds("single_task"), over_seeds("task_addition")
    normalized = over_seeds("task_addition", "normalized_top1")
    return (regime, str(len(runs)), *measured, normalized, report.spread(coefs, 2), plain)


def _of_file(path: Path) -> list[tuple[str, str, str]]:
    """Regime, absolute and normalised accuracy of the runs on real CLIP that somebody made, if there are any."""
    found = results.find(results.read(path), stage="task_addition", split="test")
    regimes = dict.fromkeys(str(record["regime"]) for record in found)
    metrics = ("top1", "normalized_top1")
    means = {
        r: [np.mean([x[m] for x in group], dtype=float) for m in metrics]  # of None: NaN
        for r in regimes
        if (group := results.find(found, regime=r))
    }
    return [(r, *(f"{100 * value:.1f}" for value in values)) for r, values in means.items()]


def draw(runs: dict[str, list[Run]]) -> Figure:
    """Accuracy against the coefficient on the left, merged accuracy of each task on the right."""
    figure = Figure(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    curves = {regime: [_curve(run) for run in group] for regime, group in runs.items()}
    grid = next(iter(curves.values()))[0][0]
    styles = {"attention_with_bias": (0, (3, 3))}  # nearly the line of attention, which is to be seen below it
    found = {regime: [100 * values for _, values in group] for regime, group in curves.items()}
    figures.curves(left, grid, found, styles=styles)
    left.set(xlabel=r"scaling coefficient $\alpha$", ylabel="normalised validation accuracy, %")
    tasks = [
        record["task"] for record in results.find(next(iter(runs.values()))[0].records, stage="zero_shot", split="test")
    ]
    merged = {r: [_per_task(run, "task_addition", tasks) for run in group] for r, group in runs.items()}
    figures.bars(right, tasks, {"pre-trained": [_per_task(next(iter(runs.values()))[0], "zero_shot", tasks)]} | merged)
    right.set(ylabel="merged test accuracy, %")
    figures.legend(figure, figures.over_seeds("bands and whiskers", len(next(iter(runs.values())))), columns=7)
    return figure


def _curve(run: Run):
    """The grid of α, and the mean normalised validation accuracy at each."""
    single = {r["task"]: r["top1"] for r in results.find(run.records, stage="single_task", split="val")}
    sweeps = {r["task"]: r for r in summary.curves(run, "sweep") if r["split"] == "val"}
    grid = next(iter(sweeps.values()))["scaling_coef"]
    merged = [sweeps[task]["top1"] for task in single]
    ratios = normalized_accuracy(merged, [[value] for value in single.values()])
    return grid, ratios[~np.isnan(ratios).any(axis=1)].mean(axis=0)  # as α was chosen


def _per_task(run: Run, stage: str, tasks: list[str]) -> list[float]:
    found = {r["task"]: 100 * r["top1"] for r in results.find(run.records, stage=stage, split="test")}
    return [found[task] for task in tasks]


if __name__ == "__main__":
    main()

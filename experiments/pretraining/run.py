"""Does weight disentanglement come from pre-training? From a random start, and from stages of pre-training."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from experiments import destination, figures, protocol, summary
from experiments.pretraining.stages import export
from experiments.protocol import Run
from tajax import report, results
from tajax.results import Record

HERE = Path(__file__).resolve().parent
REGIMES = ("standard", "linear")
LAST = 12_000  # steps of the pre-training of the bundled model
MAP = {"disentanglement.coefs": (-1.0, -0.5, 0.0, 0.5, 1.0), "disentanglement.images": 128}


def main() -> None:
    parser = protocol.arguments(__doc__, regimes=REGIMES)
    parser.add_argument("--pretraining", type=Path, default=Path("runs/pretrain_tiny"), help="run with its checkpoints")
    parser.add_argument("--stages", nargs="+", type=int, default=[120, 600, 2400], help="steps with a checkpoint")
    parser.add_argument("--heads", choices=("zero_shot", "linear_probe"), default="zero_shot")
    options = parser.parse_args()
    if options.benchmark not in ("bundled", "real"):
        parser.error("the stages are those of the bundled model: choose --benchmark=bundled or real")
    folder = destination.chosen(options, HERE)
    stages: dict[int, dict[str, object]] = {0: {"initialization": "random"}}
    for step in options.stages:
        directory = options.runs / "pretraining" / f"step_{step:05d}"
        stages[step] = {"model": str(export(options.pretraining, step, directory))}
    stages[LAST] = {}
    runs, maps = {}, {}
    for regime in options.regimes:
        for step, fields in stages.items():
            runs[regime, step] = [_finetuned(options, regime, seed, step, fields) for seed in options.seeds]
            maps[regime, step] = [protocol.analysed(run, "disentanglement", **MAP) for run in runs[regime, step]]
    rows = [
        (f"{step if step else 'random'}, {regime}", *_measures(runs[regime, step], maps[regime, step]))
        for step in stages
        for regime in options.regimes
    ]
    every = [run for group in (*runs.values(), *maps.values()) for run in group]
    title = f"Stages of pre-training on four of the {options.benchmark} tasks, {options.heads} heads, test, in %"
    columns = (
        "steps, regime",
        "before",
        "single",
        "merged",
        "norm.",
        "α = 1",
        "ξ heads",
        "ξ heads, relative",
        "ξ features, relative",
    )
    notes = (
        "before: accuracy without fine-tuning; α = 1: merged validation accuracy of the plain sum; ξ: mean of the "
        "disentanglement error over [−1, 1]² and all pairs; relative: divided by what the task's own vector changes.",
        summary.took(every),
    )
    placed = [(step, run) for group in (runs, maps) for (_, step), seeds in group.items() for run in seeds]
    kept = [
        _without_map(r) | {"pretraining_steps": step}
        for step, run in placed
        for r in summary.kept(run, "zero_shot", "single_task", "task_addition", "disentanglement")
    ]
    summary.write(folder, options.benchmark, [report.Table(title, columns, tuple(rows), notes)], kept)
    figures.save(draw(runs, maps), folder / "results" / f"{options.benchmark}.png")


def _finetuned(options: argparse.Namespace, regime: str, seed: int, step: int, fields: dict[str, object]) -> Run:
    if options.heads == "zero_shot":
        return protocol.finetuned_on_few(options, regime, seed, label="" if step == LAST else f"stage{step}", **fields)
    return protocol.finetuned_on_few(options, regime, seed, label=f"stage{step}_probe", heads=options.heads, **fields)


def _measures(runs: list[Run], maps: list[Run]) -> list[str]:
    def over_seeds(stage: str, metric: str = "top1", **fields: object) -> str:
        return summary.percents(summary.mean(run, stage, metric, **fields) for run in runs)

    accuracies = over_seeds("zero_shot"), over_seeds("single_task"), over_seeds("task_addition")
    normalized = over_seeds("task_addition", "normalized_top1")
    plain = over_seeds("sweep", split="val", scaling_coef=1.0)
    errors = [_error(maps, *which) for which in ERRORS]
    return [*accuracies, normalized, plain, *(summary.percents(error) for error in errors)]


ERRORS = (("prediction", "summary"), ("prediction", "relative"), ("symmetric_kl", "relative"))


def _error(maps: list[Run], distance: str, metric: str) -> list[float]:
    """The mean over pairs, of each seed."""
    found = [results.find(run.records, stage="disentanglement", distance=distance) for run in maps]
    return [statistics.fmean(r[metric] for r in records if r[metric] is not None) for records in found]


def _without_map(record: Record) -> Record:
    return {name: value for name, value in record.items() if name not in ("terms", "coefs")}


def draw(runs: dict[tuple[str, int], list[Run]], maps: dict[tuple[str, int], list[Run]]) -> Figure:
    """Normalised accuracy, and both relative errors, against the steps of pre-training."""
    regimes, stages = dict.fromkeys(regime for regime, _ in runs), sorted({step for _, step in runs})
    figure = Figure(figsize=(9, 3.2))
    panels = {
        "normalised accuracy, %": lambda key: [summary.mean(r, "task_addition", "normalized_top1") for r in runs[key]],
        r"relative $\xi$ through the heads, %": lambda key: _error(maps[key], *ERRORS[1]),
        r"relative $\xi$ of features, %": lambda key: _error(maps[key], *ERRORS[2]),
    }
    drawn = figure.subplots(1, len(panels))
    drawn[2].sharey(drawn[1])  # both are a part of a vector's own change
    for axes, (label, measure) in zip(drawn, panels.items(), strict=True):
        series = {}
        for regime in regimes:
            by_stage = [[100 * value for value in measure((regime, step))] for step in stages]
            series[regime] = list(zip(*by_stage, strict=True))
        figures.curves(axes, stages, series)
        axes.set(xlabel="steps of pre-training", ylabel=label)
    for axes in drawn:  # after all are drawn: an end that is set would stay for panels that share it
        axes.set_ylim(bottom=0)
    figures.legend(figure, figures.over_seeds("bands", len(next(iter(runs.values())))))
    return figure


if __name__ == "__main__":
    main()

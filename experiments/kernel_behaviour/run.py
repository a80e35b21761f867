"""Kernel behaviour: how far is a fine-tuned model from its linearisation around the pre-trained one?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import destination, figures, protocol, summary
from experiments.protocol import Run
from tajax import report, results
from tajax.config import REGIMES

HERE = Path(__file__).resolve().parent
STAGE = "kernel_behaviour"
COEFS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
TRAINED = tuple(name for name in protocol.PAPERS if name != "posthoc")  # whose vectors are those of standard

Runs = dict[str, list[Run]]


def main() -> None:
    options = protocol.arguments(__doc__, regimes=TRAINED).parse_args()
    folder = destination.chosen(options, HERE)
    fields = {"evaluate.scaling_coefs": COEFS}
    runs = {
        regime: [
            protocol.analysed(protocol.finetuned(options, regime, seed), STAGE, **fields) for seed in options.seeds
        ]
        for regime in options.regimes
    }
    every = [run for group in runs.values() for run in group]
    notes = (
        "At θ₀ + τ, test, mean over tasks; ± is the deviation over seeds. gap: ‖f − f_lin‖ / ‖f − f(θ₀)‖ of the "
        "features; at equal length: the same where ‖ατ‖ is that of the regime with the shortest vectors, task by task; "
        "movement: ‖f − f(θ₀)‖ / ‖f(θ₀)‖.",
        "model, linearised: test accuracy in % of the encoder and of its first-order expansion, * as it was trained; "
        "agreement: images in % for which both predict the same class.",
        summary.took(every),
    )
    columns = ("regime", "seeds", "‖τ‖", "gap", "at equal length", "movement", "model", "linearised", "agreement")
    title = f"Models and their linearisations on {protocol.tasks_in_words(options)}"
    table = report.Table(title, columns, tuple(_row(regime, runs) for regime in runs), notes)
    kept = [record for run in every for record in summary.kept(run, STAGE)]
    summary.write(folder, options.benchmark, [table], kept)
    figures.save(draw(runs), folder / "results" / f"{options.benchmark}.png")


def _row(regime: str, runs: Runs) -> tuple[str, ...]:
    group = runs[regime]

    def at_one(metric: str) -> list[float]:
        return [summary.mean(run, STAGE, metric, scaling_coef=1.0) for run in group]

    equal = [float(np.mean(list(_at_equal_length(runs, regime, seed).values()))) for seed in range(len(group))]
    tangent = REGIMES[regime].train_linearized
    model, linearized = (summary.percents(at_one(metric)) for metric in ("top1", "linearized_top1"))
    return (
        regime,
        str(len(group)),
        report.spread(at_one("norm"), 2),
        *(report.spread(values, 3) for values in (at_one("relative_gap"), equal, at_one("relative_movement"))),
        model + ("" if tangent else " *"),
        linearized + (" *" if tangent else ""),
        summary.percents(at_one("agreement")),
    )


def _curves(run: Run, metric: str) -> dict[str, np.ndarray]:
    """Of each task the metric at every coefficient, from the smallest."""
    found = sorted(results.find(run.records, stage=STAGE), key=lambda record: record["scaling_coef"])
    tasks = dict.fromkeys(record["task"] for record in found)
    return {task: np.array([r[metric] for r in found if r["task"] == task]) for task in tasks}


def _at_equal_length(runs: Runs, regime: str, seed: int) -> dict[str, float]:
    """The gap of each task where its vector is as long as the shortest among the regimes, interpolated on the grid."""
    lengths = {name: _curves(group[seed], "norm") for name, group in runs.items()}
    one = COEFS.index(1.0)
    gaps = _curves(runs[regime][seed], "relative_gap")
    return {
        task: float(np.interp(min(curves[task][one] for curves in lengths.values()), lengths[regime][task], gap))
        for task, gap in gaps.items()
    }


def draw(runs: Runs) -> Figure:
    """The gap against α and against the length of the vector, and both accuracies against α."""
    figure = Figure(figsize=(9, 3.3))
    by_coef, by_length, accuracy = figure.subplots(1, 3)
    by_length.sharey(by_coef)

    def means(metric: str) -> dict[str, list[np.ndarray]]:
        return {
            regime: [np.mean(list(_curves(run, metric).values()), axis=0) for run in group]
            for regime, group in runs.items()
        }

    gaps, lengths = means("relative_gap"), means("norm")
    figures.curves(by_coef, COEFS, gaps)
    gap = r"$\Vert f - f_{\mathrm{lin}}\Vert \, / \, \Vert f - f(\theta_0)\Vert$"
    by_coef.set(xlabel=r"coefficient $\alpha$", ylabel=f"relative gap, {gap}", ylim=(0, None))
    for index, regime in enumerate(runs):
        line = {"color": figures.color(regime, index)}
        by_length.plot(np.mean(lengths[regime], axis=0), np.mean(gaps[regime], axis=0), marker=".", **line)
        for metric, style in (("top1", "-"), ("linearized_top1", "--")):
            accuracy.plot(COEFS, 100 * np.mean(means(metric)[regime], axis=0), style, **line)
    by_length.set(xlabel=r"length $\Vert\alpha\tau\Vert$", xlim=(0, None))
    accuracy.set(xlabel=r"coefficient $\alpha$", ylabel="test accuracy, %", xlim=(COEFS[0], COEFS[-1]), ylim=(0, 100))
    for style, label in (("-", "right: the model"), ("--", "right: linearised")):
        accuracy.plot([], [], style, color=figures.NEUTRAL, label=label)
    seeds = len(next(iter(runs.values())))
    figures.legend(figure, f"means over tasks and seeds; left, {figures.over_seeds('bands', seeds)}", columns=7)
    return figure


if __name__ == "__main__":
    main()

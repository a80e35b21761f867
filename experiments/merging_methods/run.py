"""How to merge what was fine-tuned: every method of the library on vectors of several regimes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from experiments import destination, figures, protocol, summary
from experiments.protocol import Run
from tajax import report
from tajax.merging import METHODS, Method
from tajax.regimes import REGIMES as TRAINED
from tajax.report import Table

HERE = Path(__file__).resolve().parent
REGIMES = ("standard", "attention", "linear")
GRID = tuple(round(0.1 * k, 1) for k in range(11)) + tuple(round(1.2 + 0.2 * k, 1) for k in range(10))
"""Coefficients from 0 to 3: some methods are at their best far above the sum's."""
CHOICES = tuple(name for name in METHODS if name != "slerp")
"""All but the one that takes two vectors, which these tasks are not."""
USUAL = tuple(name for name in CHOICES if name != "core_space")
"""Without the one that is for low-rank vectors, of `lora`."""

Runs = Mapping[tuple[str, str], list[Run]]  # by method and regime, one a seed


def main() -> None:
    parser = protocol.arguments(__doc__, regimes=REGIMES)
    parser.add_argument(
        "--methods", nargs="+", choices=CHOICES, default=USUAL, metavar="METHOD", help="merging methods"
    )
    options = parser.parse_args()
    folder = destination.chosen(options, HERE)
    runs: dict[tuple[str, str], list[Run]] = {}
    for regime in options.regimes:
        trained = [protocol.finetuned(options, regime, seed) for seed in options.seeds]
        for method in (name for name in options.methods if _takes(METHODS[name], regime)):
            fields = {
                "merging.method": method,
                "evaluate.scaling_coefs": GRID,
                "evaluate.search": "coarse_to_fine",
                "save.examples": False,
            }
            runs[method, regime] = [protocol.analysed(run, "task_addition", label=method, **fields) for run in trained]
    every = [run for group in runs.values() for run in group]
    table = _table(runs, options.regimes, protocol.tasks_in_words(options))
    table = table._replace(notes=(*table.notes, summary.took(every)))
    summary.write(folder, options.benchmark, [table], [r for run in every for r in summary.kept(run, "task_addition")])
    figures.save(draw(runs, options.regimes), folder / "results" / f"{options.benchmark}.png")


def _takes(method: Method, regime: str) -> bool:
    return method.models != ("ordinary" if TRAINED[regime].evaluate_linearized else "linearized")


def _table(runs: Runs, regimes: list[str], where: str) -> Table:
    methods = sorted({method for method, _ in runs})
    rows = [
        (method, METHODS[method].needs, *(cell for regime in regimes for cell in _cells(runs.get((method, regime)))))
        for method in methods
    ]
    columns = ("method", "needs", *(f"{regime} {what}".strip() for regime in regimes for what in ("", "norm.", "α")))
    seeds = {len(group) for group in runs.values()}
    notes = (
        f"± is the deviation over seeds ({' or '.join(map(str, sorted(seeds)))} of them); vectors are the same in a "
        f"column; norm.: merged / single-task accuracy; α: tuned on validation from {GRID[0]:g} to {GRID[-1]:g}, – "
        "where a method has none. Options are the defaults. Data are validation images, 256 of a task or as many as "
        "there are.",
    )
    return Table(f"Merged test accuracy on {where}, mean over tasks, in %", columns, tuple(rows), notes)


def _cells(group: list[Run] | None) -> tuple[str, str, str]:
    if group is None:  # a method that does not merge such models
        return ("–",) * 3
    merged = summary.percents(summary.mean(run, "task_addition") for run in group)
    normalized = summary.percents(summary.mean(run, "task_addition", "normalized_top1") for run in group)
    tuned = METHODS[group[0].config.merging.method].scaled
    coefs = [summary.mean(run, "task_addition", "scaling_coef") for run in group]
    return merged, normalized, report.spread(coefs, 2) if tuned else "–"


def draw(runs: Runs, regimes: list[str]) -> Figure:
    """Merged accuracy of each method, a mark for each regime; methods in the order of their best one."""
    methods = list(dict.fromkeys(method for method, _ in runs))

    def merged(method: str, regime: str) -> list[float]:
        return [100 * summary.mean(run, "task_addition") for run in runs.get((method, regime), ())] or [math.nan]

    methods.sort(key=lambda method: max(statistics.fmean(merged(*key)) for key in runs if key[0] == method))
    figure = Figure(figsize=(6.9, 1.4 + 0.18 * len(methods)))
    axes = figure.subplots()
    for index, regime in enumerate(regimes):
        found = [merged(method, regime) for method in methods]
        means = [statistics.fmean(values) for values in found]
        spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in found]
        heights = [place + 0.16 * (index - (len(regimes) - 1) / 2) for place in range(len(methods))]
        look = {"color": figures.color(regime, index), "label": f"{figures.words(regime)} vectors"}
        axes.errorbar(means, heights, xerr=spread, fmt="o", markersize=4, elinewidth=0.8, **look)
    if ("task_arithmetic", regimes[0]) in runs:
        plain = statistics.fmean(merged("task_arithmetic", regimes[0]))
        axes.axvline(plain, label=f"the sum of {figures.words(regimes[0])} vectors", **figures.BASELINE)
    axes.set_yticks(range(len(methods)), [figures.words(method) for method in methods])
    axes.set(xlabel="merged test accuracy, %", ylim=(-0.6, len(methods) - 0.4))
    figures.legend(figure, figures.over_seeds("whiskers", max(map(len, runs.values()))))
    return figure


if __name__ == "__main__":
    main()

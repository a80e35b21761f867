"""Representation or head: which of the two modules of a model keeps the tasks apart?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from experiments import destination, figures, protocol, summary
from experiments.disentanglement_maps import measure
from experiments.disentanglement_maps.measure import Runs
from experiments.protocol import Run
from tajax import report

HERE = Path(__file__).resolve().parent
MODULES = {"heads": "prediction", "features": "symmetric_kl"}


def main() -> None:
    options = measure.arguments(__doc__).parse_args()
    folder = destination.chosen(options, HERE)
    runs = measure.all_pairs(options)
    every = [run for group in runs.values() for run in group]
    table = compare(runs, f"{protocol.tasks_in_words(options)}, {measure.heads(options).replace('_', ' ')} heads")
    table = table._replace(notes=(*table.notes, summary.took(every)))
    kept = [measure.without_map(r, drawn=True) for run in every for r in summary.kept(run, "disentanglement")]
    summary.write(folder, options.benchmark, [table], kept)
    figures.save(draw(runs), folder / "results" / f"{options.benchmark}.png")


def compare(runs: Runs, title: str) -> report.Table:
    """A line for each regime: both modules on one scale, which of them is disturbed more, and whether pairs agree."""
    rows = []
    for regime, group in runs.items():
        heads, features = (measure.over_seeds(group, distance, "equivalent") for distance in MODULES.values())
        ratios = [h / f for h, f in zip(heads, features, strict=True)]
        pairs = [_both(run) for run in group]
        more = summary.percents(float(np.mean(h > f)) for h, f in pairs)
        ranks = [float(spearmanr(h, f).statistic) for h, f in pairs]
        spreads = (report.spread(values, 2) for values in (heads, features, ratios))
        rows.append((regime, str(len(group)), *spreads, more, report.spread(ranks, 2)))
    notes = (
        "The coefficient (at most 1) with which a task's own vector would move its outputs as far as the other vector "
        "does; mean over the grid on [−1, 1]² and over all pairs; ± is the deviation over seeds. heads: by predictions "
        "that change; features: by the symmetric KL of their softmax.",
        "heads > features: share of pairs, in %; rank corr.: Spearman's, between the two over pairs.",
    )
    columns = ("regime", "seeds", "heads", "features", "heads / features", "heads > features", "rank corr.")
    return report.Table(
        f"Disentanglement error as a coefficient of the own vector, {title}", columns, tuple(rows), notes
    )


def draw(runs: Runs) -> Figure:
    """Both modules of each regime on the left, every pair of the first seed on the right."""
    figure = Figure(figsize=(9, 3.8))
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    seeds = len(next(iter(runs.values())))
    for index, (regime, group) in enumerate(runs.items()):
        own = figures.color(regime, index)
        for side, (name, distance) in enumerate(MODULES.items()):
            means = measure.over_seeds(group, distance, "equivalent")
            deviation = np.std(means, ddof=1) if seeds > 1 else None
            fill = {"color": own} if name == "heads" else {"facecolor": "none", "edgecolor": own, "hatch": "////"}
            place = index + (side - 0.5) * 0.38
            whisker = {"linewidth": 0.8, "ecolor": figures.NEUTRAL}
            left.bar(place, np.mean(means), 0.34, yerr=deviation, error_kw=whisker, **fill)
        heads, features = _both(group[0])
        right.scatter(features, heads, s=9, color=own, label=figures.words(regime), alpha=0.8)
    figures.categories(left, [regime.replace("_", "\n") for regime in runs], slant=False)
    left.set(ylabel="equivalent coefficient of the own vector")
    left.bar(np.nan, np.nan, color=figures.NEUTRAL, label="heads")
    left.bar(np.nan, np.nan, facecolor="none", edgecolor=figures.NEUTRAL, hatch="////", label="features")
    highest = 1.05 * max(float(np.nanmax(_both(group[0]))) for group in runs.values())
    right.plot([0, highest], [0, highest], label="equally disturbed", **figures.BASELINE)
    right.set(xlabel="features", ylabel="heads", aspect="equal", title="pairs of tasks, first seed")
    right.set(xlim=(0, highest), ylim=(0, highest))
    figures.legend(figure, figures.over_seeds("whiskers", seeds), columns=8)
    return figure


def _both(run: Run) -> tuple[np.ndarray, np.ndarray]:
    heads, features = (measure.values(run, distance, "equivalent") for distance in MODULES.values())
    return heads, features


if __name__ == "__main__":
    main()

"""Representation or head: which of the two modules of a model keeps the tasks apart?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from experiments import figures, protocol, summary
from experiments.disentanglement_maps import measure
from experiments.disentanglement_maps.measure import Runs
from experiments.protocol import Run
from tajax import report

HERE = Path(__file__).resolve().parent
SHADES = ("#444444", "#b8b8b8")  # no colour of a regime
MODULES = {"heads": "prediction", "features": "symmetric_kl"}


def main() -> None:
    options = measure.arguments(__doc__).parse_args()
    runs = measure.all_pairs(options)
    every = [run for group in runs.values() for run in group]
    table = compare(runs, f"{protocol.tasks_in_words(options)}, {measure.heads(options).replace('_', ' ')} heads")
    table = table._replace(notes=(*table.notes, summary.took(every)))
    kept = [measure.without_map(r) for run in every for r in summary.kept(run, "disentanglement")]
    summary.write(HERE, options.benchmark, [table], kept)
    figures.save(draw(runs), HERE / "results" / f"{options.benchmark}.png")


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
    figure = Figure(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    regimes = [regime.replace("_", " ") for regime in runs]
    groups = list(runs.values())
    means = {
        name: [
            [float(measure.values(run, distance, "equivalent").mean()) for run in seed]
            for seed in zip(*groups, strict=True)
        ]
        for name, distance in MODULES.items()
    }
    figures.bars(left, regimes, means)
    left.set(ylabel="equivalent coefficient")
    for drawn, shade in zip((c for c in left.containers if isinstance(c, BarContainer)), SHADES, strict=True):
        for patch in drawn:
            patch.set_facecolor(shade)
    left.margins(y=0.25)
    left.legend(ncols=2)
    highest = 0.0
    for regime, group in runs.items():
        heads, features = _both(group[0])
        highest = max(highest, float(heads.max()), float(features.max()))
        right.scatter(features, heads, s=9, color=figures.color(regime), label=regime.replace("_", " "), alpha=0.8)
    right.plot([0, highest], [0, highest], color="#888888", linewidth=0.8)
    right.set(xlabel="features", ylabel="heads", aspect="equal", title="pairs of tasks")
    right.legend(fontsize=7)
    return figure


def _both(run: Run) -> tuple[np.ndarray, np.ndarray]:
    heads, features = (measure.values(run, distance, "equivalent") for distance in MODULES.values())
    return heads, features


if __name__ == "__main__":
    main()

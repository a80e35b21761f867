"""Weight disentanglement: on which part of the plane of coefficients do two task vectors leave each other alone?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import destination, figures, protocol, summary
from experiments.disentanglement_maps import measure
from experiments.disentanglement_maps.measure import Runs
from experiments.protocol import Run
from tajax import report
from tajax.disentanglement import relative_terms
from tajax.results import Record
from tajax.workflows.disentanglement import DEGREES

HERE = Path(__file__).resolve().parent
TITLES = {"prediction": "heads: predictions that change", "symmetric_kl": "features: relative to the own vector"}


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument(
        "--coarse", action="store_true", help="all pairs on 5×5 points alone, without the 25×25 of a few of them"
    )
    options = parser.parse_args()
    folder = destination.chosen(options, HERE)
    pairs, maps = measure.all_pairs(options), {} if options.coarse else measure.fine_maps(options)
    every = [run for group in pairs.values() for run in group] + list(maps.values())
    tables = [overview(pairs, protocol.tasks_in_words(options))]
    tables += [of_maps(maps, options.seeds[0])] if maps else []
    tables[-1] = tables[-1]._replace(notes=(*tables[-1].notes, summary.took(every)))
    kept = [
        measure.without_map(r)
        for group in pairs.values()
        for run in group
        for r in summary.kept(run, "disentanglement")
    ]
    for run in maps.values():
        kept += [_rounded(record) for distance in measure.DISTANCES for record in measure.maps_of(run, distance)]
    summary.write(folder, options.benchmark, tables, kept)
    if maps:
        figures.save(draw_maps(maps), folder / "results" / f"{options.benchmark}_maps.png")
    figures.save(draw_pairs(pairs), folder / "results" / f"{options.benchmark}_pairs.png")


def overview(runs: Runs, where: str) -> report.Table:
    """A line for each regime: means over all pairs, by both distances, as they are and relative."""
    rows = []
    for regime, group in runs.items():
        predictions, relative = (measure.over_seeds(group, "prediction", key) for key in ("summary", "relative"))
        divergence, moved = (measure.over_seeds(group, "symmetric_kl", key) for key in ("summary", "relative"))
        cells = summary.percents(predictions), *(report.spread(v, 2) for v in (relative, divergence, moved))
        rows.append((regime, str(len(group)), *cells))
    first = measure.maps_of(next(iter(runs.values()))[0], "prediction")
    notes = (
        f"ξ/2, mean over the {len(measure.COARSE)}×{len(measure.COARSE)} grid on [−1, 1]² and over {len(first)} pairs, "
        f"{max(first[0]['images'])} test images a task; ± is the deviation over seeds.",
        "heads: predictions that change, in %; features: symmetric KL of their softmax, in nats. relative: how far the "
        "other vector moves a task's outputs, by how far its own one does (roots of the divergences).",
    )
    columns = ("regime", "seeds", "heads %", "heads relative", "features nats", "features relative")
    return report.Table(f"Disentanglement error of all pairs of {where}", columns, tuple(rows), notes)


def of_maps(runs: dict[str, Run], seed: int) -> report.Table:
    """A line for each regime: the mean over the square of each fine map, through the heads and on the features."""
    first = [" – ".join(r["tasks"]) for r in measure.maps_of(next(iter(runs.values())), "prediction")]
    rows = []
    for regime, run in runs.items():
        heads, features = (measure.values(run, distance, "summary") for distance in measure.DISTANCES)
        rows.append((regime, *(f"{100 * h:.1f} / {f:.2f}" for h, f in zip(heads, features, strict=True))))
    notes = ("Predictions that change in % / symmetric KL of the features in nats, ξ/2, mean over |α| ≤ 1.",)
    return report.Table(
        f"The maps of the figure, 25×25 on [−3, 3]², seed {seed}", ("regime", *first), tuple(rows), notes
    )


def draw_maps(runs: dict[str, Run]) -> Figure:
    """A row for each regime, a column for each pair; through the heads on the left, on the features on the right."""
    drawn = {(regime, d): [_drawn(r) for r in measure.maps_of(run, d)] for regime, run in runs.items() for d in TITLES}
    largest = {"prediction": 1.0}
    # One scale for all regimes; the last percents of the far corners would take the contrast from all the rest.
    relative = [np.nanquantile(map_, 0.95) for (_, d), maps in drawn.items() if d == "symmetric_kl" for map_ in maps]
    largest["symmetric_kl"] = float(np.nanmax(relative))
    first = measure.maps_of(next(iter(runs.values())), "prediction")
    figure = Figure(figsize=(9, 1.25 * len(runs) + 1.3))
    # One grid for both halves, so that equal rows are at equal heights; the empty column keeps the halves apart.
    width = len(first)
    grid = figure.add_gridspec(len(runs), 2 * width + 1, width_ratios=[1] * width + [0.25] + [1] * width)
    for offset, (distance, title) in zip((0, width + 1), TITLES.items(), strict=True):
        axes = np.array([[figure.add_subplot(grid[i, offset + k]) for k in range(width)] for i in range(len(runs))])
        for row, regime in zip(axes, runs, strict=True):
            for cell, record, map_ in zip(row, first, drawn[regime, distance], strict=True):
                mesh = figures.heat_map(cell, record["coefs"], map_, largest=largest[distance])
                cell.set(xticks=(-3, 0, 3), yticks=(-3, 0, 3), xlim=(-3, 3), ylim=(-3, 3))
                cell.tick_params(labelsize=7, labelbottom=cell in axes[-1], labelleft=cell is row[0])
            row[0].set_ylabel(r"$\alpha_2$")
            if not offset:
                row[0].set_ylabel(f"{regime.replace('_', chr(10))}\n" + r"$\alpha_2$")
        for cell, record in zip(axes[0], first, strict=True):
            cell.set_title(",\n".join(map(figures.words, record["tasks"])), fontsize=8)
        for cell in axes[-1]:
            cell.set_xlabel(r"$\alpha_1$")
        extend = "neither" if distance == "prediction" else "max"
        label = rf"{title}, $\xi(\alpha_1, \alpha_2) / 2$"
        figure.colorbar(mesh, ax=axes, label=label, extend=extend, location="bottom", shrink=0.9, aspect=40)
    figure.suptitle(r"white square: $[-1, 1]^2$, over which tables take the mean", fontsize=8)
    return figure


def draw_pairs(runs: Runs) -> Figure:
    """The matrix of all pairs for each regime, mean over seeds; the colour scale is shared in each row."""
    names = list(
        dict.fromkeys(n for r in measure.maps_of(next(iter(runs.values()))[0], "prediction") for n in r["tasks"])
    )
    side = 7.2 / len(runs)
    figure = Figure(figsize=(9, 2 * side + 0.8 + 0.06 * max(map(len, names))))
    axes = figure.subplots(2, len(runs), sharex=True, sharey=True, squeeze=False)
    for row, (distance, key) in zip(axes, (("prediction", "summary"), ("symmetric_kl", "relative")), strict=True):
        matrices = [np.mean([_matrix(run, names, distance, key) for run in group], axis=0) for group in runs.values()]
        largest = float(np.nanmax(matrices))
        for cell, regime, matrix in zip(row, runs, matrices, strict=True):
            mesh = figures.matrix(cell, matrix, names, cmap="magma", vmin=0, vmax=largest)
            cell.set_title(f"{figures.words(regime)}\nmean {np.nanmean(matrix):.2f}", fontsize=8)
            cell.spines[:].set_visible(False)
        label = r"heads, $\xi / 2$" if distance == "prediction" else r"features, relative $\xi / 2$"
        figure.colorbar(mesh, ax=row, shrink=0.8, label=label)
    return figure


def _drawn(record: Record) -> np.ndarray:
    """ξ / 2 on the grid: of predictions as it is, of features relative to what the tasks' own vectors do."""
    terms = np.array(record["terms"])
    if record["distance"] != "prediction":
        own = np.array(record["own"])  # a vector that moves nothing leaves its map empty
        terms = relative_terms(terms, np.where(own > 0, own, np.nan), degree=DEGREES[record["distance"]])
    return terms.mean(axis=0)


def _matrix(run: Run, names: Sequence[str], distance: str, key: str) -> np.ndarray:
    matrix = np.full((len(names), len(names)), np.nan)
    for record, value in zip(measure.maps_of(run, distance), measure.values(run, distance, key), strict=True):
        a, b = (names.index(name) for name in record["tasks"])
        matrix[a, b] = matrix[b, a] = value
    return matrix


def _rounded(record: Record) -> Record:
    return record | {"terms": np.round(record["terms"], 3).tolist()}


if __name__ == "__main__":
    main()

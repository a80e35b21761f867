"""Geometry of task vectors: how long they are, in which layers and modules, and at which angles to each other."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import destination, figures, protocol, summary
from experiments.protocol import Run
from tajax import report, results
from tajax.report.geometry import mean_cosine
from tajax.results import Record

HERE = Path(__file__).resolve().parent
TRAINED = tuple(name for name in protocol.PAPERS if name != "posthoc")  # whose vectors are those of standard
GROUPS = {  # which modules a column takes together
    "attention": ("attn",),
    "MLP": ("mlp",),
    "layer norms": ("ln_1", "ln_2", "ln_pre", "ln_post", "ln_embedding"),
    "embeddings": ("class_embedding", "position_embedding", "patch_embedding", "token_embedding", "type_embedding"),
    "projection": ("projection",),
}

Runs = dict[str, list[Run]]


def main() -> None:
    options = protocol.arguments(__doc__, regimes=TRAINED).parse_args()
    folder = destination.chosen(options, HERE)
    runs = {
        regime: [protocol.analysed(protocol.finetuned(options, regime, seed), "geometry") for seed in options.seeds]
        for regime in options.regimes
    }
    every = [run for group in runs.values() for run in group]
    tables = [_overview(runs, protocol.tasks_in_words(options)), _shares(runs)]
    kept = [record for run in every for record in summary.kept(run, "geometry")]
    summary.write(folder, options.benchmark, tables, kept)
    figures.save(draw(runs), folder / "results" / f"{options.benchmark}.png")


def _module(run: Run, name: str) -> Record:
    (record,) = results.find(run.records, stage="geometry", module=name)
    return record


def _overview(runs: Runs, where: str) -> report.Table:
    rows = []
    for regime, group in runs.items():
        whole = [_module(run, "all") for run in group]
        norms = [statistics.fmean(record["norms"]) for record in whole]
        relative = [norm / record["pretrained_norm"] for norm, record in zip(norms, whole, strict=True)]
        pairs = [np.array(record["cosines"])[np.triu_indices(len(record["tasks"]), 1)] for record in whole]
        layers = [_module(run, "blocks")["layer_cosines"] for run in group]
        cosines = [report.spread([float(pick(p)) for p in pairs], 3) for pick in (np.mean, np.min, np.max)]
        ends = [report.spread([layer[index] for layer in layers], 3) for index in (0, -1)]
        rows.append((regime, str(len(group)), report.spread(norms, 2), summary.percents(relative), *cosines, *ends))
    notes = (
        "‖τ‖: mean over tasks; cosines: mean, least and largest of all pairs of tasks, and the mean within the first "
        "and the last layer; ± is the deviation over seeds.",
    )
    columns = ("regime", "seeds", "‖τ‖", "‖τ‖ / ‖θ₀‖ %", "cosine", "least", "largest", "first layer", "last layer")
    return report.Table(f"Task vectors of {where}", columns, tuple(rows), notes)


def _shares(runs: Runs) -> report.Table:
    rows = []
    for regime, group in runs.items():
        shares = [[_share(run, members) for run in group] for members in GROUPS.values()]
        rows.append((regime, *(summary.percents(share) for share in shares)))
    notes = ("Mean over tasks; ± is the deviation over seeds.",)
    return report.Table("Where their squared length is, in %", ("regime", *GROUPS), tuple(rows), notes)


def _share(run: Run, members: tuple[str, ...]) -> float:
    """The part of ‖τ‖² in modules whose path has one of these names."""
    inside = [
        np.square(record["norms"])
        for record in results.find(run.records, stage="geometry")
        if set(members) & set(str(record["module"]).split("/"))
    ]
    total = np.square(_module(run, "all")["norms"])
    return float(np.mean(np.sum(inside, axis=0) / total)) if inside else 0.0


def draw(runs: Runs) -> Figure:
    """The cosine matrix of each regime, mean over seeds; below, length and mean cosine of each layer."""
    names = _module(next(iter(runs.values()))[0], "all")["tasks"]
    matrices = {r: np.mean([_module(run, "all")["cosines"] for run in group], axis=0) for r, group in runs.items()}
    diagonal = np.eye(len(names), dtype=bool)
    largest = max(np.abs(matrix[~diagonal]).max() for matrix in matrices.values())
    # As high as the matrices are: their width is what the names and the scale leave of the figure's.
    high = 7.2 / len(runs) + 0.4 + 0.06 * max(map(len, names))
    figure = Figure(figsize=(9, high + 2.8))
    above, below = figure.subfigures(2, 1, height_ratios=(high, 2.8))
    cells = above.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for cell, (regime, matrix) in zip(cells, matrices.items(), strict=True):
        hidden = np.ma.masked_where(diagonal, matrix)
        mesh = figures.matrix(cell, hidden, names, cmap="RdBu_r", vmin=-largest, vmax=largest)
        cell.set_title(f"{figures.words(regime)}\nmean {mean_cosine(matrix.tolist()):.3f}", fontsize=8)
        cell.spines[:].set_visible(False)
    above.colorbar(mesh, ax=cells, shrink=0.8, label=r"$\cos(\tau_i, \tau_j)$")
    lengths, angles = below.subplots(1, 2)
    layers = {regime: [_module(run, "blocks") for run in group] for regime, group in runs.items()}
    depth = range(len(next(iter(layers.values()))[0]["layer_cosines"]))
    # With and without biases the attention's vectors are almost the same: dashes let the line below be seen.
    styles = {"attention_with_bias": (0, (3, 3))}
    by_layer = {r: [np.mean(b["layer_norms"], axis=0) for b in group] for r, group in layers.items()}
    figures.curves(lengths, depth, by_layer, styles=styles)
    figures.curves(
        angles, depth, {r: [b["layer_cosines"] for b in group] for r, group in layers.items()}, styles=styles
    )
    ticks = depth if len(depth) <= 12 else depth[::4]
    lengths.set(xlabel="layer, from the first", ylabel=r"$\Vert\tau\Vert$ in the layer", ylim=(0, None), xticks=ticks)
    angles.axhline(0, label="orthogonal", **figures.BASELINE)
    angles.set(xlabel="layer, from the first", ylabel=r"mean $\cos(\tau_i, \tau_j)$ in the layer", xticks=ticks)
    figures.legend(below, figures.over_seeds("bands", len(next(iter(runs.values())))))
    return figure


if __name__ == "__main__":
    main()

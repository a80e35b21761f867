"""Figures as a paper prints them: one style, one colour a regime, deviations over seeds as bands and whiskers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from tajax.regimes import REGIMES

matplotlib.use("Agg")
matplotlib.rcParams.update(
    {
        "figure.dpi": 100,
        "figure.constrained_layout.use": True,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.6,
        "legend.frameon": False,
        "savefig.dpi": 180,
    }
)

COLORS = {
    "zero-shot": "#7f7f7f",
    **{name: regime.color or "#000000" for name, regime in REGIMES.items()},
    "mlp": "#cc79a7",
    "through_norm": "#44aa99",
    "muon": "#bbaa33",
}


def color(name: str, index: int = 0) -> str:
    """The colour of a regime, or of the `index`-th of other things."""
    return COLORS.get(name, list(COLORS.values())[1 + index % (len(COLORS) - 1)])


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG without the date, so that equal figures are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    print(f"figure: {path}")


def curves(axes: Axes, x: Sequence[float], series: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """A line for each name, the mean over its runs, in a band of one sample standard deviation."""
    for index, (name, runs) in enumerate(series.items()):
        values = np.asarray(runs, float)
        mean = values.mean(axis=0)
        axes.plot(x, mean, label=name, color=color(name, index))
        if len(values) > 1:
            deviation = values.std(axis=0, ddof=1)
            axes.fill_between(x, mean - deviation, mean + deviation, color=color(name, index), alpha=0.18, linewidth=0)


def bars(axes: Axes, groups: Sequence[str], series: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """For each group a bar of each name: the mean over its runs, with a whisker of one sample standard deviation."""
    width = 0.8 / len(series)
    for index, (name, runs) in enumerate(series.items()):
        values = np.asarray(runs, float)
        deviation = values.std(axis=0, ddof=1) if len(values) > 1 else None
        places = np.arange(len(groups)) + (index - (len(series) - 1) / 2) * width
        axes.bar(
            places,
            values.mean(axis=0),
            width * 0.92,
            yerr=deviation,
            label=name,
            color=color(name, index),
            error_kw={"linewidth": 0.8, "ecolor": "#888888"},
        )
    axes.set_xticks(np.arange(len(groups)), groups, rotation=30 if len(groups) > 4 else 0, ha="center")
    axes.grid(axis="x", visible=False)


def heat_map(
    axes: Axes, coefs: Sequence[float], values: np.ndarray, *, largest: float = 1.0, title: str = ""
) -> QuadMesh:
    """A disentanglement map, α₁ to the right and α₂ upwards, with the square [−1, 1]² of the tangent paper."""
    mesh = axes.pcolormesh(coefs, coefs, np.asarray(values).T, vmin=0, vmax=largest, cmap="magma", shading="nearest")
    axes.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="white", linewidth=1.2)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_title(title)
    return mesh

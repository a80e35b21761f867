"""Figures as a paper prints them: one style, one colour a regime, deviations over seeds as bands and whiskers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure, FigureBase

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
        "legend.fontsize": 8,
        "legend.title_fontsize": 8,
        "savefig.dpi": 180,
    }
)

COLORS = {
    "zero-shot": "#a6a6a6",
    "pre-trained": "#a6a6a6",
    **{name: regime.color or "#000000" for name, regime in REGIMES.items()},
    "mlp": "#e7298a",
    "through_norm": "#44aa99",
    "muon": "#ff9da7",
}
NEUTRAL = "#8c8c8c"
"""Of what is no regime: baselines, whiskers, everything that has its name beside it."""
BASELINE = {"color": NEUTRAL, "linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 0.9}
"""How the line is drawn that a figure is to be compared with; it gets a label or a text beside it."""
SEEDS = "{marks}: one standard deviation over {count} seeds"


def color(name: str, index: int = 0) -> str:
    """The colour of a regime, or of the `index`-th of other things."""
    return COLORS.get(name, list(COLORS.values())[1 + index % (len(COLORS) - 1)])


def words(name: str) -> str:
    """A name of a regime or task as a figure says it."""
    return name.replace("_", " ")


def over_seeds(marks: str, count: int) -> str:
    """What a figure says of its bands or whiskers; nothing of one seed, which has none."""
    return SEEDS.format(marks=marks, count=count) if count > 1 else "one seed"


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG without the date, so that equal figures are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    print(f"figure: {path}")


def legend(figure: FigureBase, note: str = "", *, columns: int = 6) -> None:
    """One legend for all panels, below them, where it covers nothing.

    Args:
        figure: each label of its panels is shown once.
        note: what bands, whiskers and lines are; stands below the panels, above the names.
        columns: at most so many names in a line.
    """
    entries: dict[str, object] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        list(entries.values()),
        list(entries),
        title=note or None,
        loc="outside lower center",
        ncols=max(1, min(columns, len(entries))),
    )


def curves(
    axes: Axes,
    x: Sequence[float],
    series: Mapping[str, Sequence[Sequence[float]]],
    *,
    colors: Mapping[str, str] | None = None,
    styles: Mapping[str, object] | None = None,
) -> None:
    """A line for each name, the mean over its runs, in a band of one sample standard deviation; x ends with the data.

    Args:
        axes: to draw on.
        x: one number a point; of an order in which there is something between two points.
        series: by name, one list of values a run.
        colors: by name, where it is no regime.
        styles: by name, of lines that are not solid.
    """
    for index, (name, runs) in enumerate(series.items()):
        values = np.asarray(runs, float)
        mean = values.mean(axis=0)
        own = (colors or {}).get(name) or color(name, index)
        axes.plot(x, mean, label=words(name), color=own, linestyle=(styles or {}).get(name, "-"))
        if len(values) > 1:
            deviation = values.std(axis=0, ddof=1)
            axes.fill_between(x, mean - deviation, mean + deviation, color=own, alpha=0.18, linewidth=0)
    axes.set_xlim(min(x), max(x))


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
            label=words(name),
            color=color(name, index),
            error_kw={"linewidth": 0.8, "ecolor": NEUTRAL},
        )
    categories(axes, groups)


def categories(axes: Axes, names: Sequence[str], *, slant: bool = True) -> None:
    """Names at 0, 1, … of the horizontal axis, which ends with them; many are slanted, each ending at its tick."""
    many = slant and len(names) > 4
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if many else {"ha": "center"}
    axes.set_xticks(np.arange(len(names)), [words(name) for name in names], **slanted)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(axis="x", visible=False)


def matrix(axes: Axes, values: np.ndarray, names: Sequence[str], **colors: object):
    """A matrix over pairs of tasks, named on both sides; what is NaN or masked stays white."""
    mesh = axes.imshow(values, **colors)
    axes.set_xticks(range(len(names)), [words(name) for name in names], rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), [words(name) for name in names], fontsize=7)
    axes.grid(visible=False)
    return mesh


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

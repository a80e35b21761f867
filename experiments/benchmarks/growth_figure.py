"""The figure of how a sweep's cost grows, drawn from the record that `growth.py` writes."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import figures

KINDS = {"linear": ("linear", "o"), "non-linear": ("standard", "s")}
"""Of a sweep: the regime whose colour it has, and its mark."""
SIDES = {"tajax": ("-", "full"), "PyTorch": ("--", "none")}


def look(line: str) -> dict[str, object]:
    """How a line is drawn, from its name as in "PyTorch, linear"."""
    side, kind = line.split(", ")
    regime, mark = KINDS[kind]
    style, fill = SIDES[side]
    return {"color": figures.color(regime), "marker": mark, "markersize": 5, "linestyle": style, "fillstyle": fill}


def draw(sweeps: Mapping[str, Mapping[str, list]], *, model: str, images: int) -> Figure:
    """Seconds against coefficients, task vectors and images on one scale, and of one image of each model.

    Args:
        sweeps: of each panel, by its name: its `points`, and the seconds of each line.
        model: of the first three panels.
        images: that the first two panels are of.
    """
    titles = {
        "coefficients": f"{model}, {images} images, one vector",
        "task vectors": f"{model}, {images} images, 21 points",
        "images": f"{model}, 21 coefficients of one vector",
        "model": "one image, 21 coefficients of one vector",
    }
    figure = Figure(figsize=(9, 6))
    panels = dict(zip(titles, figure.subplots(2, 2).flat, strict=True))
    of_a_sweep = [panels[name] for name in titles if name != "model"]
    for axes in of_a_sweep[1:]:  # seconds of one whole sweep, so that they can be compared across panels
        axes.sharey(of_a_sweep[0])
    for name, axes in panels.items():
        points = sweeps[name]["points"]
        lines = {line: values for line, values in sweeps[name].items() if line != "points"}
        if name == "model":
            _by_model(axes, points, lines)
        else:
            for line, values in lines.items():
                axes.plot(points, values, label=line, **look(line))
            axes.set_xscale("log", base=2)
            axes.set_xticks(points, map(str, points))
            axes.minorticks_off()
        axes.set(title=titles[name], xlabel=name, yscale="log")
    for axes in of_a_sweep:
        axes.set_ylabel("seconds of a sweep")
    panels["model"].set_ylabel("seconds of an image")
    figures.legend(figure, "medians; PyTorch in the last panel: one coefficient, times 21")
    return figure


def _by_model(axes: Axes, models: list[str], lines: Mapping[str, list[float]]) -> None:
    """Marks without a line between them: there is nothing between two models."""
    for line, values in lines.items():
        axes.plot(range(len(models)), values, **look(line) | {"linestyle": "none"})
    figures.categories(axes, models)

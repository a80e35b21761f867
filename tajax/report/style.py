"""How figures look, on the page and on paper: a panel's colours, type and size, and its files for papers."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tajax import atomic
from tajax.regimes import REGIMES

if TYPE_CHECKING:  # Altair takes half a second to import: when a figure is drawn
    import altair

INK = "currentColor"  # of the page, light or dark; on paper INK_ON_PAPER
INK_ON_PAPER = "#1a1a1a"
COLORS = {"zero-shot": "#8a8a8a"} | {name: regime.color or INK for name, regime in REGIMES.items()}
OTHERS = ("#d55e00", "#0072b2", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", INK)
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])
HEIGHT = 300
# On paper a figure is as wide as a column or as the text, in points. It is drawn larger, and then made smaller with its
# letters, which leaves them more than 6 points high.
COLUMN, TEXT, SMALLER = 238, 497, 0.6
WIDTH_ON_PAPER, HEIGHT_ON_PAPER, COLUMNS_ON_PAPER = 325, 200, 3
FORMATS = ("png", "svg", "pdf")
_SIZE = re.compile(r' width="([\d.]+)" height="([\d.]+)"')  # of an SVG


class Figure(NamedTuple):
    """A figure of one or several panels.

    Attributes:
        name: of its files, fit for paths.
        title: one line.
        caption: what is drawn and in which units, in sentences.
        panels: Altair charts.
        wide: whether a panel is as wide as the page; if not, panels stand beside each other.
        columns: of those, how many in a row, where that compares them; 0: as many as fit.
    """

    name: str
    title: str
    caption: str
    panels: tuple[altair.LayerChart, ...]
    wide: bool = True
    columns: int = 0


def colors(names: Iterable[str]) -> altair.Scale:
    """Colours of series: a regime has its own, whatever stands beside it, and if it is there once whatever its kind."""
    import altair

    names = list(names)
    regimes = [name.partition(" (")[0] for name in names]
    once = len(set(regimes)) == len(regimes)
    known = {
        n: COLORS[regime]
        for n, regime in zip(names, regimes, strict=True)
        if regime in COLORS and (once or n in COLORS)
    }
    left = itertools.cycle([color for color in OTHERS if color not in known.values()] or OTHERS)
    return altair.Scale(domain=names, range=[known.get(name) or next(left) for name in names])


def dashes(names: Iterable[str]) -> altair.Scale:
    """Strokes of series, to tell those apart for which there are no more colours."""
    import altair

    names = list(names)
    return altair.Scale(domain=names, range=[DASHES[i // len(OTHERS) % len(DASHES)] for i in range(len(names))])


def specification(panel: altair.LayerChart | altair.ConcatChart) -> dict[str, object]:
    """The Vega-Lite specification of a panel in the style of the page; values are written out in it."""
    import altair

    with altair.data_transformers.enable("default", max_rows=None, consolidate_datasets=False):
        made = panel.to_dict()
    fit = {"autosize": {"type": "fit-x", "contains": "padding"}} if made.get("width") == "container" else {}
    return {**made, **fit, "config": CONFIG}


def drawn(figure: Figure, *, format: str = "pdf") -> bytes:
    """A figure for a paper: dark on white, of a column's width, or of the text's if its panels stand side by side.

    Args:
        figure: with any number of panels.
        format: one of `FORMATS`.
    """
    import vl_convert

    panels = [_sized(panel) for panel in figure.panels]
    most = 1 if figure.wide else min(figure.columns or COLUMNS_ON_PAPER, len(panels))
    if format == "png":
        return vl_convert.vegalite_to_png(_on_paper(panels, most), scale=3)
    for columns in range(most, 0, -1):  # fewer beside each other where their letters would be too small
        picture = vl_convert.vegalite_to_svg(_on_paper(panels, columns))
        width, height = map(float, _SIZE.findall(picture)[0])
        scale = min(SMALLER, (COLUMN if figure.wide or len(panels) == 1 else TEXT) / width)
        if scale > 0.8 * SMALLER:
            break
    smaller = f' width="{scale * width:.1f}" height="{scale * height:.1f}"'  # its viewBox stays
    picture = _SIZE.sub(smaller, picture, count=1)
    return picture.encode() if format == "svg" else vl_convert.svg_to_pdf(picture)


def _on_paper(panels: Sequence[altair.LayerChart], columns: int) -> dict[str, object]:
    """The specification of panels in rows, dark on white."""
    import altair

    whole = panels[0] if len(panels) == 1 else altair.concat(*panels, columns=columns)
    spec = json.loads(json.dumps(specification(whole)).replace(f'"{INK}"', f'"{INK_ON_PAPER}"'))
    return spec | {"background": "white"}


def save(figure: Figure, directory: str | Path, *, format: str = "pdf") -> Path:
    """Writes a figure for a paper to a file of its name.

    Args:
        figure: with any number of panels.
        directory: it is created if absent.
        format: one of `FORMATS`.

    Returns:
        The file.
    """
    path = Path(directory) / f"{figure.name}.{format}"
    atomic.write(path, drawn(figure, format=format))
    return path


def spread(runs: Sequence[float]) -> dict[str, float]:
    """Mean of a number over runs and, of more than one, what lies one sample standard deviation below and above."""
    import statistics

    mean = statistics.fmean(runs)
    deviation = statistics.stdev(runs) if len(runs) > 1 else 0.0
    return {"mean": mean, "low": mean - deviation, "high": mean + deviation, "deviation": deviation}


def _sized(panel: altair.LayerChart) -> altair.LayerChart:
    """A panel that fills the width of the page, with the width it has on paper."""
    copy = panel.copy()
    if getattr(copy, "width", None) == "container":
        copy.width = WIDTH_ON_PAPER
        if copy.height == HEIGHT:
            copy.height = HEIGHT_ON_PAPER
    return copy


_TEXT: Mapping[str, object] = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12}
CONFIG: Mapping[str, object] = {
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif",
    "background": None,
    "view": {"stroke": None},
    "axis": {
        **_TEXT,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "titleLimit": 240,
        "domainColor": INK,
        "domainOpacity": 0.4,
        "tickColor": INK,
        "tickOpacity": 0.4,
        "gridColor": INK,
        "gridOpacity": 0.1,
        "labelLimit": 150,
        "labelOverlap": True,
    },
    "legend": {
        **_TEXT,
        "titleFontWeight": "normal",
        "labelLimit": 220,
        "orient": "top",
        "columns": 4,
        "symbolStrokeWidth": 2.5,
        "gradientThickness": 10,
    },
    "title": {"color": INK, "fontSize": 13, "fontWeight": 600, "anchor": "start", "limit": 320},
    "header": {"labelColor": INK, "titleColor": INK},
    "text": {"color": INK},
    "range": {"heatmap": {"scheme": "magma"}},
}

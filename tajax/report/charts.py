"""The forms of our figures: curves with bands, dots in rows, heat maps. Altair is imported when one is drawn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tajax.report import findings
from tajax.report.style import HEIGHT, INK, colors, dashes, spread

if TYPE_CHECKING:
    import altair

Points = Mapping[str, Mapping[float, Sequence[float]]]
"""Of each series at each x the values of its runs."""
Interval = tuple[float, float, int]
"""Between what an accuracy lies, and of how many examples it is."""


class Axis(NamedTuple):
    """How a quantity is written: its title with the unit, the format of its numbers (of d3), whether 0 is shown."""

    title: str
    format: str = ".3~g"
    zero: bool = False


PERCENT = ".1f"
TICKS = 10  # at most about so many on a horizontal axis
DASHED = [4, 4]  # strokes of levels
WHOLE = ("d", ",d")  # formats of whole numbers


def ends(groups: Iterable[Sequence[float]], *, step: float = 10) -> tuple[float, float]:
    """The ends of one scale for several panels: the multiples of `step` around all means and their deviations.

    Args:
        groups: of each point the values of its runs.
        step: 10, of accuracies in percent.

    Example:
        >>> ends([[43.0], [58.0, 58.0]]), ends([[60.0]])
        ((40, 60), (60, 70))
    """
    spreads = [spread(runs) for runs in groups if runs]
    low = step * math.floor(min(found["low"] for found in spreads) / step)
    high = step * math.ceil(max(found["high"] for found in spreads) / step)
    return low, max(high, low + step)


def ends_of_curves(panels: Iterable[Points]) -> tuple[float, float]:
    """The same of the lines of several panels."""
    return ends(values for points in panels for line in points.values() for values in line.values())


def curves(
    points: Points,
    x: Axis,
    y: Axis,
    *,
    rules: Iterable[tuple[float, str]] = (),
    levels: Mapping[str, float] | None = None,
    marks: Mapping[str, Iterable[float]] | None = None,
    ends: tuple[float, float] | None = None,
    title: str = "",
) -> altair.LayerChart:
    """A line for each series, the mean over its runs, in a band of one sample standard deviation.

    Args:
        points: `{series: {x: values of its runs}}`.
        x: the horizontal axis.
        y: the vertical axis.
        rules: heights to mark, and what each is; the figure says it above the line.
        levels: of each series a height to mark in its colour.
        marks: of each series where on the horizontal axis rings are drawn around its line.
        ends: of the vertical scale, where several panels have one.
        title: of the panel.
    """
    import altair as alt

    rows = [
        {"series": name, "x": at, **spread(values)}
        for name, line in points.items()
        for at, values in sorted(line.items())
    ]
    legend = alt.Legend(title=None, symbolType="stroke", symbolOpacity=1) if len(points) > 1 else None
    color = alt.Color("series:N", scale=colors(points), legend=legend)
    across = alt.X(
        "x:Q",
        title=x.title,
        axis=_ticks(x, {at for line in points.values() for at in line}),
        scale=alt.Scale(zero=x.zero, nice=False),
    )
    scale = alt.Scale(domain=ends) if ends else alt.Scale(zero=y.zero)
    up = alt.Y("mean:Q", title=y.title, scale=scale)
    base = alt.Chart(alt.Data(values=rows)).encode(across, color=color)
    tooltip = [
        alt.Tooltip("series:N", title="series"),
        alt.Tooltip("x:Q", title=x.title, format=x.format),
        alt.Tooltip("mean:Q", title=y.title, format=y.format),
    ]
    layers = []
    if any(row["deviation"] for row in rows):
        tooltip.append(alt.Tooltip("deviation:Q", title="deviation over seeds", format=y.format))
        band = base.mark_area(opacity=0.18, aria=False).encode(alt.Y("low:Q", title=y.title), alt.Y2("high:Q"))
        layers.append(band)
    dash = alt.StrokeDash("series:N", scale=dashes(points), legend=legend)
    layers.append(base.mark_line(strokeWidth=2, aria=False).encode(up, strokeDash=dash))
    layers.append(base.mark_point(filled=True, size=28, opacity=1).encode(up, tooltip=tooltip))
    if heights := [{"height": height, "text": text} for height, text in rules]:
        line = alt.Chart(alt.Data(values=heights)).encode(alt.Y("height:Q", title=y.title))
        said = [alt.Tooltip("text:N", title="level of"), alt.Tooltip("height:Q", title=y.title, format=y.format)]
        layers.append(line.mark_rule(color=INK, strokeDash=DASHED, opacity=0.6).encode(tooltip=said))
        # At the right end, for curves begin at the level of the pre-trained model.
        written = line.mark_text(align="right", baseline="bottom", dy=-3, fontSize=11, opacity=0.8, aria=False)
        layers.append(written.encode(alt.Text("text:N"), x=alt.XValue("width")))
    if own := [{"series": name, "height": height} for name, height in (levels or {}).items()]:
        line = alt.Chart(alt.Data(values=own)).encode(alt.Y("height:Q", title=y.title), color)
        said = [alt.Tooltip("series:N", title="level of"), alt.Tooltip("height:Q", title=y.title, format=y.format)]
        layers.append(line.mark_rule(strokeDash=DASHED, opacity=0.6).encode(tooltip=said))
    rings = [
        {"series": name, "x": at, "mean": _between(points[name], at)}
        for name, places in (marks or {}).items()
        for at in places
    ]
    if rings:
        ring = alt.Chart(alt.Data(values=rings)).mark_point(
            size=160, strokeWidth=2, filled=False, aria=False, opacity=1
        )
        layers.append(ring.encode(alt.X("x:Q", title=x.title), alt.Y("mean:Q", title=y.title), color))
    told = findings.of_curves(points, x.title, y.title, (x.format, y.format))
    return _named(alt.LayerChart(layer=layers).properties(width="container", height=HEIGHT), title, told)


def dots(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    y: Axis,
    *,
    series: str = "",
    line: bool = True,
    ends: tuple[float, float] | None = None,
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
    title: str = "",
) -> altair.LayerChart:
    """A row for each group with a dot for each series in it, and whiskers of one sample standard deviation.

    Args:
        values: `{series: {group: values of its runs}}`.
        y: the quantity, along the horizontal.
        series: what the series are; empty: no title above their names.
        ends: of the scale, where several panels have one.
        line: whether the dots of a group are joined, as before and after are.
        intervals: `{series: {group: interval}}`, of a single run: what whiskers show instead.
        title: of the panel.
    """
    import altair as alt

    rows = [
        {"series": name, "group": group, **spread(runs), **_within((intervals or {}).get(name, {}).get(group))}
        for name, groups in values.items()
        for group, runs in groups.items()
        if runs
    ]
    order = list(dict.fromkeys(group for groups in values.values() for group, runs in groups.items() if runs))
    down = alt.Y("group:N", title=None, sort=order, axis=alt.Axis(labelLimit=140, ticks=False, domain=False, grid=True))
    scale = alt.Scale(domain=ends) if ends else alt.Scale(zero=y.zero)
    ticks = alt.Axis(tickCount=TICKS, labelFlush=False, labelSeparation=4)
    across = alt.X("mean:Q", title=y.title, scale=scale, axis=ticks)
    legend = alt.Legend(title=series or None) if len(values) > 1 else None
    color = alt.Color("series:N", scale=colors(values), legend=legend)
    base = alt.Chart(alt.Data(values=rows)).encode(down)
    tooltip = [
        alt.Tooltip("group:N", title="of"),
        alt.Tooltip("series:N", title=series or "what"),
        alt.Tooltip("mean:Q", title=y.title, format=y.format),
    ]
    layers = []
    if line and len(values) > 1:
        span = base.encode(alt.X("min(mean):Q", title=y.title, scale=scale), alt.X2("max(mean):Q"))
        layers.append(span.mark_rule(color=INK, opacity=0.25, aria=False))
    counted, spread_out = any("count" in row for row in rows), any(row["deviation"] for row in rows)
    if counted:
        tooltip += [
            alt.Tooltip("within:N", title="95 % interval"),
            alt.Tooltip("count:Q", title="examples", format=",d"),
        ]
    elif spread_out:
        tooltip.append(alt.Tooltip("deviation:Q", title="deviation over seeds", format=y.format))
    if counted or spread_out:
        whisker = base.encode(alt.X("low:Q", title=y.title, scale=scale), alt.X2("high:Q"), color=color)
        layers.append(whisker.mark_rule(strokeWidth=1.5, aria=False))
    shape = alt.Shape("series:N", scale=alt.Scale(domain=list(values)), legend=legend)
    layers.append(
        base.mark_point(filled=True, size=80, opacity=1).encode(across, color=color, shape=shape, tooltip=tooltip)
    )
    whole = alt.LayerChart(layer=layers).properties(width="container", height=26 * len(order))
    return _named(whole, title, findings.of_dots(values, y.title, y.format))


def heat_map(
    coefs: Sequence[float],
    values: Sequence[Sequence[float]],
    value: Axis,
    *,
    title: str,
    largest: float,
    axes: tuple[str, str],
) -> altair.LayerChart:
    """A disentanglement map, α₁ to the right and α₂ upwards, with the square [−1, 1]² of the tangent paper.

    Args:
        coefs: the A grid points of both axes, ascending.
        values: [A][A], the first coefficient first.
        value: what is drawn.
        title: of the panel.
        largest: the end of the scale of colours; what is larger is drawn in its last colour.
        axes: titles of both coefficients.
    """
    import altair as alt

    edges = [(a + b) / 2 for a, b in zip(coefs[:-1], coefs[1:], strict=True)]
    edges = [2 * coefs[0] - edges[0], *edges, 2 * coefs[-1] - edges[-1]]
    # Each cell goes a little beyond its end, under the next: between cells that only touch, renderers leave seams.
    beyond = [end + 0.1 * (end - begin) for begin, end in zip(edges[:-1], edges[1:], strict=True)]
    # The values alone, row by row; where each belongs follows from its number. Thousands of cells stay small.
    flat = [round(value, 4) for row in values for value in row]
    first, second = f"floor((datum.n - 1) / {len(coefs)})", f"(datum.n - 1) % {len(coefs)}"
    place = {
        name: f"{[float(at) for at in points]}[{index}]"
        for name, points, index in (
            ("a", coefs, first),
            ("b", coefs, second),
            ("l", edges[:-1], first),
            ("r", beyond, first),
            ("d", edges[:-1], second),
            ("u", beyond, second),
        )
    }
    domain = alt.Scale(domain=[edges[0], edges[-1]], nice=False)
    across = alt.X("l:Q", title=axes[0], scale=domain, axis=alt.Axis(grid=False, tickCount=5))
    up = alt.Y("d:Q", title=axes[1], scale=domain, axis=alt.Axis(grid=False, tickCount=5))
    paint = alt.Scale(scheme="magma", domain=[0, largest], clamp=True)
    legend = alt.Legend(title=value.title, orient="right", format=value.format, gradientLength=120, tickCount=4)
    tooltip = [
        alt.Tooltip("a:Q", title="α →", format=".3~g"),
        alt.Tooltip("b:Q", title="α ↑", format=".3~g"),
        alt.Tooltip("data:Q", title=value.title, format=value.format),
    ]
    cells = alt.Chart(alt.Data(values=flat)).mark_rect(aria=False, clip=True)
    cells = (
        cells.transform_window(n="row_number()")
        .transform_calculate(**place)
        .encode(
            across,
            up,
            alt.X2("r:Q"),
            alt.Y2("u:Q"),
            alt.Color("data:Q", scale=paint, legend=legend),
            tooltip=tooltip,
        )
    )
    square = alt.Chart(alt.Data(values=[{"l": -1, "r": 1, "d": -1, "u": 1}])).mark_rect(
        fillOpacity=0, stroke="white", strokeWidth=1.5, tooltip=None, aria=False
    )
    shown = [cells]
    if edges[0] < -1 and edges[-1] > 1:
        shown.append(square.encode(across, up, alt.X2("r:Q"), alt.Y2("u:Q")))
    told = findings.of_map(coefs, values, title, value.title, value.format)
    return _named(alt.LayerChart(layer=shown).properties(width=190, height=190), title, told)


def matrix(
    names: tuple[Sequence[str], Sequence[str]],
    values: Iterable[tuple[int, int, float]],
    value: Axis,
    *,
    titles: tuple[str, str],
    diverging: bool = False,
    title: str = "",
    step: int = 24,
    numbers: bool = False,
    largest: float | None = None,
    labels: tuple[Sequence[str], Sequence[str]] | None = None,
) -> altair.LayerChart:
    """A matrix of named rows and columns as coloured cells, on hover their values.

    Args:
        names: of rows and of columns.
        values: `(row, column, value)` of the cells that there are.
        value: what is drawn.
        titles: of rows and of columns.
        diverging: colours for both signs, white at zero; otherwise from zero upwards.
        title: of the panel.
        step: pixels of a cell.
        numbers: whether each cell shows its value.
        largest: the end of the scale of colours; by default the largest value.
        labels: of rows and columns, where their names are long.
    """
    import altair as alt

    cells = [(i, j, v) for i, j, v in values if math.isfinite(v)]
    largest = largest or max((abs(v) for _, _, v in cells), default=1.0) or 1.0
    labels = labels or names
    # Rows and columns by number, so that equal names stay apart; the names are labels of the axes.
    rows = [{"i": i, "j": j, "row": names[0][i], "column": names[1][j], "v": v} for i, j, v in cells]
    paint = (
        alt.Scale(scheme="blueorange", domain=[-largest, largest])
        if diverging
        else alt.Scale(scheme="magma", domain=[0, largest])
    )
    base = alt.Chart(alt.Data(values=rows)).encode(
        alt.Y("i:O", title=titles[0], sort=list(range(len(names[0]))), axis=_labels(labels[0])),
        alt.X(
            "j:O",
            title=titles[1],
            sort=list(range(len(names[1]))),
            axis=_labels(labels[1], angle=-60 if max(map(len, labels[1]), default=0) > 2 else 0),
        ),
    )
    legend = alt.Legend(title=value.title, orient="right", format=value.format, gradientLength=120, tickCount=4)
    painted = base.mark_rect(aria=False).encode(
        alt.Color("v:Q", scale=paint, legend=legend),
        tooltip=[
            alt.Tooltip("row:N", title=titles[0]),
            alt.Tooltip("column:N", title=titles[1]),
            alt.Tooltip("v:Q", title=value.title, format=value.format),
        ],
    )
    layers = [painted]
    if numbers:
        dark = "datum.v > 0.75 * {0} || datum.v < -0.75 * {0}" if diverging else "datum.v < 0.6 * {0}"
        ink = alt.condition(dark.format(float(largest)), alt.value("white"), alt.value("black"))
        written = base.mark_text(fontSize=11, aria=False, tooltip=None)
        layers.append(written.encode(alt.Text("v:Q", format=value.format), color=ink))
    told = findings.of_matrix(names, cells, title, value.title, value.format)
    return _named(alt.LayerChart(layer=layers).properties(width={"step": step}, height={"step": step}), title, told)


def _named(chart: altair.LayerChart, title: str, told: str) -> altair.LayerChart:
    """With its title, and with what it says to those who do not see it."""
    return chart.properties(description=told, **({"title": title} if title else {}))


def _within(interval: Interval | None) -> dict[str, object]:
    if interval is None:
        return {}
    low, high, count = interval
    return {"low": low, "high": high, "count": count, "within": f"{low:.1f} to {high:.1f}"}


def _between(line: Mapping[float, Sequence[float]], at: float) -> float:
    """The mean over runs at a place between those that were measured."""
    places = sorted(line)
    return float(np.interp(at, places, [statistics.fmean(line[place]) for place in places]))


def _ticks(axis: Axis, places: Collection[float]) -> altair.Axis:
    """Of few whole numbers a tick at each: between two of them Vega would put one more and write a number twice."""
    import altair as alt

    whole = axis.format in WHOLE
    return alt.Axis(
        grid=False,
        tickCount=TICKS,
        labelFlush=False,
        labelSeparation=4,
        values=sorted(places) if whole and len(places) <= TICKS else alt.Undefined,
        format=axis.format if whole else alt.Undefined,
    )


def _labels(names: Sequence[str], *, angle: float | None = None) -> altair.Axis:
    import json

    import altair as alt

    # An expression that holds the names as JSON: quotes and signs in them are text, not code.
    table = json.dumps(list(names)).replace("\u2028", " ").replace("\u2029", " ")
    return alt.Axis(
        labelExpr=f"{table}[datum.value]",
        labelLimit=130,
        labelOverlap=False,
        ticks=False,
        domain=False,
        grid=False,
        labelAngle=alt.Undefined if angle is None else angle,
    )

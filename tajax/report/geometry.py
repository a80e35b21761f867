"""Tables of the geometry of task vectors: cosines between tasks, norms by layer and by module."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tajax.records import Geometry, Run
from tajax.report import charts
from tajax.report.charts import Axis
from tajax.report.runs import Series, deviations, origin
from tajax.report.style import Figure
from tajax.report.tables import Number, Table, mean_of_all, number, percent, spread
from tajax.results import Record, find

if TYPE_CHECKING:
    import altair

WHOLE = "all"


def tables(records: Sequence[Record]) -> list[Table]:
    """Cosines between the whole vectors of one config, and norms and cosines by layer."""
    found = {str(r["module"]): r for r in find(records, Geometry)}
    made = []
    if whole := found.get(WHOLE):
        counted = [r["trained_parameters"] for r in find(records, Run)]
        made.append(_cosines(whole, int(next(filter(None, counted), whole["parameters"]))))
    if layers := _layers(found):
        made.append(_by_layer(layers))
    return made


def _layers(found: Mapping[str, Geometry]) -> Geometry | None:
    """The record of the layers as wholes: it bears the name of the node that stacks them, modules longer ones."""
    return min((r for r in found.values() if "layer_norms" in r), key=lambda r: len(str(r["module"])), default=None)


def modules(records: Sequence[Record]) -> list[Table]:
    """Norms and cosines of each module of one config, the layers together."""
    found = find(records, Geometry)
    if not found:
        return []
    (whole,) = find(found, module=WHOLE)
    rows = []
    for record in found:
        share = statistics.fmean(n**2 / w**2 for n, w in zip(record["norms"], whole["norms"], strict=True) if w)
        rms = statistics.fmean(record["norms"]) / math.sqrt(record["parameters"])
        rows.append(
            (
                str(record["module"]),
                Number(record["parameters"], 0),
                number(statistics.fmean(record["norms"]), 3),
                percent(share),
                _relative(statistics.fmean(record["norms"]), record["pretrained_norm"]),
                Number(rms, 6, written=f"{rms:.2g}"),
                number(mean_cosine(record["cosines"]), 3),
            )
        )
    titles = ("module", "parameters", "‖τ‖", "share of ‖τ‖² %", "‖τ‖ / ‖θ₀‖ %", "‖τ‖ / √parameters", "mean cosine")
    notes = ("Means over tasks; of cosines, over pairs of tasks. Modules that did not move are left out.",)
    return [Table("Task vectors τ by module", titles, tuple(rows), notes, of=origin(found))]


def compared(series: Series) -> list[Table]:
    """Regimes side by side: length and mean cosine of their vectors, over seeds ± sample standard deviation."""
    body = []
    for label, runs in series.items():
        found = [whole for run in runs for whole in find(run.records, Geometry, module=WHOLE)]
        if not found:
            continue
        lengths = [statistics.fmean(whole["norms"]) for whole in found]
        relative = [
            100 * length / whole["pretrained_norm"]
            for length, whole in zip(lengths, found, strict=True)
            if whole["pretrained_norm"]
        ]
        cosines = [cosine for whole in found if (cosine := mean_cosine(whole["cosines"])) is not None]
        cells = ((lengths, 2), (relative, 1), (cosines, 3))
        body.append((label, str(len(found)), *(spread(v, d) if len(v) == len(found) else "–" for v, d in cells)))
    if not body:
        return []
    notes = ("Means over tasks; of cosines, over pairs of tasks." + deviations("±", series),)
    return [Table("Task vectors τ", ("regime", "seeds", "‖τ‖", "‖τ‖ / ‖θ₀‖ %", "mean cosine"), tuple(body), notes)]


def figures(series: Series) -> list[Figure]:
    """The cosine matrix of each regime, mean over seeds, and length and mean cosine by layer."""
    wholes: dict[str, list[Geometry]] = {}
    lengths: dict[str, dict[float, list[float]]] = {}
    angles: dict[str, dict[float, list[float]]] = {}
    for label, runs in series.items():
        for run in runs:
            found = {str(r["module"]): r for r in find(run.records, Geometry)}
            if whole := found.get(WHOLE):
                wholes.setdefault(label, []).append(whole)
            if layers := _layers(found):
                rows = zip(zip(*layers["layer_norms"], strict=True), layers["layer_cosines"], strict=True)
                for layer, (norms, cosine) in enumerate(rows):
                    lengths.setdefault(label, {}).setdefault(layer, []).append(statistics.fmean(norms))
                    if cosine is not None:
                        angles.setdefault(label, {}).setdefault(layer, []).append(cosine)
    made = []
    if wholes:
        cells = {label: _mean_cosines(found) for label, found in wholes.items()}
        largest = max((abs(v) for found in cells.values() for _, _, v in found), default=1.0)
        panels = (
            _cosine_panel(wholes[label][0], found, largest, label if len(series) > 1 else "")
            for label, found in cells.items()
        )
        caption = "Cosine of the angle between the task vectors of two tasks, without the diagonal; 0 is orthogonal."
        caption += " Means over seeds." if any(len(found) > 1 for found in wholes.values()) else ""
        made.append(Figure("cosines", "Cosines between task vectors", caption, tuple(panels), wide=False))
    if lengths:
        depth = Axis("layer, first to last", "d")
        drawn = [charts.curves(lengths, depth, Axis("‖τ‖ of the layer", ".3f", zero=True))]
        if angles:
            drawn.append(charts.curves(angles, depth, Axis("mean cosine", ".3f", zero=True)))
        caption = "Above: length of the vectors within each layer, mean over tasks. Below: mean cosine over pairs."
        made.append(Figure("geometry_by_layer", "Task vectors by layer", caption, tuple(drawn)))
    return made


def _mean_cosines(wholes: Sequence[Geometry]) -> list[tuple[int, int, float]]:
    """`(row, column, mean over runs)`, tasks numbered as the first run has them; without the diagonal."""
    names = [str(name) for name in wholes[0]["tasks"]]
    values: dict[tuple[int, int], list[float]] = {}
    for whole in wholes:
        place = [names.index(name) if name in names else None for name in map(str, whole["tasks"])]
        for i, row in zip(place, whole["cosines"], strict=True):
            for j, value in zip(place, row, strict=True):
                if i is not None and j is not None and value is not None and i != j:
                    values.setdefault((i, j), []).append(value)
    return [(i, j, statistics.fmean(found)) for (i, j), found in values.items()]


def _cosine_panel(
    whole: Geometry, cells: Sequence[tuple[int, int, float]], largest: float, title: str
) -> altair.LayerChart:
    names = [str(name) for name in whole["tasks"]]
    few = len(names) <= 10
    return charts.matrix(
        (names, names),
        cells,
        Axis("cosine", ".2f" if few else ".3f"),
        titles=("τ of", "and τ of"),
        diverging=True,
        title=title,
        step=36 if few else 20,
        numbers=few,
        largest=largest,
    )


def mean_cosine(cosines: Sequence[Sequence[float | None]]) -> float | None:
    """The mean over pairs of different tasks; None for a single task, or where a vector is zero.

    Example:
        >>> mean_cosine([[1.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 1.0]]), mean_cosine([[1.0]])
        (0.25, None)
    """
    return mean_of_all(cosines[s][t] for s, t in itertools.combinations(range(len(cosines)), 2))


def _cosines(whole: Geometry, dimensions: int) -> Table:
    names = [str(name) for name in whole["tasks"]]
    rows = [(name, *(number(cosine, 3) for cosine in row)) for name, row in zip(names, whole["cosines"], strict=True)]
    norms = ("‖τ‖", *(number(norm, 2) for norm in whole["norms"]))
    notes = (
        f"Mean over pairs of tasks: {number(mean_cosine(whole['cosines']), 3)}. Random directions of the "
        f"{dimensions:,} parameters: 0 ± {dimensions**-0.5:.4f}.",
        f"‖τ‖: length of a vector; ‖θ₀‖, of the pre-trained weights it moves, is {whole['pretrained_norm']:.2f}.",
    )
    return Table("Cosines between task vectors", ("task", *names), (*rows, norms), notes, 1, origin([whole]))


def _by_layer(layers: Geometry) -> Table:
    rows = []
    columns = zip(*layers["layer_norms"], strict=True), layers["layer_pretrained_norms"], layers["layer_cosines"]
    for index, (norms, base, cosine) in enumerate(zip(*columns, strict=True)):
        norm = statistics.fmean(norms)
        rows.append((str(index), number(norm, 3), _relative(norm, base), number(cosine, 3)))
    titles, notes = ("layer", "‖τ‖", "‖τ‖ / ‖θ₀‖ %", "mean cosine"), ("Means over tasks; of cosines, over pairs.",)
    return Table("Task vectors τ by layer", titles, tuple(rows), notes, of=origin([layers]))


def _relative(norm: float, base: float) -> str:
    return percent(norm / base if base else None)

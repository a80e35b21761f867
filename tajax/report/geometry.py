"""Tables of the geometry of task vectors: cosines between tasks, norms by layer and by module."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from tajax.report import charts
from tajax.report.charts import Axis
from tajax.report.runs import Series, several_seeds
from tajax.report.style import Figure
from tajax.report.tables import Table, percent
from tajax.results import Record, find

WHOLE, LAYERS = "all", "blocks"


def tables(records: Sequence[Record]) -> list[Table]:
    """Cosines between the whole vectors of one config, and norms and cosines by layer."""
    found = {str(r["module"]): r for r in find(records, stage="geometry")}
    made = []
    if whole := found.get(WHOLE):
        runs = find(records, stage="run")
        made.append(_cosines(whole, int(runs[0]["trained_parameters"] if runs else whole["parameters"])))
    if layers := found.get(LAYERS):
        made.append(_by_layer(layers))
    return made


def modules(records: Sequence[Record]) -> list[Table]:
    """Norms and cosines of each module of one config, the layers together."""
    found = find(records, stage="geometry")
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
                f"{record['parameters']:,}",
                f"{statistics.fmean(record['norms']):.3f}",
                f"{100 * share:.1f}",
                _relative(statistics.fmean(record["norms"]), record["pretrained_norm"]),
                f"{rms:.2g}",
                _number(mean_cosine(record["cosines"])),
            )
        )
    titles = ("module", "parameters", "‖τ‖", "share of ‖τ‖² %", "‖τ‖ / ‖θ₀‖ %", "‖τ‖ / √parameters", "mean cosine")
    notes = ("Means over tasks; of cosines, over pairs of tasks. Modules that did not move are left out.",)
    return [Table("Task vectors by module", titles, tuple(rows), notes)]


def figures(series: Series) -> list[Figure]:
    """The cosine matrix of each run, and length and mean cosine by layer."""
    panels = []
    lengths: dict[str, dict[float, list[float]]] = {}
    angles: dict[str, dict[float, list[float]]] = {}
    for label, runs in series.items():
        for run in runs:
            found = {str(r["module"]): r for r in find(run.records, stage="geometry")}
            if whole := found.get(WHOLE):
                parts = [label] if len(series) > 1 else []
                parts += [f"seed {run.field('seed')}"] if several_seeds(runs) else []
                panels.append(_cosine_panel(whole, ", ".join(parts)))
            if layers := found.get(LAYERS):
                rows = zip(zip(*layers["layer_norms"], strict=True), layers["layer_cosines"], strict=True)
                for layer, (norms, cosine) in enumerate(rows):
                    lengths.setdefault(label, {}).setdefault(layer, []).append(statistics.fmean(norms))
                    if cosine is not None:
                        angles.setdefault(label, {}).setdefault(layer, []).append(cosine)
    made = []
    if panels:
        caption = "Cosine of the angle between the task vectors of two tasks, without the diagonal; 0 is orthogonal."
        made.append(Figure("cosines", "Cosines between task vectors", caption, tuple(panels), wide=False))
    if lengths:
        depth = Axis("layer, first to last", "d")
        drawn = [charts.curves(lengths, depth, Axis("‖τ‖ of the layer", ".3f", zero=True))]
        if angles:
            drawn.append(charts.curves(angles, depth, Axis("mean cosine", ".3f", zero=True)))
        caption = "Above: length of the vectors within each layer, mean over tasks. Below: mean cosine over pairs."
        made.append(Figure("geometry_by_layer", "Task vectors by layer", caption, tuple(drawn)))
    return made


def _cosine_panel(whole: Record, title: str) -> object:
    names = [str(name) for name in whole["tasks"]]
    cells = [
        (i, j, value)
        for i, row in enumerate(whole["cosines"])
        for j, value in enumerate(row)
        if i != j and value is not None
    ]
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
    )


def mean_cosine(cosines: Sequence[Sequence[float | None]]) -> float | None:
    """The mean over pairs of different tasks; None for a single task, or where a vector is zero.

    Example:
        >>> mean_cosine([[1.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 1.0]]), mean_cosine([[1.0]])
        (0.25, None)
    """
    pairs = [cosines[s][t] for s, t in itertools.combinations(range(len(cosines)), 2)]
    return None if not pairs or None in pairs else statistics.fmean(pairs)


def _cosines(whole: Record, dimensions: int) -> Table:
    names = [str(name) for name in whole["tasks"]]
    rows = [(name, *map(_number, row)) for name, row in zip(names, whole["cosines"], strict=True)]
    norms = ("‖τ‖", *(f"{norm:.2f}" for norm in whole["norms"]))
    notes = (
        f"Mean over pairs of tasks: {_number(mean_cosine(whole['cosines']))}. Random directions of the {dimensions:,} "
        f"trained parameters: 0 ± {dimensions**-0.5:.4f}.",
        f"‖θ₀‖ is {whole['pretrained_norm']:.2f}.",
    )
    return Table("Cosines between task vectors", ("task", *names), (*rows, norms), notes, means=1)


def _by_layer(layers: Record) -> Table:
    rows = []
    columns = zip(*layers["layer_norms"], strict=True), layers["layer_pretrained_norms"], layers["layer_cosines"]
    for index, (norms, base, cosine) in enumerate(zip(*columns, strict=True)):
        norm = statistics.fmean(norms)
        rows.append((str(index), f"{norm:.3f}", _relative(norm, base), _number(cosine)))
    return Table("Task vectors by layer", ("layer", "‖τ‖", "‖τ‖ / ‖θ₀‖ %", "mean cosine"), tuple(rows))


def _relative(norm: float, base: float) -> str:
    return percent(norm / base if base else None)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

"""Local energies of the NTK's eigenfunctions: one table for each kernel, both readings side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from tajax.records import Ntk
from tajax.report import charts
from tajax.report.charts import Axis
from tajax.report.runs import Series, deviations, origin
from tajax.report.style import Figure
from tajax.report.tables import Table, number
from tajax.results import Record, find

KERNELS = {"plain": "k(x, x′)", "cosine": "k(x, x′) / √(k(x, x) k(x′, x′))"}
WEIGHTS = {"pretrained": "Pre-trained", "random": "Random"}


def _mean(energies: list[float] | None) -> float | None:
    return None if energies is None else statistics.fmean(energies)


COLUMNS: tuple[tuple[str, str, Callable[[Ntk], float | None]], ...] = (  # title, reading, and number of the record
    ("new", "nystrom", lambda r: _mean(r.get("energy_new"))),
    ("control", "nystrom", lambda r: _mean(r.get("energy_new_control"))),
    ("share", "nystrom", lambda r: r["share"]),
    ("reverse", "nystrom", lambda r: r.get("reverse_share")),
    ("separation", "nystrom", lambda r: r.get("separation")),
    ("mixture share", "mixture", lambda r: r["share"]),
    ("contrast", "mixture", lambda r: r.get("contrast")),
    ("chance", "mixture", lambda r: r.get("chance")),
    ("excess", "mixture", lambda r: r.get("excess")),
)


def tables(records: Sequence[Record]) -> list[Table]:
    """For each kernel the mean local energies and what follows from them, a row for each task, and their mean."""
    return [_table(found, title) for kernel, title in KERNELS.items() if (found := find(records, Ntk, kernel=kernel))]


def _table(records: Sequence[Ntk], title: str) -> Table:
    rows = []
    for task in dict.fromkeys(r["task"] for r in records):
        of_reading = {r["reading"]: r for r in records if r["task"] == task}
        rows.append((task, [number(of_reading[name]) if name in of_reading else None for _, name, number in COLUMNS]))
    measured = [[x for x in column if x is not None] for column in zip(*(row for _, row in rows), strict=True)]
    rows.append(("mean", [statistics.fmean(column) if column else None for column in measured]))
    first = records[0]
    leading = max(len(r["eigenvalues"]) for r in records)
    over = {
        "trace": "trace over the features",
        "diagonal": "each feature, then the mean",
        "full": "matrices of features",
    }
    directions = f" ({first['directions']} random directions of them)" if first["directions"] else ""
    notes = (
        f"{WEIGHTS.get(first['initialization'], first['initialization'])} weights; {over[first['output']]}"
        f"{directions}; {first['images']} {first['split']} images of each task and of {first['control']}.",
        f"Local energy of {leading} leading eigenfunctions of half of a task's images, mean over the other half (new) "
        f"and over the control's. On the images they were found on it is {leading}, whatever the kernel.",
        "share: new / (new + control), ½ is none; reverse: with the roles of task and control exchanged; separation: "
        "how often a new image has more than a control image.",
        "Mixture: eigenfunctions of the images of both together. Share: of their energy, on the task's side; contrast: "
        "mean of (2p − 1)², p an eigenfunction's part on the task's side, 1 if each lives on one side; chance: the "
        "contrast if images were dealt to both sides at random; excess: of the contrast over chance, at most 1.",
    )
    body = tuple((name, *(number(value, 2) for value in values)) for name, values in rows)
    columns = ("task", *(c[0] for c in COLUMNS))
    return Table(f"Local energy of the leading eigenfunctions of {title}", columns, body, notes, 1, origin(records))


def figures(series: Series) -> list[Figure]:
    """How local the leading eigenfunctions are: their share by task, and as more of them are counted."""
    made = []
    for kernel, formula in KERNELS.items():
        shares: dict[str, dict[str, list[float]]] = {}
        counted: dict[str, dict[float, list[float]]] = {}
        for label, runs in series.items():
            for run in runs:
                found = find(run.records, Ntk, kernel=kernel, reading="nystrom")
                for record in found:
                    shares.setdefault(label, {}).setdefault(str(record["task"]), []).append(float(record["share"]))
                curves = [r["shares"] for r in found if r.get("shares")]
                for leading, values in enumerate(zip(*curves, strict=False), start=1):
                    counted.setdefault(label, {}).setdefault(leading, []).append(statistics.fmean(values))
        if not shares:
            continue
        drawn = [charts.dots(shares, Axis("share on the task", ".2f"), line=False, ends=(0, 1))]
        if counted:
            half = 0.5, "½: no locality"
            number, share = Axis("leading eigenfunctions counted", "d"), Axis("share, mean over tasks", ".3f")
            drawn.append(charts.curves(counted, number, share, rules=[half]))
        caption = (
            "The part of the local energy of a task's leading eigenfunctions that new images of the "
            "task have, beside images of the control; ½ is none. Above: by task. Below: mean over tasks, by the number "
            "of eigenfunctions." + deviations("Whiskers and bands", series)
        )
        made.append(Figure(f"ntk_{kernel}", f"Locality of the eigenfunctions of {formula}", caption, tuple(drawn)))
    return made

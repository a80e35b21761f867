"""What `config.tune` has tried."""

from __future__ import annotations

from collections.abc import Sequence

from tajax.records import Tuning
from tajax.report.runs import origin
from tajax.report.tables import Number, Table, percent
from tajax.results import Record, find

NOTE = (
    "Mean accuracy over tasks on validation, in %, of the merged model at its best α and of each model on its own task."
)


def tables(records: Sequence[Record]) -> list[Table]:
    """Each candidate with its accuracies; the one that was chosen is marked."""
    found = find(records, Tuning)
    if not found:
        return []
    fields = [*found[0]["settings"]]
    rows = tuple(
        (
            *(f"{r['settings'][field]:g}" for field in fields),
            percent(r["merged_top1"]),
            percent(r["single_top1"]),
            Number(r["seconds"], 0),
            "chosen" if r["chosen"] else "",
        )
        for r in found
    )
    edges = [field.replace("_", " ") for r in found for field in r["at_the_end"]]
    notes = (NOTE, *([f"The best {' and '.join(edges)} is the end of what was tried."] if edges else []))
    names = [field.replace("_", " ") for field in fields]
    return [Table("Tuning", (*names, "merged", "single-task", "seconds", ""), rows, notes, of=origin(records))]

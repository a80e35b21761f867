"""The table of linear-probe heads: what each task's frozen classifier was before anything was fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence

from tajax.records import Head
from tajax.report.runs import origin
from tajax.report.tables import Number, Table, percent
from tajax.results import Record, find


def tables(records: Sequence[Record]) -> list[Table]:
    """The fitted heads of one config; nothing where the heads came from class names."""
    rows = tuple(
        (
            str(head["task"]),
            f"{head['regularization']:g}" + ("" if head["converged"] else " !"),
            Number(head["images"], 0, written=str(head["images"])),
            percent(head["train_top1"]),
            percent(head["val_top1"]),
        )
        for head in find(records, Head)
    )
    if not rows:
        return []
    notes: tuple[str, ...] = (
        "Logistic regression on the pre-trained model's features, frozen afterwards; λ by validation loss.",
        "Columns called zero-shot are of the pre-trained model under these heads.",
    )
    if not all(head["converged"] for head in find(records, Head)):
        notes += ("! the solver stopped before it reached its tolerance.",)
    title = "Linear-probe heads: accuracy of the pre-trained model under them, %"
    return [Table(title, ("task", "λ", "images", "train", "val"), rows, notes, of=origin(records))]

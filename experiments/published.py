"""What others measured with real CLIP, in percent, beside a column for what tajax measures there.

Sources, all on the protocol of Ilharco et al. 2023 with eight tasks: TJ, tau-Jp (Yoshida et al. 2025), tables of its
README; TAK, arXiv 2602.17385; OR, OrthoReg, arXiv 2604.17078; AT, accuracies in JSON published with fredzzhang/atlas.
Careful runs of one method differ between them by 1 to 5 points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tajax.report import Table

MODELS = {"b32": "B/32", "b16": "B/16", "l14": "L/14"}


class Row(NamedTuple):
    """One line of a table: what was measured, by whom, and the figures of each model in the order of `MODELS`."""

    regime: str
    source: str
    figures: tuple[str, str, str]


SINGLE_TASK = (
    Row("zero-shot", "AT", ("48.1", "55.5", "64.9")),
    Row("standard", "AT", ("90.5", "92.0", "94.1")),
    Row("linear", "AT", ("87.3", "89.6", "92.1")),
    Row("attention", "AT", ("89.5", "91.8", "93.8")),
)
"""Mean test accuracy of one model a task."""

ADDITION = (
    Row("zero-shot", "TAK", ("48.4", "55.4", "65.0")),
    Row("standard", "TJ", ("70.4/78.0", "75.5/81.5", "84.0/89.3")),
    Row("standard", "TAK", ("73.5/80.4", "77.0/82.9", "84.5/89.7")),
    Row("linear", "TJ", ("74.3/85.0", "78.7/87.6", "85.8/92.8")),
    Row("linear", "TAK", ("78.8/89.9", "82.0/90.9", "88.0/94.8")),
    Row("attention", "TAK", ("78.2/86.3", "80.4/87.1", "88.2/93.8")),
    Row("attention", "OR", ("78.1/87.0", "80.7/87.6", "87.8/93.6")),
)
"""Absolute / normalised test accuracy of the merged model."""

NEGATION = (
    Row("pre-trained", "TAK", ("48.4/63.3", "55.4/68.3", "65.0/75.5")),
    Row("standard", "TAK", ("20.4/60.5", "20.4/65.3", "18.1/72.4")),
    Row("linear", "TAK", ("9.3/60.5", "8.3/65.5", "7.5/72.1")),
    Row("attention", "OR", ("19.4/64.9", "19.2/67.8", "24.9/76.4")),
)
"""Test accuracy on the negated task, lower is better / on ImageNet, the control."""


def beside_ours(title: str, rows: Sequence[Row], ours: Mapping[tuple[str, str], str]) -> Table:
    """Published figures with a column for each model's of ours.

    Args:
        title: of the table.
        rows: one of the tables above.
        ours: what tajax measured, by model (a key of `MODELS`) and regime; what is missing stays empty.
    """
    columns = tuple(title for model in MODELS.values() for title in (model, f"ours {model}"))
    lines = [
        (
            row.regime,
            row.source,
            *(cell for m, f in zip(MODELS, row.figures, strict=True) for cell in (f, ours.get((m, row.regime), ""))),
        )
        for row in rows
    ]
    return Table(title, ("regime", "source", *columns), tuple(lines), ("Sources: `experiments/published.py`.",))

"""A table of what a workflow has recorded, as it stands: a new one is reported before anybody writes its section."""

from __future__ import annotations

from collections.abc import Sequence

from tajax.questions import QUESTIONS
from tajax.records import Recorded
from tajax.report.runs import origin
from tajax.report.tables import Table, number
from tajax.results import Record, find


def tables(records: Sequence[Record]) -> list[Table]:
    """For each workflow without a section: a row for each record of its stage, a column for each of its numbers."""
    stages = {name: find(records, stage=name) for name, question in QUESTIONS.items() if not question.section}
    return [_table(name, found) for name, found in stages.items() if found]


def _table(stage: str, found: Sequence[Record]) -> Table:
    fields = [name for name in found[0] if name not in Recorded.__annotations__ and all(name in r for r in found)]
    names = [name for name in fields if all(isinstance(r[name], str) for r in found)]
    numbers = [n for n in fields if all(isinstance(r[n], int | float) and not isinstance(r[n], bool) for r in found)]
    whole = {name: all(isinstance(r[name], int) for r in found) for name in numbers}
    rows = tuple(
        (", ".join(r[name] for name in names), *(number(r[name], 0 if whole[name] else 3) for name in numbers))
        for r in found
    )
    title = stage.replace("_", " ").capitalize()
    return Table(title, (", ".join(names), *(name.replace("_", " ") for name in numbers)), rows, of=origin(found))

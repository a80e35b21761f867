"""What examples are called: a run on texts says "texts" where others say "images"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tajax.records import Run
from tajax.report.style import Figure
from tajax.report.tables import Table
from tajax.results import Record, find

Made = TypeVar("Made", Table, Figure)

_IMAGE = re.compile(r"\b([Ii])mage(s?)\b")


def called(records: Iterable[Record]) -> str:
    """What the examples of some runs are called: "texts", of runs on both kinds "examples", otherwise "images".

    Example:
        >>> called([{"stage": "run", "examples": "texts"}]), called([{"stage": "run"}])
        ('texts', 'images')
    """
    kinds = {record.get("examples", "images") for record in find(records, Run)}
    return "examples" if len(kinds) > 1 else (kinds or {"images"}).pop()


def fitting(made: Iterable[Made], records: Sequence[Record]) -> list[Made]:
    """Tables or figures of these records, whose titles, columns, captions and notes call examples what they are."""
    what = called(records)
    return list(made) if what == "images" else [_named(one, what) for one in made]


def _named(one: Made, what: str) -> Made:
    if isinstance(one, Table):
        columns, notes = (tuple(_in_words(text, what) for text in texts) for texts in (one.columns, one.notes))
        return one._replace(title=_in_words(one.title, what), columns=columns, notes=notes)
    return one._replace(title=_in_words(one.title, what), caption=_in_words(one.caption, what))


def _in_words(text: str, what: str) -> str:
    """A sentence about images as one about `what`.

    Example:
        >>> _in_words("The first test image of 12 images", "texts"), _in_words("Images: many", "examples")
        ('The first test text of 12 texts', 'Examples: many')
    """
    one = what.removesuffix("s")

    def word(found: re.Match[str]) -> str:
        told = one + found[2]
        return told.capitalize() if found[1] == "I" else told

    return _IMAGE.sub(word, text)

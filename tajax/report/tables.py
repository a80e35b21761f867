"""A table of strings, and its two renderings: for the terminal and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

WIDTH = 100  # columns of plain text
RULED = box.Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)  # lines below head and above means


class Table(NamedTuple):
    """A table of strings: what both renderings start from.

    Attributes:
        title: one line.
        columns: titles; the first column holds names, the others numbers.
        rows: as many strings in each as there are columns.
        notes: lines below.
        means: how many rows at the end summarise those above.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    means: int = 0


def show(tables: Iterable[Table], *, file: TextIO | None = None) -> None:
    """Prints tables, with colour in a terminal, elsewhere as plain text of at most `WIDTH` columns."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=WIDTH)
    for table in tables:
        console.print(Text(table.title, "bold"))
        grid = RichTable(box=RULED, pad_edge=False)
        grid.add_column(table.columns[0], overflow="fold")
        for column in table.columns[1:]:
            grid.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
        for index, row in enumerate(table.rows):
            if index == len(table.rows) - table.means:
                grid.add_section()
            grid.add_row(*map(Text, row))
        console.print(grid)
        for note in table.notes:
            console.print(Text(note))
        console.print()


def markdown(tables: Iterable[Table]) -> str:
    """The same tables as Markdown."""
    parts = []
    for table in tables:
        lines = [f"## {table.title}", "", _row(table.columns)]
        lines.append(_row(("---", *("---:" for _ in table.columns[1:]))))
        bold = len(table.rows) - table.means
        lines += [_row(r if i < bold else [f"**{cell}**" for cell in r]) for i, r in enumerate(table.rows)]
        lines += ["", *(f"- {note}" for note in table.notes), ""] if table.notes else [""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def averaged(tables: Sequence[Table], title: str) -> Table:
    """Tables of the same rows and columns as one: of numbers mean ± sample standard deviation, of words what is common.

    Args:
        tables: of runs that differ in their seed.
        title: of the one.

    Example:
        >>> averaged([Table("", ("task", "top1"), (("a", n),)) for n in ("1.0", "3.0")], "both").rows
        (('a', '2.0±1.4'),)
    """
    rows = tuple(
        tuple(_averaged(cells) for cells in zip(*same, strict=True))
        for same in zip(*(table.rows for table in tables), strict=True)
    )
    notes = tuple(note for note in tables[0].notes if all(note in table.notes for table in tables))
    notes += (f"Mean ± sample standard deviation over {len(tables)} seeds, of numbers rounded as written.",)
    return Table(title, tables[0].columns, rows, notes, tables[0].means)


def _averaged(cells: Sequence[str]) -> str:
    if len(set(cells)) == 1:
        return cells[0]
    try:
        values = [float(cell.replace(",", "")) for cell in cells]
    except ValueError:
        return "–"
    return spread(values, max(len(cell.partition(".")[2]) for cell in cells))


def percent(fraction: float | None) -> str:
    """A fraction in percent with one decimal; a dash for what was not measured.

    Example:
        >>> percent(0.875), percent(None)
        ('87.5', '–')
    """
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation; of one value, the value.

    Example:
        >>> spread([1.0, 3.0], 1), spread([0.15], 2)
        ('2.0±1.4', '0.15')
    """
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean}±{statistics.stdev(values):.{digits}f}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in map(_line, cells)) + " |"


def _line(text: str) -> str:
    return " ".join(text.split())

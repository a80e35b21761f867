"""A table of strings, its renderings for the terminal and as Markdown, and the mean of several over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

WIDTH = 100  # columns of plain text
RULED = box.Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)  # lines below head and above means


class Table(NamedTuple):
    """A table of strings: what all renderings start from.

    Attributes:
        title: what is shown, and in which unit; one line.
        columns: titles; the first column holds names, the others numbers.
        rows: as many strings in each as there are columns. Those of `Number` can be averaged.
        notes: lines below.
        means: how many rows at the end summarise those above.
        of: the run that it is of, or the runs; left out where the page says it.
        best: numbers of the rows that are best, where rows are what is compared.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    means: int = 0
    of: str = ""
    best: tuple[int, ...] = ()

    @property
    def heading(self) -> str:
        """The title, and of what."""
        return f"{self.title}: {self.of}" if self.of else self.title


class Number(str):
    """A number as a cell shows it, which remembers what it was: means over seeds are of what was measured.

    Example:
        >>> Number(2 / 3, 2), Number(2 / 3, 2).value, Number(0.1, 2, written="0.1 !")
        ('0.67', 0.6666666666666666, '0.1 !')
    """

    value: float
    digits: int

    def __new__(cls, value: float, digits: int, *, written: str | None = None) -> Number:
        """A cell.

        Args:
            value: the number.
            digits: after the point, of the number and of means of such.
            written: the cell, if it is not the number with so many digits.
        """
        made = super().__new__(cls, f"{value:,.{digits}f}" if written is None else written)
        made.value, made.digits = float(value), digits
        return made


def show(tables: Iterable[Table], *, file: TextIO | None = None) -> None:
    """Prints tables, with colour in a terminal, elsewhere as plain text of at most `WIDTH` columns.

    A table that is wider goes on below with its next columns beside the first.
    """
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=WIDTH)
    parts: list[RenderableType] = []
    for table in tables:
        grids = [_grid(table, columns, console.width) for columns in _blocks(table, console)]
        parts += [Text(table.heading, "bold"), *grids, *map(Text, table.notes), Text()]
    console.print(Group(*parts))  # at once: in a notebook they are one output


def _blocks(table: Table, console: Console) -> Iterator[list[int]]:
    """Numbers of columns, without the first, that fit beside it."""
    endless = console.options.update(width=10**6, max_width=10**6)
    block: list[int] = []
    for column in range(1, len(table.columns)):
        wider = [*block, column]
        if block and console.measure(_grid(table, wider, console.width), options=endless).maximum > console.width:
            words = [table.columns[n].partition(" ")[0] for n in wider]  # those that begin alike stay together
            begin = max((n for n in range(1, len(wider)) if words[n] != words[n - 1]), default=len(block))
            if words.count(words[begin - 1]) < 2:
                begin = len(block)
            yield wider[:begin]
            wider = wider[begin:]
        block = wider
    yield block


def _grid(table: Table, columns: Sequence[int], width: int) -> RichTable:
    grid = RichTable(box=RULED, pad_edge=False)
    grid.add_column(table.columns[0], overflow="fold", max_width=max(12, 2 * width // 5))
    for column in columns:
        grid.add_column(table.columns[column].replace(" ", "\n"), justify="right", no_wrap=True)
    for index, row in enumerate(table.rows):
        if index == len(table.rows) - table.means:
            grid.add_section()
        style = "bold" if index in table.best else None
        grid.add_row(Text(row[0]), *(Text(row[column]) for column in columns), style=style)
    return grid


def markdown(tables: Iterable[Table], *, notices: Sequence[str] = ()) -> str:
    """The same tables as Markdown, below what a reader must know before."""
    parts = [*(f"> {_line(notice).replace('<', '&lt;')}\n" for notice in notices)]
    for table in tables:
        lines = [f"## {_line(table.heading)}", "", _row(table.columns)]
        lines.append(_row(("---", *("---:" for _ in table.columns[1:]))))
        bold = {*range(len(table.rows) - table.means, len(table.rows)), *table.best}
        lines += [_row([f"**{cell}**" for cell in r] if i in bold else r) for i, r in enumerate(table.rows)]
        lines += ["", *(f"- {note}" for note in table.notes), ""] if table.notes else [""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def averaged(tables: Sequence[Table], *, seeds: Sequence[object] = (), of: str = "") -> Table:
    """Tables of runs that differ in their seed as one: of numbers mean ± sample standard deviation.

    Rows and columns are matched by their titles. A cell that some of the runs have not reached is of the others, and
    says of how many; of words what is common is kept.

    Args:
        tables: of the runs.
        seeds: of the runs, for the note.
        of: what the table is of.

    Example:
        >>> averaged([Table("", ("task", "top1"), (("a", Number(n, 1)),)) for n in (1, 3)]).rows
        (('a', '2.0±1.4'),)
    """
    fullest = max(tables, key=lambda table: len(table.columns) * len(table.rows))
    rows = [_keyed(table) for table in tables]
    few = False
    body = []
    for name in _keyed(fullest):
        found = [keyed[name] for keyed in rows if name in keyed]
        cells = ([row.get(column, MISSING) for row in found] for column in fullest.columns[1:])
        reached = [[cell for cell in of_column if cell != MISSING] for of_column in cells]
        few |= any(0 < len(of_column) < len(tables) for of_column in reached)
        line = [_averaged(of_column, len(tables)) for of_column in reached]
        body.append((name[0], *line))
    notes = tuple(note for note in fullest.notes if all(note in table.notes for table in tables))
    named = f"the seeds {', '.join(map(str, seeds))}" if seeds else f"{len(tables)} seeds"
    notes += (f"Mean ± sample standard deviation over {named}.",)
    notes += ("(n): of n of these runs; the others have not reached it.",) if few else ()
    return Table(fullest.title, fullest.columns, tuple(body), notes, fullest.means, of)


MISSING = "–"  # the cell of what was not measured


def _keyed(table: Table) -> dict[tuple[str, int], dict[str, str]]:
    """Rows by name and, of equal names, by which of them; cells by the title of their column."""
    keyed: dict[tuple[str, int], dict[str, str]] = {}
    for name, *cells in table.rows:
        number = sum(known == name for known, _ in keyed)
        keyed[name, number] = dict(zip(table.columns[1:], cells, strict=True))
    return keyed


def _averaged(cells: Sequence[str], runs: int) -> str:
    if not cells:
        return MISSING
    numbers = [cell for cell in cells if isinstance(cell, Number)]
    digits = max((number.digits for number in numbers), default=0)
    if len(set(cells)) == 1 and (not digits or runs == 1):
        mean = cells[0]  # words, and counts that are the same
    elif len(numbers) < len(cells):
        return MISSING
    else:
        values = [number.value for number in numbers]
        mean = spread(values, digits)
    return mean if len(cells) == runs else f"{mean} ({len(cells)})"


def number(value: float | None, digits: int) -> str:
    """A number with so many digits after the point; a dash for what was not measured."""
    return MISSING if value is None else Number(value, digits)


def coefficient(value: float | None, mark: str = "") -> str:
    """A coefficient without zeros at its end, and of means two digits; a dash for what was not chosen.

    Example:
        >>> coefficient(0.3), coefficient(0.05, " !"), coefficient(None)
        ('0.3', '0.05 !', '–')
    """
    return MISSING if value is None else Number(value, 2, written=f"{value:g}{mark}")


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """The mean; None where a value is missing, or there is none.

    Example:
        >>> mean_of_all([1.0, 2.0]), mean_of_all([1.0, None]), mean_of_all([])
        (1.5, None, None)
    """
    values = list(values)
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there and len(there) == len(values) else None


def percent(fraction: float | None) -> str:
    """A fraction in percent with one decimal; a dash for what was not measured.

    Example:
        >>> percent(0.875), percent(None)
        ('87.5', '–')
    """
    return MISSING if fraction is None else Number(100 * fraction, 1)


def with_best(table: Table, column: str, *, lowest: bool = False) -> Table:
    """A table whose best rows are marked, and a note that names them: those whose number in a column is the highest.

    Rows that are equal as they are written are equally good; of all equal rows, and of one alone, none is the best.

    Args:
        table: a row for each of what is compared.
        column: title of the column; cells that are no `Number` are out of the comparison.
        lowest: whether the lowest is the best.

    Example:
        >>> rows = (("a", Number(0.21, 1)), ("b", Number(0.54, 1)), ("c", "–"))
        >>> marked = with_best(Table("t", ("regime", "merged"), rows), "merged")
        >>> marked.best, marked.notes
        ((1,), ('Best row, by the highest merged: b.',))
    """
    place = table.columns.index(column)
    cells = ((number, row[place]) for number, row in enumerate(table.rows))
    written = {n: round(cell.value, cell.digits) for n, cell in cells if isinstance(cell, Number)}
    if len(set(written.values())) < 2:
        return table
    end = (min if lowest else max)(written.values())
    best = tuple(n for n, value in written.items() if value == end)
    rows, end_in_words = "row" if len(best) == 1 else "rows", "lowest" if lowest else "highest"
    note = f"Best {rows}, by the {end_in_words} {column}: {', '.join(table.rows[n][0] for n in best)}."
    return table._replace(notes=(*table.notes, note), best=best)


def spread(values: Sequence[float], digits: int) -> Number:
    """Mean ± sample standard deviation; of one value, the value.

    Example:
        >>> spread([1.0, 3.0], 1), spread([0.15], 2)
        ('2.0±1.4', '0.15')
    """
    mean = statistics.fmean(values)
    written = f"{mean:.{digits}f}" + (f"±{statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")
    return Number(mean, digits, written=written)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in map(_line, cells)) + " |"


def _line(text: str) -> str:
    return " ".join(text.split())

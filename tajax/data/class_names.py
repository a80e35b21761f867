"""Names of classes: the order of class directories, names from a text file, and names that differ in prompts.

A label is the place of its class in an order. So the order is stated once, here, and names that people give
either say which class they mean or are looked at for signs of another order.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tajax import text_files
from tajax.data.contents import some
from tajax.data.prompts import readable

FILE = "class_names.txt"
FORM = "a line directory<TAB>name for each class"
"""The form of `FILE` that cannot be put in a wrong order, for messages."""


class Given(NamedTuple):
    """Names from a text file.

    Attributes:
        names: index = label.
        by_position: the file has names alone, in the order of the labels.
    """

    names: tuple[str, ...]
    by_position: bool


def in_order(directories: Iterable[str], where: object, *, what: str = "class directories") -> list[str]:
    """Class directories, or labels, in the order of their labels: as numbers if all are whole numbers, else as text.

    Raises:
        ValueError: two are the same number.

    Example:
        >>> in_order(["10", "9", "011"], "digits"), in_order(["n10", "n9"], "digits")
        (['9', '10', '011'], ['n10', 'n9'])
    """
    names = sorted(directories)
    if not all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return names
    names.sort(key=int)
    for before, after in zip(names, names[1:], strict=False):
        if int(before) == int(after):
            raise ValueError(f"{what} {before!r} and {after!r} of {where} are the same number; rename one")
    return names


def order_is_doubtful(directories: Sequence[str]) -> bool:
    """Whether people may list the directories in another order: numbers in names as numbers, capitals among the rest.

    Example:
        >>> order_is_doubtful(["class_1", "class_10", "class_2"]), order_is_doubtful(["class_01", "class_10"])
        (True, False)
    """

    def natural(name: str) -> list[tuple[int, str]]:
        parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
        return [(int(part), "") if part[0] in "0123456789" else (-1, part) for part in parts]

    return list(directories) != sorted(directories, key=natural)


def doubts(given: Given | None, stored: Sequence[str], what: str = "directories") -> tuple[str, ...]:
    """A warning, if names that were given by their order may have been written in another."""
    if given is None or not given.by_position or not order_is_doubtful(stored):
        return ()
    return (
        f"{FILE} has names alone, for the {what} in the order {some(stored)}; if it was written in another order, "
        f"classes are misnamed. Better is {FORM}",
    )


def plain(name: str) -> str:
    """A name without what people and file systems change in it: case, underscores, slashes, hyphens, quotes."""
    return " ".join(re.findall(r"[^\W_]+", readable(name).casefold()))


def read(path: Path, stored: Sequence[str], *, what: str = "class directory") -> Given | None:
    """The names in a text file, or None if there is no such file.

    Each line is a name, in the order of `stored`; or each is `stored<TAB>name`, in any order. Empty lines do not count.

    Args:
        path: of the file.
        stored: the names they replace, index = label.
        what: what these are, for messages.

    Raises:
        ValueError: the file cannot be read; the numbers of names differ; lines of both forms; a line that names no
            class, or one that has been named; a name in the place of another class that is called so.
    """
    if not os.path.lexists(path):
        return None
    lines = [(number, line.strip()) for number, line in enumerate(text_files.read(path).split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line]
    pairs = [number for number, line in lines if "\t" in line]
    if pairs and len(pairs) < len(lines):
        number, line = next((number, line) for number, line in lines if "\t" not in line)
        raise ValueError(
            f"{path}, line {number} is {line!r}, without a tab, and line {pairs[0]} has one. Give all lines or none "
            "the form directory<TAB>name"
        )
    if pairs:
        return Given(_by_directory(lines, stored, path, what), by_position=False)
    return Given(_by_position(lines, stored, path), by_position=True)


def _by_position(lines: Sequence[tuple[int, str]], stored: Sequence[str], path: Path) -> tuple[str, ...]:
    if len(lines) != len(stored):
        raise ValueError(
            f"{path} has {len(lines)} names, one a line, for {len(stored)} classes ({stored[0]!r} to {stored[-1]!r}). "
            f"Better than names in an order is {FORM}."
        )
    of = {word: directory for directory in stored if (word := plain(directory))}
    for (number, name), directory in zip(lines, stored, strict=True):
        other = of.get(plain(name), directory)
        if plain(other) != plain(directory):
            raise ValueError(
                f"{path}, line {number}: {name!r} would name the class {directory!r}, and {other!r} is another class. "
                f"The order is that of the labels, {some(stored)}. Better give {FORM}."
            )
    return tuple(name for _, name in lines)


def _by_directory(lines: Sequence[tuple[int, str]], stored: Sequence[str], path: Path, what: str) -> tuple[str, ...]:
    found: dict[str, tuple[int, str]] = {}
    known = {directory.strip(): directory for directory in stored}
    for number, line in lines:
        directory, _, name = (part.strip() for part in line.partition("\t"))
        if directory not in known:
            near = difflib.get_close_matches(directory, stored, n=1, cutoff=0.0)
            raise ValueError(
                f"{path}, line {number}: {directory!r} is not a {what}. The nearest is {near[0]!r}; there are "
                f"{len(stored)}: {some(stored)}"
            )
        directory = known[directory]
        if directory in found:
            raise ValueError(f"{path}, lines {found[directory][0]} and {number} both name the class {directory!r}")
        found[directory] = number, name
    absent = [directory for directory in stored if directory not in found]
    if absent:
        raise ValueError(f"{path} has no line for {len(absent)} of {len(stored)} classes: {some(absent)}")
    return tuple(found[directory][1] for directory in stored)


def check(class_names: Sequence[str], where: str) -> tuple[str, ...]:
    """Class names as they stand in prompts, each once.

    Raises:
        ValueError: two classes would get the same prompt, so that no head could tell them apart.
    """
    names = tuple(readable(name) for name in class_names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"classes of {where} share a name, so no prompt can tell them apart: {', '.join(twice[:5])}")
    return names

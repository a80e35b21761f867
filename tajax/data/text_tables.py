"""Tasks of texts that lie in tables: .csv, .tsv and .jsonl files, a row a text, and folders with one for each split."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tajax import text_files
from tajax.data import class_names, draws
from tajax.data.contents import SPLIT_NAMES, Contents, check_splits, missing, some
from tajax.data.folders import TEST_SHARE
from tajax.data.sources import Source, TextSource

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*_DELIMITERS, ".jsonl")
_LONGEST = 300  # characters of a label, which is a name or a number
_QUOTES = "A cell that begins with a quote ends at the next one; a quote inside of it is written twice"


class Columns(NamedTuple):
    """Which columns of a table are meant.

    Attributes:
        text: what is read.
        label: the name of the class, or its number.
        split: of a single file, which split a row belongs to; None: `split`, if there is such a column.
    """

    text: str = "text"
    label: str = "label"
    split: str | None = None


class _Row(NamedTuple):
    path: Path
    line: int
    text: str
    label: str
    split: str | None

    @property
    def place(self) -> str:
        return f"{self.path}, line {self.line}"


class _Table(NamedTuple):
    """What was read of a file, and the columns that were not."""

    rows: list[_Row]
    unread: list[str]


def chosen_columns(choice: str | None, entry: str) -> dict[str, str]:
    """The columns that are named behind the # of an entry, by the names of `Columns`.

    Raises:
        ValueError: what stands there names none. The message has the form.

    Example:
        >>> chosen_columns("text=review,label=stars", "reviews.csv#text=review,label=stars")
        {'text': 'review', 'label': 'stars'}
    """
    found: dict[str, str] = {}
    for part in () if choice is None else choice.split(","):
        key, _, column = (word.strip() for word in part.partition("="))
        if key not in Columns._fields or not column or key in found or column in found.values():
            raise ValueError(
                f"{entry!r}: {part!r} chooses no column. Behind # stand text=COLUMN, label=COLUMN and split=COLUMN, "
                "any of them, each once, with commas between: reviews.csv#text=review,label=stars"
            )
        found[key] = column
    return found


def files_of_splits(folder: Path) -> dict[str, list[str]]:
    """Of each split that there is, the tables in a folder that bear a name of it: `train.csv`, `Test.jsonl`, …."""
    names = sorted(path.name for path in folder.iterdir() if is_table(path) and path.is_file())
    found = {
        split: [name for name in names if Path(name).stem.lower() in called] for split, called in SPLIT_NAMES.items()
    }
    return {split: names for split, names in found.items() if names}


def has_splits(folder: Path) -> bool:
    """Whether a folder has tables for train and for test, as `open_folder` takes them."""
    found = files_of_splits(folder) if folder.is_dir() else {}
    return "train" in found and ("test" in found or "val" in found)


def is_table(path: Path) -> bool:
    """Whether a file is called as tables are."""
    return path.suffix.lower() in SUFFIXES


def open_file(path: Path, columns: Columns) -> Contents:
    """The texts of one table: a .csv or .tsv file whose first line names its columns, or JSON objects, one a line.

    A column `split`, if there is one, says which split a row belongs to, by the names of `SPLIT_NAMES`; without one,
    `TEST_SHARE` of the texts of each class is the test split, by a hash of the text, which is the same everywhere and
    in any order of the rows. Equal texts of a class stay together.

    Labels are names of classes or whole numbers: classes are in the order of `class_names.in_order`. A file
    `class_names.txt` beside the table replaces the labels in prompts (`class_names.read`).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no such table; it lacks a column; a row without a text or a label, or with another number of
            cells; a split of another name; a label that train has not. The message has the line.
    """
    rows, unread = _read(path, columns, divided=True)
    divided = rows[0].split is not None
    test_cut, warnings = None, _unread(path, unread)
    if divided:
        splits: dict[str, list[_Row]] = defaultdict(list)
        for row in rows:
            splits[str(row.split)].append(row)
        if "test" not in splits and "val" in splits:
            splits["test"] = splits.pop("val")
        lacking = [split for split in ("train", "test") if split not in splits]
        if lacking:
            column = columns.split or "split"
            raise ValueError(f"column {column!r} of {path} has no row of {' and '.join(lacking)}")
    else:
        splits = _cut(rows, path)
        test_cut = {"seed": draws.CUT_SEED, "count": len(splits["test"])}
        warnings.append(
            f"without a column that says the split, {len(splits['test']):,} of {len(rows):,} texts, {TEST_SHARE:.0%} "
            f"of each class, are the test split (by a hash of each, seed {draws.CUT_SEED})"
        )
    return _contents(splits, path, path.parent / class_names.FILE, warnings)._replace(test_cut=test_cut)


def open_folder(folder: Path, columns: Columns) -> Contents:
    """The texts of a folder with a table a split: `train.csv`, `test.csv` and, if there is one, `val.csv`.

    They may be .tsv or .jsonl files, and have the other names of `SPLIT_NAMES`. Where there is no test file, val is the
    test split. Labels and `class_names.txt` are as in `open_file`.

    Raises:
        ValueError: as in `open_file`; two files of one split; a column `split` was chosen.
    """
    found = files_of_splits(folder)
    if twice := {split: names for split, names in found.items() if len(names) > 1}:
        split, names = next(iter(twice.items()))
        raise ValueError(f"folder {folder} has {' and '.join(names)}, which are both the {split} split; keep one")
    if columns.split is not None:
        raise ValueError(f"folder {folder} has a file a split, and split={columns.split} chooses a column for them")
    files = {split: folder / names[0] for split, names in found.items()}
    if "test" not in files and "val" in files:
        files["test"] = files.pop("val")
    splits: dict[str, list[_Row]] = {}
    warnings: list[str] = []
    for split, path in files.items():
        splits[split], unread = _read(path, columns, divided=False)
        warnings += _unread(path, unread)
    used = {class_names.FILE, *(path.name for path in files.values())}
    if left_out := sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name not in used):
        warnings.append(f"{len(left_out)} entries of {folder} are not read: {some(left_out)}")
    return _contents(splits, folder, folder / class_names.FILE, warnings)


def _contents(splits: Mapping[str, Sequence[_Row]], where: Path, names_file: Path, warnings: list[str]) -> Contents:
    stored = class_names.in_order({row.label for row in splits["train"]}, where, what="labels")
    sources: dict[str, Source] = {
        split: _source(splits[split], stored, where) for split in ("train", "val", "test") if split in splits
    }
    given = class_names.read(names_file, stored, what="label")
    contents = Contents(tuple(stored), sources, warnings=(*warnings, *class_names.doubts(given, stored, "labels")))
    check_splits(contents, str(where))
    return contents._replace(class_names=given.names) if given else contents


def _source(rows: Sequence[_Row], stored: Sequence[str], where: Path) -> TextSource:
    number = {label: index for index, label in enumerate(stored)}
    for row in rows:
        if row.label not in number:
            raise ValueError(
                f"{row.place}: no row of train has the label {row.label!r}. {_near(row.label, stored)}Those of train: "
                f"{some(stored)}"
            )
    labels = np.array([number[row.label] for row in rows], np.int32)
    return TextSource([row.text for row in rows], labels, str(where), places=[row.place for row in rows])


def _cut(rows: Sequence[_Row], path: Path) -> dict[str, list[_Row]]:
    """Rows for train and for test: of each class, the texts with the lowest hashes are tested."""
    texts: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        texts[row.label].add(row.text)
    if single := sorted(label for label, found in texts.items() if len(found) == 1):
        raise ValueError(
            f"{path} has no column that says the split, and one text cannot be divided between train and test: "
            f"{some(single)}. Add texts, or a column 'split' with train and test."
        )
    tested = set()
    for label, found in texts.items():
        order = sorted(found, key=lambda text: hashlib.sha256(b"%d\0%b" % (draws.CUT_SEED, text.encode())).digest())
        tested |= {(label, text) for text in order[: max(1, round(TEST_SHARE * len(order)))]}
    splits: dict[str, list[_Row]] = {"train": [], "test": []}
    for row in rows:
        splits["test" if (row.label, row.text) in tested else "train"].append(row)
    return splits


def _unread(path: Path, columns: Sequence[str]) -> list[str]:
    return [f"{len(columns)} columns of {path} are not read: {some(columns)}"] if columns else []


def _read(path: Path, columns: Columns, *, divided: bool) -> _Table:
    """The rows of a file, each with its split if `divided` and a column says it; at least one."""
    if not path.exists() and not path.is_symlink():
        raise missing(path, "file")
    content = text_files.read(path)
    delimiter = _DELIMITERS.get(path.suffix.lower())
    table = _lines_of_json(path, content) if delimiter is None else _lines_of_cells(path, content, delimiter)
    rows: list[_Row] = []
    known: list[str] = []
    for line, found in table:
        place = f"{path}, line {line}"
        if not rows:
            known = list(found)
            if divided and columns.split is None and "split" in found:
                columns = columns._replace(split="split")
        wanted = [column for column in (columns.text, columns.label, columns.split) if column is not None]
        for column in wanted:
            if column not in found:
                raise ValueError(_lacks(column, found, path, line if delimiter is None else 1))
        text, label = found[columns.text], _label(found[columns.label], f"{place}, column {columns.label!r}")
        if not isinstance(text, str):
            raise ValueError(f"{place}: column {columns.text!r} is {_shown(text)}, and no text")
        _check_letters(text, f"{place}, column {columns.text!r}")
        split = None if columns.split is None else _split(found[columns.split], f"{place}, column {columns.split!r}")
        rows.append(_Row(path, line, text, label, split))
    if not rows:
        what = (
            "JSON objects, one a line" if delimiter is None else "the names of its columns in the first line, then rows"
        )
        raise ValueError(f"{path} has no rows. Expected: {what}")
    return _Table(rows, [column for column in known if column not in columns])


def _lines_of_cells(path: Path, content: str, delimiter: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Each row below the first as a record, and the line in which it begins."""
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: {error}. {_QUOTES}.") from error
        if cells is None:
            return
        if not cells:  # an empty line
            continue
        if not header:
            header = [name.strip() for name in cells]
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise ValueError(f"{path}, line {line} names columns twice: {some(list(map(repr, twice)))}")
            continue
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, line {line} has {len(cells)} cells, and the first line names {len(header)} columns: "
                f"{some(header)}. Cells with {'commas' if delimiter == ',' else 'tabs'} in them stand in quotes."
            )
        if delimiter == "\t" and any("\t" in cell and "\n" in cell for cell in cells):
            raise ValueError(f"{path}, line {line}: a cell in quotes goes on over tabs and lines. {_QUOTES}.")
        yield line, dict(zip(header, cells, strict=True))


def _lines_of_json(path: Path, content: str) -> Iterator[tuple[int, dict[str, object]]]:
    for line, text in enumerate(content.split("\n"), start=1):
        if not text.strip():
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {line} is not JSON: {error}. Each line is an object of its own.") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path}, line {line} is {_shown(found)}, and no JSON object with a text and a label")
        yield line, found


def _label(value: object, place: str) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"{place}: the label is {_shown(value)}; expected a name or a whole number")
    label = str(value).strip()
    if not label:
        raise ValueError(f"{place}: there is no label")
    if len(label) > _LONGEST or "\n" in label:
        raise ValueError(f"{place}: a label of {len(label):,} characters, {_shown(label)}; expected a name or a number")
    _check_letters(label, place)
    return label


def _split(value: object, place: str) -> str:
    for split, names in SPLIT_NAMES.items():
        if isinstance(value, str) and value.strip().lower() in names:
            return split
    choices = ", ".join(name for called in SPLIT_NAMES.values() for name in called)
    raise ValueError(f"{place}: {_shown(value)} is no split; choose from {choices}")


def _check_letters(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: character {error.start} is half of one (\\u{ord(text[error.start]):x})") from error


def _shown(value: object) -> str:
    words = repr(value)
    return words if len(words) < 60 else f"{words[:60]}…"


def _lacks(column: str, found: Mapping[str, object], path: Path, line: int) -> str:
    names = list(found)
    parted = any(mark in name for name in names for mark in (";", "\t", "|"))
    hint = " Cells are parted by commas in .csv files and by tabs in .tsv files." if parted and len(names) == 1 else ""
    return (
        f"{path}, line {line} has no column {column!r}. {_near(column, names)}It has: "
        f"{', '.join(map(repr, names[:20]))}. Others are chosen by {path.name}#text=COLUMN,label=COLUMN.{hint}"
    )


def _near(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    return f"Did you mean {near[0]!r}? " if near else ""

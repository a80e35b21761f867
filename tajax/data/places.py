"""Where a task lies that is not in the table: at a path, under its name in the data directory, or in TFDS."""

from __future__ import annotations

import os
from pathlib import Path

from tajax.data import catalog, folders, npz_files, text_tables
from tajax.data.contents import Contents

SUFFIXES = (".npz", *text_tables.SUFFIXES)


def split_choice(entry: str, data_dir: Path) -> tuple[str, str | None]:
    """An entry, and which columns it chooses: what follows the last `#`, None without one.

    What exists as it is spelled wins over a choice.
    """
    name, mark, choice = entry.rpartition("#")
    if not mark or os.path.lexists(os.path.expanduser(entry)) or kept(entry, data_dir):
        return entry, None
    return name, choice


def is_path(name: str) -> bool:
    """Whether a name is written as a path: with ./, / or ~ in front, or the suffix of a file that is read."""
    return name.startswith((".", "~", os.sep)) or name.lower().endswith(SUFFIXES)


def kept(name: str, data_dir: Path) -> Path | None:
    """What the data directory has under a name: `NAME.npz`, a table, or a folder `NAME` with train and test.

    Raises:
        ValueError: it has several.
    """
    if not name or is_path(name):
        return None
    files = [path for suffix in SUFFIXES if (path := data_dir / f"{name}{suffix}").is_file()]
    folder = data_dir / name
    found = files + [folder] * (folders.has_splits(folder) or text_tables.has_splits(folder))
    if len(found) > 1:
        names = [path.name + "/" * path.is_dir() for path in found]
        raise ValueError(
            f"{data_dir} has {' and '.join(names)}, which are both the task {name!r}; keep one, or give its path"
        )
    return found[0] if found else None


def find(name: str, data_dir: Path) -> Path | str | None:
    """The path of a task, which need not exist if its name is written as one; or the name itself, if TFDS knows it.

    In this order: a file that is read, what the data directory has (`kept`), TFDS, a folder; None: nothing is there.

    Raises:
        ValueError: the data directory has several tasks of that name.
    """
    path = Path(os.path.expanduser(name))
    if path.suffix == ".npz" or (text_tables.is_table(path) and not path.is_dir()):
        return path
    if not path.exists() and (there := kept(name, data_dir)):
        return there
    if catalog.exists(name, data_dir) and not path.is_absolute():
        return name
    return path if path.exists() or is_path(name) else None


def open_place(path: Path, choice: str | None, entry: str) -> Contents:
    """What lies at a path.

    Args:
        path: as `find` gives it.
        choice: columns of tables of texts, as they stand behind the # of an entry; None: the usual ones.
        entry: for messages.

    Raises:
        ValueError: it is no task; columns are chosen where there are none.
        FileNotFoundError: there is nothing.
    """
    chosen = text_tables.chosen_columns(choice, entry)
    if text_tables.is_table(path) and not path.is_dir():
        return text_tables.open_file(path, text_tables.Columns(**chosen))
    if text_tables.has_splits(path) and not folders.has_images(path):
        return text_tables.open_folder(path, text_tables.Columns(**chosen))
    if chosen:
        raise ValueError(
            f"{entry!r} chooses columns, which {path} has not: they are of .csv, .tsv and .jsonl files, and of folders "
            "with train.csv and test.csv"
        )
    return npz_files.open_npz(path) if path.suffix == ".npz" else folders.open_folder(path)

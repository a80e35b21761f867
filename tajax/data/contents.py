"""What a place holds that may be a task, before a validation split is cut, and what any such place must be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tajax.data.sources import Source, what_of

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What each split may be called in folders and tables, in any case, and in .npz files."""
_LISTED = 5  # names in a message


class Contents(NamedTuple):
    """What a place holds, before a validation split is cut.

    Attributes:
        class_names: as stored, index = label.
        splits: "train", "test", and "val" if there is one.
        templates: if the place brings its own.
        test_cut: `seed` and `count` of a test split that was cut here; None: the place brings one.
        warnings: what was left out or is doubtful, a line each.
    """

    class_names: tuple[str, ...]
    splits: dict[str, Source]
    templates: tuple[str, ...] | None = None
    test_cut: dict[str, int] | None = None
    warnings: tuple[str, ...] = ()


def some(names: Sequence[object]) -> str:
    """The first few of many, for a message."""
    return ", ".join(map(str, names[:_LISTED])) + (", …" if len(names) > _LISTED else "")


def missing(path: Path, what: str) -> FileNotFoundError:
    """The error for a path that does not exist, with similar names in the nearest directory that does."""
    there = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(entry.name for entry in there.iterdir() if not entry.name.startswith("."))
    first_absent = path.absolute().relative_to(there).parts[0]
    near = difflib.get_close_matches(first_absent, names, n=3) or names[:5]
    return FileNotFoundError(f"{what} {path} does not exist. {there} has: {', '.join(near) if near else 'nothing'}")


def check_labels(labels: np.ndarray, class_names: Sequence[str], where: str) -> None:
    """Every label is the index of a class.

    Raises:
        ValueError: some are not. The message says how many, which values, and where the first stands.
    """
    outside = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(outside):
        values = ", ".join(str(value) for value in np.unique(labels[outside])[:5])
        raise ValueError(
            f"{len(outside)} of the {len(labels)} labels of {where} lie outside the {len(class_names)} classes "
            f"(0 to {len(class_names) - 1}): {values}. First at index {outside[0]}."
        )


def check_splits(contents: Contents, where: str) -> None:
    """No split is empty, and no class is tested that was never trained.

    Raises:
        ValueError: naming the split and the classes.
    """
    what = what_of(contents.splits["train"])
    for split, source in contents.splits.items():
        if not len(source):
            raise ValueError(f"split {split!r} of {where} is empty: it has no {what}")
    trained = contents.splits["train"].labels
    for split, source in contents.splits.items():
        if trained is None or source.labels is None:
            continue  # records of TFDS, whose labels are only known when read
        absent = sorted(set(source.labels.tolist()) - set(trained.tolist()))
        if absent:
            raise ValueError(
                f"{len(absent)} classes of split {split!r} of {where} have no training {what[:-1]}: "
                f"{some([repr(contents.class_names[label]) for label in absent])}. Add {what} to train, or remove the "
                "classes."
            )

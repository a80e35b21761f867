"""Whether tasks can be used: what lies in the data directory, what is missing, and how to get it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tajax.data import archives, catalog, folders, places
from tajax.data.builders import tasks as bundled
from tajax.data.overlap import Overlap, find_overlap
from tajax.data.sources import Source
from tajax.data.table import BUNDLED, PROTOCOL, SUITE, TASKS, TaskSpec
from tajax.data.tasks import Task, data_directory, data_set, open_task
from tajax.task_names import TEXT_CONTROL, TEXT_TASKS

GROUPS: dict[str, tuple[str, ...]] = {
    "protocol": tuple(PROTOCOL),
    "suite": tuple(SUITE),
    "bundled": tuple(BUNDLED),
    "texts": (*TEXT_TASKS, TEXT_CONTROL),
}
"""Names for several tasks at once."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Readiness:
    """What was found of one task.

    Attributes:
        task: its name, or the path that was given.
        state: "ready"; "on first use" (bundled: drawn when it is first opened); "to prepare" (the files are there);
            "differs" (it opens, with other counts than the table's); "broken" (it is there and does not open);
            "missing".
        origin: the data set, file or folder that is or would be opened.
        counts: images or texts found, "train" (with those cut from it for validation) and "test", and "val" if there
            is one of its own; empty where nothing opens.
        expected: the same of the table; empty where it has none.
        advice: what is wrong, what to download, where to put it and what to run, in sentences.
        overlaps: images or texts in two splits; None: not looked for.
        warnings: what was left out or is doubtful of a task that opens (`Task.warnings`).
        what: "images" or "texts", as far as it is known.
    """

    task: str
    state: str
    origin: str
    counts: Mapping[str, int] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)
    advice: tuple[str, ...] = ()
    overlaps: tuple[Overlap, ...] | None = None
    warnings: tuple[str, ...] = ()
    what: str = "images"

    @property
    def ready(self) -> bool:
        """Whether the task can be used as it is, and no example was found in two of its splits."""
        return self.state in ("ready", "on first use") and not self.overlaps


def names_of(entries: Sequence[str], *, data_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Names of tasks and of groups as names of tasks, each once; nothing given: the whole table.

    What else `open_task` opens stays as it is: paths, names of the data directory and of TFDS.

    Raises:
        ValueError: a name is nothing of these. The message has the nearest.
    """
    directory = data_directory(data_dir)
    names: dict[str, None] = {}
    for entry in entries or list(TASKS):
        if entry in GROUPS:
            names |= dict.fromkeys(GROUPS[entry])
        elif entry in TASKS or entry in GROUPS["texts"] or _find(entry, directory) is not None:
            names[entry] = None
        else:
            near = difflib.get_close_matches(entry, [*TASKS, *GROUPS], n=2)
            meant = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise ValueError(
                f"unknown task {entry!r}. {meant}Choose a group ({', '.join(GROUPS)}), a task ({', '.join(TASKS)}), "
                "the path of a folder or .npz file, such as ./birds, of a .csv, .tsv or .jsonl file of texts, or the "
                f"name of a TFDS data set or of what lies in {directory}"
            )
    return list(names)


def check(
    entries: Sequence[str] = (),
    *,
    data_dir: str | os.PathLike[str] | None = None,
    overlap: bool = False,
    progress: Progress | None = None,
) -> list[Readiness]:
    """What there is of each task. Prepares and downloads nothing and never asks the network.

    Args:
        entries: names of `TASKS` or of `GROUPS`, or what else `open_task` takes; none: every task of the table.
        data_dir: as for `open_task`.
        overlap: look for images or texts in two splits of a task, by a hash of each (`find_overlap`). Decodes all.
        progress: called with the task, the number of examples hashed so far, and of all.

    Returns:
        One record a task, in the order asked for.

    Raises:
        ValueError: an unknown name.
    """
    directory = data_directory(data_dir)
    return [
        _check(name, directory, overlap=overlap, progress=progress) for name in names_of(entries, data_dir=directory)
    ]


def _find(entry: str, data_dir: Path) -> Path | str | None:
    return places.find(places.split_choice(entry, data_dir)[0], data_dir)


def _check(name: str, data_dir: Path, *, overlap: bool, progress: Progress | None) -> Readiness:
    spec = TASKS.get(name)
    expected = _expected(name, spec)
    origin = _origin(name, spec, data_dir)
    if not _is_there(name, spec, origin, data_dir):
        return replace(_unprepared(name, spec, origin, data_dir), expected=expected)
    try:
        task = open_task(name, data_dir=data_dir)
        _probe(task)
        overlaps = tuple(find_overlap(_watched(task, name, progress))) if overlap else None
    except Exception as error:  # damaged records fail in TFDS's and array_record's own ways
        message = str(error).strip() or type(error).__name__
        return Readiness(name, "broken", origin, expected=expected, advice=(message,))
    counts = {split: len(source) for split, source in task.splits.items()}
    if "val" not in expected:
        counts["train"] += counts.pop("val")
    if not expected or counts == expected or (task.manifest and _own_manifest(task, data_dir / name)):
        return Readiness(name, "ready", origin, counts, expected, (), overlaps, task.warnings, task.modality)
    advice: tuple[str, ...] = (
        f"{origin} has {_words(counts)} {task.modality}; the table expects {_words(expected)}. It opens, but its "
        "figures are not the papers'.",
    )
    if origin in archives.BUILDERS and archives.BUILDERS[origin].RELEASES:
        again = f"To prepare it anew, delete {data_dir / origin} and run {_command(name, data_dir)}"
        advice += (f"{archives.BUILDERS[origin].RELEASES} {again}",)
    return Readiness(name, "differs", origin, counts, expected, advice, overlaps, task.warnings, task.modality)


def _origin(name: str, spec: TaskSpec | None, data_dir: Path) -> str:
    if spec is not None:
        return str(data_dir / name) if folders.has_splits(data_dir / name) else data_set(spec, data_dir)
    try:
        there = places.kept(places.split_choice(name, data_dir)[0], data_dir)
    except ValueError:  # two of that name, which opening it will say
        return str(data_dir)
    return name if there is None else str(there)


def _is_there(name: str, spec: TaskSpec | None, origin: str, data_dir: Path) -> bool:
    """Whether a task can be opened, or would tell why not, without preparing anything."""
    if spec is not None:
        return folders.has_splits(data_dir / name) or catalog.prepared(origin, data_dir)
    if origin != name:
        return True
    found = _find(name, data_dir)
    return catalog.prepared(found, data_dir) if isinstance(found, str) else found is not None


def _expected(name: str, spec: TaskSpec | None) -> dict[str, int]:
    if name in BUNDLED:
        return dict(bundled.SPLIT_SIZES)
    return dict(spec.counts or {}) if spec else {}


def _own_manifest(task: Task, folder: Path) -> bool:
    return str((task.manifest or {})["rule"]).startswith(str(folder))  # a list of the user's: its counts are meant


def _words(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{count:,} {split}" for split, count in counts.items())


def _probe(task: Task) -> None:
    """Reads the first and the last example of every split, which a truncated file does not have."""
    for source in task.splits.values():
        for index in {0, len(source) - 1}:
            source[index]


def _command(name: str, data_dir: Path) -> str:
    return f"python -m tajax.data --prepare {name} --data-dir {data_dir}"


def _unprepared(name: str, spec: TaskSpec | None, origin: str, data_dir: Path) -> Readiness:
    if name in BUNDLED:
        return Readiness(name, "on first use", origin)
    if name in GROUPS["texts"]:
        keys = "train_texts, train_labels, test_texts, test_labels and class_names"
        advice = [
            f"Put {name}.npz with {keys} into {data_dir}.",
            f"Or {name}.csv, .tsv or .jsonl with columns text and label, or a folder {name} with such files for train "
            "and test.",
        ]
        return Readiness(name, "missing", str(data_dir / f"{name}.npz"), advice=tuple(advice), what="texts")
    origin = places.split_choice(origin, data_dir)[0]
    manual, command = archives.manual_directory(data_dir), _command(name, data_dir)
    files_are_there = Readiness(name, "to prepare", origin, advice=(f"Its files are in {manual}. Run {command}",))
    if origin in archives.BUILDERS:
        try:
            found = archives.BUILDERS[origin].parts_in(manual)
        except archives.BadArchiveError as error:
            return Readiness(name, "broken", origin, advice=(str(error),))
        missing = [part for part, place in found.items() if place is None]
        if not missing:
            return files_are_there
        text = archives.BUILDERS[origin].missing_text(missing, manual)
        return Readiness(name, "missing", origin, advice=(*text.splitlines(), f"Then run {command}"))
    by_hand = catalog.BY_HAND.get(origin) or [info.filename for info in catalog.needed_files(origin).values()]
    if by_hand and all(file and (manual / file).exists() for file in by_hand):
        return files_are_there
    advice = catalog.how_to_get(origin, data_dir, command=command)
    others = catalog.other_versions(origin, data_dir)
    if others:
        advice = [f"Version {' and '.join(others)} is there; the TFDS installed here opens another.", *advice]
    advice += [spec.hint] if spec and spec.hint else []
    if name == "imagenet":
        advice.append(
            f"Or unpack it as {data_dir / name}/train/n01440764/*.JPEG and {data_dir / name}/val/n01440764/*.JPEG"
        )
    return Readiness(name, "missing", origin, advice=tuple(advice))


@dataclass(frozen=True, eq=False)
class _Watched:
    """A source that tells how many of its examples were read."""

    source: Source
    tick: Callable[[], None]
    labels: None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.tick()
        return self.source[index]

    def describe(self, index: int) -> str:
        """As in `Source`."""
        return self.source.describe(index)


def _watched(task: Task, name: str, progress: Progress | None) -> Task:
    """The same task, which reports each example that is read from it."""
    if progress is None:
        return task
    total = int(np.sum([len(source) for source in task.splits.values()]))
    done = iter(range(1, total + 1))
    tick = lambda: progress(name, next(done), total)  # noqa: E731
    return replace(task, splits={split: _Watched(source, tick) for split, source in task.splits.items()})

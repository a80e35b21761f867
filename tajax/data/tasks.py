"""Tasks by name or place: opening what the table says or what is given instead, and cutting validation from train."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tajax.data import catalog, class_names, coverage, draws, folders, manifests, places, prompts, text_tables
from tajax.data.class_names import plain
from tajax.data.contents import Contents
from tajax.data.sources import RecordSource, Source, rows_of, what_of
from tajax.data.table import BUNDLED, TASKS, TaskSpec

VALIDATION_SHARE, VALIDATION_LIMIT = 0.1, 5000  # of train, as in the protocol
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """An opened task.

    Attributes:
        name: short, fit for paths and tables.
        class_names: K names for prompts; index = label.
        templates: prompts, each with one {} for the class name.
        epochs: of the protocol, or None.
        splits: "train", "val", "test", each with `len(split)` and `split[i] -> (image or text, label)`; disjoint.
        validation: where "val" comes from: `seed` and `count` of the cut, or `seed` None if the task brings its own.
        test_cut: the same of "test", where it was cut from a folder without splits; otherwise None.
        manifest: for a data set that is divided by file names: the rule, counts per class, and digest of the division
            (`manifests.Manifest.record`); otherwise None.
        origin: the data set or path.
        warnings: what was left out or is doubtful, a line each, which begins with the name.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    epochs: int | None
    splits: Mapping[str, Source] = dataclasses.field(repr=False)
    validation: Mapping[str, int | None]
    manifest: Mapping[str, object] | None
    origin: str
    test_cut: Mapping[str, int] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def modality(self) -> str:
        """What its examples are: "images" or "texts"."""
        return what_of(self.splits["train"])

    def split(self, name: str) -> Source:
        """The examples of one split.

        Raises:
            ValueError: there is no such split.
        """
        if name not in self.splits:
            near = difflib.get_close_matches(name, SPLITS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"task {self.name!r} has no split {name!r}; choose from {SPLITS}.{hint}")
        return self.splits[name]


def open_task(entry: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None) -> Task:
    """A task by name or by place, ready to be read.

    Args:
        entry: a name of `TASKS`; the name of a file `NAME.npz`, .csv, .tsv or .jsonl in `data_dir`, or of a folder
            there with train and test; the name of a TFDS data set of images or of texts, with its config if need be
            ("cifar10", "sun397/standard-part2-120k"); the path of a folder of images or texts (`folders.open_folder`),
            of a folder with `train.csv` and `test.csv` (`text_tables.open_folder`), of an .npz file
            (`npz_files.open_npz`), or of a .csv, .tsv or .jsonl file of texts (`text_tables.open_file`). Names win
            over folders of the same name; "./name" is always a folder. Columns of tables, and of TFDS texts, are
            chosen behind a #: "reviews.csv#text=review,label=stars".
        data_dir: where TFDS keeps prepared data sets; bundled tasks are generated there on first use. A task of the
            table is read from the folder `data_dir/NAME` if that has `train` and `test`, with the table's prompts and
            epochs. There may stand a `class_names.txt` of yours (`class_names.read`), and for EuroSAT and RESISC45 a
            `manifest.json` or `manifest.txt` (`manifests.read`).
            Default: that of runs, $TAJAX_DATA_DIR or ~/.cache/tajax.

    Raises:
        ValueError: unknown name; contents that are no task. The message tells what was found and what to do.
        FileNotFoundError: a path that does not exist.
    """
    entry = os.fspath(entry)
    data_dir = data_directory(data_dir)
    if entry in TASKS:
        return _from_table(entry, data_dir)
    name, choice, found = _located(entry, data_dir)
    if isinstance(found, str):  # TFDS knows it
        contents = catalog.open_tfds(name, data_dir, columns=text_tables.chosen_columns(choice, entry))
        return _from_place(re.sub(r"\W+", "_", name), contents, entry)
    contents = places.open_place(found, choice, entry)
    as_spelled = found == Path(os.path.expanduser(name))
    origin = entry if as_spelled else str(found) + (f"#{choice}" if choice else "")
    return _from_place(found.resolve().name if found.is_dir() else found.stem, contents, origin)


def check_entry(entry: str, *, data_dir: str | os.PathLike[str] | None = None) -> None:
    """Raises `ValueError` if `open_task` would know neither a data set nor a place of that name; opens nothing."""
    if entry not in TASKS:
        _located(entry, data_directory(data_dir))


def _located(entry: str, data_dir: Path) -> tuple[str, str | None, Path | str]:
    """An entry that is not of the table, without its choice of columns; that choice; and what `places.find` finds."""
    name, choice = places.split_choice(entry, data_dir)
    if name in TASKS:
        raise ValueError(f"{entry!r} chooses columns ({choice}), and the task {name!r} of the table has none")
    text_tables.chosen_columns(choice, entry)  # before anything is read or prepared
    found = places.find(name, data_dir)
    if found is None:
        raise _unknown(name, data_dir)
    return name, choice, found


def _unknown(entry: str, data_dir: Path) -> ValueError:
    near = difflib.get_close_matches(entry.lower(), TASKS, n=2)
    near += [name for name in catalog.near(entry) if name not in TASKS]
    meant = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return ValueError(
        f"unknown task {entry!r}. {meant}Choose a name of the table ({', '.join(TASKS)}), the name of a TFDS data set, "
        f"the path of a folder or .npz file (none is at {entry!r}), of a .csv, .tsv or .jsonl file of texts, or put "
        f"{entry}.npz into {data_dir}."
    )


def open_tasks(
    entries: Sequence[str | os.PathLike[str]], *, data_dir: str | os.PathLike[str] | None = None
) -> list[Task]:
    """Several tasks, with names that differ, because results and task vectors are stored under them.

    Args:
        entries: each as in `open_task`.
        data_dir: as in `open_task`.

    Raises:
        ValueError: no entry, two entries whose tasks have the same name, or a fault of one entry.
        FileNotFoundError: an entry is a path that does not exist.
    """
    if isinstance(entries, str | os.PathLike) or not entries:
        raise ValueError(f"tasks is {entries!r}; give a sequence of at least one entry, such as ('mnist',)")
    directory = data_directory(data_dir)
    bundled = [entry for entry in entries if entry in BUNDLED and not folders.has_splits(directory / entry)]
    catalog.prepare_bundled([TASKS[name].tfds for name in bundled], directory)
    tasks: dict[str, Task] = {}
    for entry in entries:
        task = open_task(entry, data_dir=data_dir)
        if task.name in tasks:
            raise ValueError(
                f"two tasks are called {task.name!r}: {tasks[task.name].origin!r} and {task.origin!r}. Their results "
                "would overwrite each other; rename the folder or file of one, or leave it out."
            )
        tasks[task.name] = task
    return list(tasks.values())


def data_directory(data_dir: str | os.PathLike[str] | None) -> Path:
    """The data directory meant by an argument that may be left out: then that of runs (`config.data_dir`)."""
    return Path(os.path.expanduser(data_dir or os.environ.get("TAJAX_DATA_DIR") or "~/.cache/tajax"))


def _from_place(name: str, contents: Contents, entry: str) -> Task:
    return _task(name, contents, class_names.check(contents.class_names, entry), origin=entry)


def _from_table(name: str, data_dir: Path) -> Task:
    spec, folder = TASKS[name], data_dir / name
    if folders.has_splits(folder):
        contents, own = folders.open_folder(folder), (folder / class_names.FILE).is_file()
        if what_of(contents.splits["train"]) != "images":
            raise ValueError(
                f"{folder} holds texts, and the task {name!r} of the table is of images; rename the folder"
            )
        names = class_names.check(contents.class_names, str(folder)) if own else _folder_names(spec, contents, folder)
        return _task(name, contents, names, spec, origin=str(folder))
    if name in BUNDLED:
        contents = catalog.open_bundled(spec.tfds, data_dir)
        return _task(name, contents, contents.class_names, spec, origin=spec.tfds)
    dataset = data_set(spec, data_dir)
    hint = f"{spec.hint} Images in {folder}/train/class name/ and {folder}/test/class name/ are used as they are."
    contents = catalog.open_tfds(dataset, data_dir, splits=spec.splits, hint=hint.strip())
    names_file = folder / class_names.FILE
    given = class_names.read(names_file, contents.class_names)
    if given:
        names = class_names.check(given.names, str(names_file))
    else:
        names = _catalogue_names(spec, contents.class_names, dataset, names_file)
    record = None
    if spec.manifest:
        whole = contents.splits["train"]
        assert isinstance(whole, RecordSource)  # of TFDS
        splits, record = manifests.divide(whole, contents.class_names, spec.manifest, folder)
        contents = contents._replace(splits=splits)
    return _task(name, contents, names, spec, origin=dataset, manifest=record)


def data_set(spec: TaskSpec, data_dir: Path) -> str:
    """The TFDS name under which a row of the table is opened: a builder of ours where it has one and needs it."""
    return spec.archive if spec.archive and not catalog.prepared(spec.tfds, data_dir) else spec.tfds


def _catalogue_names(spec: TaskSpec, stored: Sequence[str], where: str, names_file: Path) -> tuple[str, ...]:
    """The table's names for prompts of the classes that a TFDS data set stores.

    Raises:
        ValueError: their number differs from the table's, or a stored name is not among the table's.
    """
    known = list(spec.class_names)
    if len(stored) != len(known):
        raise ValueError(
            f"{where} has {len(stored)} classes ({stored[0]!r} to {stored[-1]!r}), and the table has {len(known)} "
            f"({known[0]!r} to {known[-1]!r}): it is another data set or release. If it is meant, put "
            f"{class_names.FORM} into {names_file}; the stored name stands for the directory"
        )
    if list(stored) == [str(label) for label in range(len(stored))]:  # TFDS's placeholders for names it was not told
        return tuple(spec.class_names.values())
    by_plain = {plain(key): name for key, name in spec.class_names.items()}
    unknown = [name for name in stored if plain(name) not in by_plain]
    if unknown:
        raise ValueError(_unknown_names(unknown, spec, where, names_file))
    return tuple(by_plain[plain(name)] for name in stored)


def _folder_names(spec: TaskSpec, contents: Contents, folder: Path) -> tuple[str, ...]:
    """The table's names for prompts of the class directories of a folder, named as stored or as in prompts.

    Raises:
        ValueError: a directory's name is not among the table's, or two mean the same class.
    """
    names = list(spec.class_names.items())
    keys = {plain(name): (key, name) for key, name in names} | {plain(key): (key, name) for key, name in names}
    unknown = [directory for directory in contents.class_names if plain(directory) not in keys]
    if unknown:
        raise ValueError(_unknown_names(unknown, spec, str(folder), folder / class_names.FILE))
    found: dict[str, str] = {}
    for directory in contents.class_names:
        key, _ = keys[plain(directory)]
        if key in found:
            raise ValueError(f"directories {found[key]!r} and {directory!r} of {folder} mean the same class, {key!r}")
        found[key] = directory
    return tuple(keys[plain(directory)][1] for directory in contents.class_names)


def _unknown_names(unknown: Sequence[str], spec: TaskSpec, where: str, names_file: Path) -> str:
    choices = {plain(word): key for key, name in spec.class_names.items() for word in (name, key)}
    near = [choices[match] for match in difflib.get_close_matches(plain(unknown[0]), choices, n=2)]
    meant = f"Did you mean {' or '.join(map(repr, dict.fromkeys(near)))}? " if near else ""
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    return (
        f"{len(unknown)} classes of {where} are not among the {len(spec.class_names)} of the table: "
        f"{', '.join(map(repr, unknown[:3]))}{more}. {meant}If they are meant, put {class_names.FORM} into "
        f"{names_file}"
    )


def _task(
    name: str,
    contents: Contents,
    names: Sequence[str],
    spec: TaskSpec | None = None,
    *,
    origin: str,
    manifest: Mapping[str, object] | None = None,
) -> Task:
    splits = dict(contents.splits)
    if "val" in splits:
        validation = {"seed": None, "count": len(splits["val"])}
    else:
        count = min(VALIDATION_LIMIT, max(1, int(VALIDATION_SHARE * len(splits["train"]))))
        if count >= len(splits["train"]):
            what = what_of(splits["train"])[:-1]
            raise ValueError(f"the train split of {origin} has 1 {what}: too few to cut a validation split from it")
        splits["train"], splits["val"] = _cut(splits["train"], count)
        validation = {"seed": draws.CUT_SEED, "count": count}
    generic = prompts.GENERIC_TEXTS if what_of(splits["train"]) == "texts" else prompts.GENERIC
    templates = contents.templates or (spec.templates if spec else generic)
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong:
        raise ValueError(f"template {wrong[0]!r} of {origin} must have exactly one {{}} for the class name")
    name = re.sub(r"[^\w.-]+", "_", name)
    warnings = (*contents.warnings, *coverage.warnings(names, {split: splits[split] for split in SPLITS}))
    return Task(
        name=name,
        class_names=tuple(names),
        templates=tuple(templates),
        epochs=spec.epochs if spec else None,
        splits={split: splits[split] for split in SPLITS},
        validation=validation,
        manifest=manifest,
        origin=origin,
        test_cut=contents.test_cut,
        warnings=tuple(f"{name}: {line}" for line in warnings),
    )


def _cut(source: Source, count: int) -> tuple[Source, Source]:
    """What is left of a training split, and `count` examples drawn from it by `draws.CUT_SEED` for validation."""
    order = draws.permutation(len(source), seed=draws.CUT_SEED, purpose=draws.VALIDATION)
    drawn, left = np.sort(order[:count]), np.sort(order[count:])
    return rows_of(source, left), rows_of(source, drawn)

"""Tasks by name: the table, what else may be given in its place, and the validation split that is cut from train."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tajax.data import catalog, draws, local, prompts
from tajax.data.builders import ALL
from tajax.data.local import Contents
from tajax.data.sources import Source, rows_of

CUT_SEED = 0  # of validation and test splits that are cut here; fixed, and apart from the seed of any run
VALIDATION_SHARE, VALIDATION_LIMIT = 0.1, 5000  # of train, as in the protocol
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A row of the table.

    Attributes:
        tfds: name in the TFDS catalogue.
        epochs: of the protocol; None: not given (bundled tasks).
        templates: prompts, each with one {}.
        class_names: name of a class in prompts by its stored name; the others as `prompts.readable` gives them.
        splits: role → TFDS split; None: as the names suggest.
        test_count: images of a test split cut from train, for data sets that have one split alone.
        unusable: why TFDS's version cannot serve; None if it can.
        hint: what to know when it is not prepared yet.
    """

    tfds: str
    epochs: int | None
    templates: tuple[str, ...]
    class_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    splits: Mapping[str, str] | None = None
    test_count: int | None = None
    unusable: str | None = None
    hint: str = ""


def _protocol(name: str, dataset: str, epochs: int | None, **more) -> TaskSpec:
    return TaskSpec(dataset, epochs, prompts.TEMPLATES[name], prompts.CLASS_NAMES.get(name, {}), **more)


_TRAIN_TEST = {"train": "train", "test": "test"}

PROTOCOL: dict[str, TaskSpec] = {
    "cars": _protocol("cars", "cars196", 35, splits=_TRAIN_TEST, hint="The download link of cars196 is dead."),
    "dtd": _protocol("dtd", "dtd", 76, splits={"train": "train+validation", "test": "test"}),
    "eurosat": _protocol("eurosat", "eurosat/rgb", 12, splits={"train": "train"}, test_count=2700),
    "gtsrb": _protocol(
        "gtsrb",
        "visual_domain_decathlon/gtsrb",
        11,
        unusable="TFDS has GTSRB only in visual_domain_decathlon, at 72 pixels and with test labels of −1",
    ),
    "mnist": _protocol("mnist", "mnist", 5, splits=_TRAIN_TEST),
    "resisc45": _protocol("resisc45", "resisc45", 15, splits={"train": "train"}, test_count=6300),
    "sun397": _protocol("sun397", "sun397/standard-part1-120k", 14, splits=_TRAIN_TEST),
    "svhn": _protocol("svhn", "svhn_cropped", 4, splits=_TRAIN_TEST),
    "imagenet": _protocol("imagenet", "imagenet2012", None, splits={"train": "train", "test": "validation"}),
}
"""The eight tasks of the protocol, and ImageNet, the control of negation."""

BUNDLED: dict[str, TaskSpec] = {
    name: TaskSpec(f"tajax_{name}", None, spec.templates, {stored: stored for stored in spec.class_names})
    for name, spec in ALL.items()
}
"""The synthetic tasks that need no download: eight tasks, and "objects", the control of negation."""

TASKS: dict[str, TaskSpec] = BUNDLED | PROTOCOL


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """An opened task.

    Attributes:
        name: short, fit for paths and tables.
        class_names: K names for prompts; index = label.
        templates: prompts, each with one {} for the class name.
        epochs: of the protocol, or None.
        splits: "train", "val", "test", each with `len(split)` and `split[i] -> (image, label)`; disjoint.
        validation: where "val" comes from: `seed` and `count` of the cut, or `seed` None if the task brings its own.
        test_cut: the same for "test" where it is cut from train; otherwise None.
        origin: the data set or path.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    epochs: int | None
    splits: Mapping[str, Source] = dataclasses.field(repr=False)
    validation: Mapping[str, int | None]
    test_cut: Mapping[str, int | None] | None
    origin: str

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
        entry: a name of `TASKS`; the name of a TFDS data set, with its config if need be ("cifar10",
            "sun397/standard-part2-120k"); the path of a folder (`local.open_folder`) or of an .npz file
            (`local.open_npz`). Names win over folders of the same name; "./name" is always a folder.
        data_dir: where TFDS keeps prepared data sets; bundled tasks are generated there on first use. A task of the
            table is read from the folder `data_dir/NAME` if that has `train` and `test`, with the table's prompts and
            epochs.
            Default: $TFDS_DATA_DIR, or ~/tensorflow_datasets.

    Raises:
        ValueError: unknown name; contents that are no task. The message tells what was found and what to do.
        FileNotFoundError: a path that does not exist.
    """
    entry = os.fspath(entry)
    place = Path(entry).expanduser()
    data_dir = _directory(data_dir)
    if entry in TASKS:
        return _from_table(entry, data_dir)
    if place.suffix == ".npz":
        return _task(place.stem, local.open_npz(place), origin=entry)
    if catalog.exists(entry, data_dir) and not place.is_absolute():
        return _task(re.sub(r"\W+", "_", entry), catalog.open_tfds(entry, data_dir), origin=entry)
    if place.exists() or entry.startswith((".", "~", os.sep)):
        return _task(place.resolve().name, local.open_folder(place), origin=entry)
    near = difflib.get_close_matches(entry, TASKS, n=2) + [name for name in catalog.near(entry) if name not in TASKS]
    meant = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(
        f"unknown task {entry!r}. {meant}Choose a name of the table ({', '.join(TASKS)}), the name of a TFDS data set, "
        f"or the path of a folder or .npz file (none is at {entry!r})."
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
    bundled = [entry for entry in entries if entry in BUNDLED and not _has_folder(entry, _directory(data_dir))]
    catalog.prepare_bundled([TASKS[name].tfds for name in bundled], _directory(data_dir))
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


def _directory(data_dir: str | os.PathLike[str] | None) -> Path:
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _has_folder(name: str, data_dir: Path) -> bool:
    return (data_dir / name / "train").is_dir() and (data_dir / name / "test").is_dir()


def _from_table(name: str, data_dir: Path) -> Task:
    spec, folder = TASKS[name], data_dir / name
    if _has_folder(name, data_dir):
        return _task(name, local.open_folder(folder), spec, origin=str(folder))
    if name in BUNDLED:
        return _task(name, catalog.open_bundled(spec.tfds, data_dir), spec, origin=spec.tfds)
    if spec.unusable:
        raise ValueError(
            f"task {name!r}: {spec.unusable}. Put the official images into {folder}/train/CLASS/*.png and "
            f"{folder}/test/CLASS/*.png with CLASS from {min(spec.class_names)} to {max(spec.class_names)}, or give "
            "the path of such a folder, or of an .npz file."
        )
    hint = f"{spec.hint} Images in {folder}/train/class name/ and {folder}/test/class name/ are used as they are."
    contents = catalog.open_tfds(spec.tfds, data_dir, splits=spec.splits, hint=hint.strip())
    if name == "imagenet":
        names_file = folder / "class_names.txt"
        names = local.read_class_names(names_file, contents.class_names)
        if names is None:
            raise ValueError(
                "task 'imagenet': TFDS names its classes by WordNet numbers, which are no prompts. Put the 1000 class "
                f"names of CLIP's zero-shot evaluation, one a line, ordered by those numbers, into {names_file}"
            )
        contents = contents._replace(class_names=names)
    return _task(name, contents, spec, origin=spec.tfds)


def _task(name: str, contents: Contents, spec: TaskSpec | None = None, *, origin: str) -> Task:
    splits, test_cut, validation = dict(contents.splits), None, None
    if spec and spec.test_count and "test" not in splits:
        splits["train"], splits["test"], test_cut = _cut(splits["train"], spec.test_count, draws.TEST)
    if "val" in splits:
        validation = {"seed": None, "count": len(splits["val"])}
    else:
        count = min(VALIDATION_LIMIT, max(1, int(VALIDATION_SHARE * len(splits["train"]))))
        if count >= len(splits["train"]):
            raise ValueError(f"the train split of {origin} has 1 image: too few to cut a validation split from it")
        splits["train"], splits["val"], validation = _cut(splits["train"], count, draws.VALIDATION)
    renamed = [spec.class_names.get(stored) if spec else None for stored in contents.class_names]
    class_names = local.check_names(contents.class_names, origin)
    templates = contents.templates or (spec.templates if spec else prompts.GENERIC)
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong:
        raise ValueError(f"template {wrong[0]!r} of {origin} must have exactly one {{}} for the class name")
    return Task(
        name=re.sub(r"[^\w.-]+", "_", name),
        class_names=tuple(new or old for new, old in zip(renamed, class_names, strict=True)),
        templates=tuple(templates),
        epochs=spec.epochs if spec else None,
        splits={split: splits[split] for split in SPLITS},
        validation=validation,
        test_cut=test_cut,
        origin=origin,
    )


def _cut(source: Source, count: int, purpose: int) -> tuple[Source, Source, dict[str, int | None]]:
    """What is left of a source, `count` examples drawn from it by `CUT_SEED`, and the record of the draw."""
    order = draws.permutation(len(source), seed=CUT_SEED, purpose=purpose)
    drawn, left = np.sort(order[:count]), np.sort(order[count:])
    return rows_of(source, left), rows_of(source, drawn), {"seed": CUT_SEED, "count": count}

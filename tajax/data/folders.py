"""Tasks that lie in a local folder: which directory is which split and class, and which file is an image or a text.

Every entry counts: it is a split, a class, an example, or the names of classes; or it is refused; or it is named in a
warning as left out.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tajax import text_files
from tajax.data import class_names, draws
from tajax.data.contents import SPLIT_NAMES, Contents, check_splits, missing, some
from tajax.data.sources import FileSource, Source, TextSource, announce, what_of

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is read, by Pillow's names, as far as its build does."""
TEST_SHARE = 0.2  # of each class, where a folder has no splits
_FOREIGN = {  # formats that are not read; those of cameras may hold a small TIFF
    *(".heic", ".heif", ".jxl", ".svg", ".psd", ".tga", ".ico", ".exr", ".hdr", ".npy", ".dcm"),
    *(".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2"),
}
_TEXT = ".txt"
_NOTES = {"readme", "license", "licence", "copying", "notice", "changelog"}  # texts about a directory
_LAYOUT = (
    "Expected: train/class name/*.png, *.jpg and so on, the same under test/, and if you like under val/; or class "
    "name/*.png alone, of which a part becomes the test split. Texts lie in the same way, as *.txt, one a file."
)


def has_splits(folder: Path) -> bool:
    """Whether a folder has directories for train and for test, as `open_folder` takes them."""
    if not folder.is_dir():
        return False
    directories = _split_directories(_list(folder).directories)
    return "train" in directories and ("test" in directories or "val" in directories)


def has_images(folder: Path) -> bool:
    """Whether a folder has directories for splits, or others with images: then tables beside them are about these."""
    directories = _list(folder).directories
    inside = (_list(folder / directory).files for directory in directories)
    return bool(_split_directories(directories)) or any(
        Path(name).suffix.lower() in _suffixes() for files in inside for name in files
    )


def open_folder(folder: Path) -> Contents:
    """The examples of a folder `split/class name/file`, splits train and test, optionally val; or `class name/file`.

    Splits may have the other names of `SPLIT_NAMES`. Where there is no test directory, val is the test split, as in the
    usual layout of ImageNet: `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`, whose labels in the order of WordNet
    numbers are those of TFDS and of CLIP's class names. Where there are no splits at all, `TEST_SHARE` of each class is
    the test split, by a hash of the file names, which is the same everywhere.

    Labels number the class directories of train in the order of `class_names.in_order`. A file `class_names.txt` in the
    folder replaces the directory names in prompts (`class_names.read`).

    A file is an image if its suffix is that of a format in `FORMATS`, which reading it will prove, or if its first
    bytes are. Where there is no image in any class directory, files `*.txt` are the examples, a text each: UTF-8,
    read at once, without the newline at the end. A few of them beside images are left out, and so are those that are
    called `README.txt` or the like.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the layout is another; two names of one split; a class directory of train without an example; an
            image in a format that is not read; images and texts; a text that is not UTF-8; an empty split; a class
            that is not in train.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(
                f"{folder} is a file; give a folder of images or texts, or an .npz, .csv, .tsv or .jsonl file. "
                f"{_LAYOUT}"
            )
        raise missing(folder, "folder")
    top = _list(folder)
    directories = _split_directories(top.directories)
    if twice := {split: names for split, names in directories.items() if len(names) > 1}:
        split, names = next(iter(twice.items()))
        raise ValueError(f"folder {folder} has {' and '.join(names)}, which are both the {split} split; keep one")
    if directories:
        contents, left_out = _in_splits(folder, {split: names[0] for split, names in directories.items()})
        used = {name for names in directories.values() for name in names}
        left_out += [f"{name}/" for name in top.directories if name not in used]
    else:
        contents, left_out = _in_classes(folder, top.directories)
    left_out += [name for name in top.files if name != class_names.FILE] + top.others
    stored = contents.class_names
    given = class_names.read(folder / class_names.FILE, stored)
    warnings = [*class_names.doubts(given, stored)]
    if left_out:
        what = what_of(contents.splits["train"])
        warnings.append(f"{len(left_out)} entries of {folder} are not {what} of a class and left out: {some(left_out)}")
    contents = contents._replace(warnings=(*contents.warnings, *warnings))
    check_splits(contents, str(folder))
    return contents._replace(class_names=given.names) if given else contents


class _Listing(NamedTuple):
    """What a directory holds, each sorted; hidden entries and what is neither file nor directory are `others`."""

    directories: list[str]
    files: list[str]
    others: list[str]


def _list(folder: Path) -> _Listing:
    found = _Listing([], [], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            _kind(entry, found).append(entry.name)
    for names in found:
        names.sort()
    return found


def _kind(entry: os.DirEntry[str], listing: _Listing) -> list[str]:
    """The list that an entry belongs to. No file is touched, only links are followed."""
    if entry.name.startswith("."):
        return listing.others
    try:
        return listing.directories if entry.is_dir() else listing.files if entry.is_file() else listing.others
    except OSError:  # a link to itself
        return listing.others


def _split_directories(directories: Sequence[str]) -> dict[str, list[str]]:
    """Of each split that there is, the directories that bear a name of it."""
    found = {
        split: [directory for directory in directories if directory.lower() in names]
        for split, names in SPLIT_NAMES.items()
    }
    return {split: names for split, names in found.items() if names}


def _in_splits(folder: Path, directories: dict[str, str]) -> tuple[Contents, list[str]]:
    """The contents of a folder with splits, and what was left out below its directories."""
    if "test" not in directories and "val" in directories:
        directories = {**directories, "test": directories["val"]}
        del directories["val"]
    lacking = [split for split in ("train", "test") if split not in directories]
    if lacking:
        raise ValueError(
            f"folder {folder} lacks {' and '.join(f'{split}/' for split in lacking)}. It has the directories "
            f"{', '.join(_list(folder).directories[:8])}. {_LAYOUT}"
        )
    stored = class_names.in_order(_list(folder / directories["train"]).directories, folder / directories["train"])
    listed: dict[str, _Listing] = {}
    for split in ("train", "val", "test"):
        if split not in directories:
            continue
        place = folder / directories[split]
        inside = _list(place)
        if not inside.directories:
            raise ValueError(f"{place} has no class directories{_loose(place, inside)}. {_LAYOUT}")
        unknown = sorted(set(inside.directories) - set(stored))
        if unknown:
            raise ValueError(
                f"{len(unknown)} class directories of {place} are not in {folder / directories['train']}: "
                f"{some(unknown)}. Classes of train: {', '.join(stored[:10])}{', …' if len(stored) > 10 else ''}"
            )
        listed[split] = inside
    places = [folder / directories[split] / name for split, inside in listed.items() for name in inside.directories]
    found = {place: _entries(place) for place in places}
    what = _what(found, folder)
    splits: dict[str, Source] = {}
    left_out: list[str] = []
    for split, inside in listed.items():
        place = folder / directories[split]
        examples = [_of_kind(what, found.get(place / name, ()), left_out) for name in stored]
        if split == "train":
            _check_filled(examples, stored, place, what)
        splits[split] = _source(examples, what, str(place))
        left_out += [str(place / name) for name in (*inside.files, *inside.others)]
    return Contents(tuple(stored), splits), [os.path.relpath(path, folder) for path in left_out]


def _loose(place: Path, inside: _Listing) -> str:
    """How many examples lie in a directory where classes are wanted, for a message."""
    images = sum(_is_image(place / name) for name in inside.files)
    texts = sum(_is_text(place / name) for name in inside.files)
    return f", but {images} loose images" if images else f", but {texts} loose texts" if texts else ""


def _in_classes(folder: Path, directories: Sequence[str]) -> tuple[Contents, list[str]]:
    """The contents of a folder without splits, divided, and what was left out below its directories."""
    if len(directories) < 2:
        found = f"It has the directory {directories[0]}." if directories else "It has no directories."
        raise ValueError(f"folder {folder} lacks train/ and test/. {found} {_LAYOUT}")
    stored = class_names.in_order(directories, folder)
    left_out: list[str] = []
    inside = {folder / name: _entries(folder / name) for name in stored}
    what = _what(inside, folder)
    examples = [_of_kind(what, entries, left_out) for entries in inside.values()]
    _check_filled(examples, stored, folder, what)
    if single := [name for name, paths in zip(stored, examples, strict=True) if len(paths) == 1]:
        raise ValueError(
            f"folder {folder} has no train/ and test/, and one {what[:-1]} cannot be divided between them: "
            f"{some(single)}. Add {what}, or make the splits yourself. {_LAYOUT}"
        )
    tested = [_test_files(paths) for paths in examples]
    trained = [[p for p in paths if p not in test] for paths, test in zip(examples, tested, strict=True)]
    splits: dict[str, Source] = {
        "train": _source(trained, what, str(folder)),
        "test": _source([sorted(test) for test in tested], what, str(folder)),
    }
    cut = {"seed": draws.CUT_SEED, "count": len(splits["test"])}
    total = cut["count"] + len(splits["train"])
    said = (
        f"without train/ and test/, {cut['count']:,} of {total:,} {what}, {TEST_SHARE:.0%} of each class, are the test "
        f"split (by a hash of their names, seed {cut['seed']})"
    )
    relative = [os.path.relpath(path, folder) for path in left_out]
    return Contents(tuple(stored), splits, test_cut=cut, warnings=(said,)), relative


def _test_files(paths: Sequence[Path]) -> set[Path]:
    """`TEST_SHARE` of the files of a class, at least one: those whose names have the lowest hashes.

    Nothing but a file's own name decides its place, so neither the order of listing nor the other classes matter, and
    a file that is added moves few of the others. Accents count the same in the form of every file system.
    """

    def place(path: Path) -> bytes:
        name = os.fsencode(unicodedata.normalize("NFC", path.name))
        return hashlib.sha256(b"%d\0%b" % (draws.CUT_SEED, name)).digest()

    return set(sorted(paths, key=place)[: max(1, round(TEST_SHARE * len(paths)))])


def _source(examples: Sequence[Sequence[Path]], what: str, where: str) -> Source:
    labels = np.repeat(np.arange(len(examples), dtype=np.int32), [len(paths) for paths in examples])
    paths = [path for paths in examples for path in paths]
    if what == "images":
        return FileSource(paths, labels)
    announce(len(paths), what, where)
    return TextSource([text_files.read(path).rstrip("\n") for path in paths], labels, where, places=[*map(str, paths)])


def _check_filled(examples: Sequence[Sequence[Path]], stored: Sequence[str], place: Path, what: str) -> None:
    empty = [name for name, paths in zip(stored, examples, strict=True) if not paths]
    if empty:
        there = sorted(path.name for path in (place / empty[0]).iterdir())
        found = f"has {some(there)}, which are not {what}" if there else "is empty"
        raise ValueError(
            f"{len(empty)} class directories of {place} have no {what[:-1]}: {some(empty)}. {place / empty[0]} "
            f"{found}. Add {what}, or remove the directories."
        )


def loose_images(folder: Path) -> tuple[list[Path], list[str]]:
    """The images that lie in a folder itself, sorted, and what else does, directories with a slash behind their names.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it is a file; it has no images; an image in a format that is not read.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{folder} is a file; give the folder that it lies in, or open_task an .npz file")
        raise missing(folder, "folder")
    inside = _list(folder)
    others: list[str] = []
    images = _of_kind("images", _sort_out(folder, inside), others)
    left_out = [f"{name}/" for name in inside.directories] + [os.path.relpath(path, folder) for path in others]
    if images:
        return images, left_out
    task = f" If directories are classes or splits, it is a task: open_task({str(folder)!r}). Or give one of them."
    raise ValueError(
        f"folder {folder} has no images itself. It has: {some(left_out) or 'nothing'}."
        + (task if inside.directories else "")
    )


def _entries(directory: Path) -> list[_Entry]:
    """What lies in a class directory."""
    inside = _list(directory)
    if inside.directories:
        raise ValueError(f"{directory / inside.directories[0]} is a directory inside a class directory. {_LAYOUT}")
    return _sort_out(directory, inside)


class _Entry(NamedTuple):
    """A file or the like, and what it may be: "images", "texts" or, if neither, "nothing"."""

    path: Path
    kind: str


def _sort_out(directory: Path, inside: _Listing) -> list[_Entry]:
    """What each of the files and others is that are listed, in order."""
    found = []
    for name in inside.files:
        path = directory / name
        found.append(_Entry(path, "images" if _is_image(path) else "texts" if _is_text(path) else "nothing"))
    for name in inside.others:
        path = directory / name
        if not name.startswith(".") and path.suffix.lower() in _suffixes():
            if not path.is_symlink():
                raise ValueError(f"{path} is no file but a pipe or a device, which may never end. Remove it.")
            found.append(_Entry(path, "images"))  # a link to nothing, which reading it will say
        else:
            found.append(_Entry(path, "nothing"))
    return found


def _of_kind(what: str, entries: Sequence[_Entry], left_out: list[str]) -> list[Path]:
    """The images or the texts, sorted; the others are added to `left_out`."""
    left_out += [str(path) for path, kind in entries if kind != what]
    return sorted(path for path, kind in entries if kind == what)


def _what(found: Mapping[Path, Sequence[_Entry]], folder: Path) -> str:
    """What the examples in class directories are: "texts" if they have texts and no image, else "images".

    A text beside images is about them. Where texts are more than the images beside them, they are meant as examples.

    Raises:
        ValueError: there are images, and texts that are examples.
    """
    first: dict[str, Path] = {}
    for entries in found.values():
        counts = Counter(entry.kind for entry in entries)
        for kind, meant in {"images": counts["images"] > 0, "texts": counts["texts"] > counts["images"]}.items():
            if meant:
                first.setdefault(kind, next(entry.path for entry in entries if entry.kind == kind))
    if len(first) == 2:
        raise ValueError(
            f"folder {folder} has images ({first['images']}, …) and texts ({first['texts']}, …) as examples; a task is "
            "of images or of texts. Put them into folders of their own."
        )
    return next(iter(first), "images")


def _is_text(path: Path) -> bool:
    """Whether a file that is no image is a text."""
    return path.suffix.lower() == _TEXT and path.stem.casefold() not in _NOTES


def _is_image(path: Path) -> bool:
    """Whether a file is to be read as an image: by its suffix or, where that tells nothing, by its first bytes.

    Raises:
        ValueError: it is an image in a format that is not read.
    """
    suffix = path.suffix.lower()
    if suffix in _suffixes():
        return True
    if suffix in _FOREIGN:
        raise ValueError(f"{path} has a format that is not read here; convert it to PNG or JPEG")
    try:
        if suffix == _TEXT and _is_words(path):
            return False
        with Image.open(path, formats=FORMATS):
            return True
    except (Image.UnidentifiedImageError, ValueError):
        return False
    except (OSError, Image.DecompressionBombError):
        return True  # something is there that cannot be read, which reading it will say


def _is_words(path: Path) -> bool:
    """Whether a file begins as texts do. Images have control characters there, or are PPM files, which Pillow tells.

    So no text is taken for a broken image because it begins with the letters of one (BM…), and most are told at once.
    """
    with open(path, "rb") as file:
        beginning = file.read(64)
    return not beginning.startswith(b"P") and not re.search(rb"[\x00-\x08\x0e-\x1a]", beginning)


@functools.cache
def _suffixes() -> frozenset[str]:
    """Those of `FORMATS` that this build of Pillow reads; whether they tell the truth is seen on reading."""
    return frozenset(
        suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS and kind in Image.OPEN
    )

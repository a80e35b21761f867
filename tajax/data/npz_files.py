"""Tasks that lie in a local folder or an .npz file: layout, reading and checks."""

from __future__ import annotations

import difflib
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tajax.data.prompts import readable
from tajax.data.sources import ArraySource, FileSource, Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FOREIGN = (".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".heic", ".avif", ".npy")  # images that would be left out
_LAYOUT = "Expected: train/class name/*.png|jpg|jpeg|webp|bmp, the same under test/, and if you like under val/."
_LARGEST, _TIGHTEST = 2**28, 200  # bytes of a member, and how many times less it may take in the file
# NumPy reads a header with Python's own tokenizer, takes the memory that it promises, and unpacks with zlib.
_DAMAGE: tuple[type[Exception], ...] = (ValueError, OSError, EOFError, RuntimeError, SyntaxError, MemoryError)
_DAMAGE += (ArithmeticError, LookupError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)
_REQUIRED = ("train_images", "train_labels", "test_images", "test_labels", "class_names")


class Contents(NamedTuple):
    """What a place holds, before a validation split is cut.

    Attributes:
        class_names: as stored, index = label.
        splits: "train", "test", and "val" if there is one.
        templates: if the place brings its own.
    """

    class_names: tuple[str, ...]
    splits: dict[str, Source]
    templates: tuple[str, ...] | None = None


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
    for split, source in contents.splits.items():
        if not len(source):
            raise ValueError(f"split {split!r} of {where} is empty: it has no images")
    trained = contents.splits["train"].labels
    for split, source in contents.splits.items():
        if trained is None or source.labels is None:
            continue  # records of TFDS, whose labels are only known when read
        absent = sorted(set(source.labels.tolist()) - set(trained.tolist()))
        if absent:
            names = ", ".join(repr(contents.class_names[label]) for label in absent[:5])
            raise ValueError(
                f"{len(absent)} classes of split {split!r} of {where} have no training image: {names}"
                f"{', …' if len(absent) > 5 else ''}. Add images to train, or remove the classes."
            )


def has_splits(folder: Path) -> bool:
    """Whether a folder has the directories of `open_folder`."""
    return (folder / "train").is_dir() and ((folder / "test").is_dir() or (folder / "val").is_dir())


def open_folder(folder: Path) -> Contents:
    """The images of a folder `split/class name/file`, splits train and test, optionally val.

    Where there is no test directory, val is the test split, as in the usual layout of ImageNet:
    `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`, whose labels in the order of WordNet numbers are those of TFDS
    and of CLIP's class names.

    Labels number the sorted class directories of train. A file `class_names.txt` in the folder, one name a line in that
    order, replaces the directory names in prompts.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the layout is another, a split is empty, a class is not in train.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{folder} is a file; give a folder of images or an .npz file. {_LAYOUT}")
        raise missing(folder, "folder")
    present = _directories(folder)
    directories = {split: split for split in ("train", "val", "test") if split in present}
    if "test" not in directories and "val" in directories:
        directories["test"] = directories.pop("val")
    lacking = [split for split in ("train", "test") if split not in directories]
    if lacking:
        found = f"It has the directories {', '.join(present[:8])}." if present else "It has no directories."
        raise ValueError(f"folder {folder} lacks {' and '.join(f'{split}/' for split in lacking)}. {found} {_LAYOUT}")
    stored = _class_directories(folder / "train")
    splits: dict[str, Source] = {}
    for split, directory in directories.items():
        unknown = sorted(set(_class_directories(folder / directory)) - set(stored))
        if unknown:
            raise ValueError(
                f"{len(unknown)} class directories of {folder / directory} are not in {folder / 'train'}: "
                f"{', '.join(unknown[:5])}. Classes of train: {', '.join(stored[:10])}"
                f"{', …' if len(stored) > 10 else ''}"
            )
        files = [(path, label) for label, name in enumerate(stored) for path in _images(folder / directory / name)]
        splits[split] = FileSource([path for path, _ in files], np.array([label for _, label in files], np.int32))
    contents = Contents(read_class_names(folder / "class_names.txt", stored) or tuple(stored), splits)
    check_splits(contents, str(folder))
    return contents


def read_class_names(path: Path, stored: Sequence[str]) -> tuple[str, ...] | None:
    """The names in a text file, one a line, or None if there is no such file.

    Args:
        path: of the file.
        stored: the names they replace, in order.

    Raises:
        ValueError: the numbers of names differ.
    """
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(names) != len(stored):
        raise ValueError(
            f"{path} has {len(names)} names, one a line, for {len(stored)} classes ({stored[0]!r} to {stored[-1]!r})"
        )
    return names


def _directories(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_directories(folder: Path) -> list[str]:
    names = _directories(folder)
    if not names:
        loose = sum(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir())
        raise ValueError(
            f"{folder} has no class directories{f', but {loose} loose images' if loose else ''}. {_LAYOUT}"
        )
    return names


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []  # a class without examples in this split
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    foreign = [path for path in paths if path.suffix.lower() in _FOREIGN]
    if foreign:
        raise ValueError(f"{foreign[0]} has a format that is not read here; convert it to one of {', '.join(SUFFIXES)}")
    nested = [path for path in paths if path.is_dir()]
    if nested:
        raise ValueError(f"{nested[0]} is a directory inside a class directory. {_LAYOUT}")
    images = [path for path in paths if path.suffix.lower() in SUFFIXES]
    endless = [path for path in images if path.exists() and not path.is_file()]
    if endless:
        raise ValueError(f"{endless[0]} is no file but a pipe or a device, which may never end. Remove it.")
    return images


def open_npz(path: Path) -> Contents:
    """The images of an .npz file.

    Keys: `train_images` and `test_images`, uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]; `train_labels` and
    `test_labels`, whole numbers [N]; `class_names`, strings [K]. Optional: `val_images` with `val_labels`, and
    `templates`, strings with one {} each.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a key is missing, or a value has the wrong dtype, shape or range.
    """
    if not path.is_file():
        raise missing(path, "file")
    try:
        archive = np.load(path, allow_pickle=False)
    except _DAMAGE as error:
        raise ValueError(f"{path} is not an .npz archive: {error}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} holds a single array, not an .npz archive with the keys {', '.join(_REQUIRED)}")
    with archive:
        assert archive.zip is not None  # of an archive that is open
        _check_sizes(archive.zip, path)
        lacking = [key for key in _REQUIRED if key not in archive]
        if lacking:
            raise ValueError(f"{path} lacks {', '.join(lacking)}. It has: {', '.join(archive.files) or 'nothing'}")
        class_names = _strings(archive, "class_names", path)
        templates = _strings(archive, "templates", path) if "templates" in archive else None
        splits: dict[str, Source] = {}
        for split in ("train", "val", "test"):
            if split == "val" and "val_images" not in archive and "val_labels" not in archive:
                continue
            splits[split] = _npz_split(archive, split, class_names, path)
    contents = Contents(class_names, splits, templates)
    check_splits(contents, str(path))
    return contents


def _check_sizes(archive: zipfile.ZipFile, path: Path) -> None:
    for member in archive.infolist():
        if member.file_size > max(_LARGEST, _TIGHTEST * member.compress_size):
            raise ValueError(
                f"{path} is refused: {member.filename!r} takes {member.compress_size:,} bytes in it and "
                f"{member.file_size / 1e9:.1f} GB in memory. If it is no bomb, save it with numpy.savez, uncompressed."
            )


def _npz_split(archive: np.lib.npyio.NpzFile, split: str, class_names: Sequence[str], path: Path) -> ArraySource:
    images, labels = (_array(archive, f"{split}_{what}", path) for what in ("images", "labels"))
    if images.dtype != np.uint8:
        raise ValueError(f"{split}_images of {path} has dtype {images.dtype}; expected uint8 from 0 to 255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{split}_images of {path} has shape {images.shape}; expected [N, H, W], [N, H, W, 1] or [N, H, W, 3]"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{split}_labels of {path} has dtype {labels.dtype} and shape {labels.shape}; expected whole numbers, one "
            f"for each of the {len(images)} images"
        )
    check_labels(labels, class_names, f"{split}_labels of {path}")
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    return ArraySource(images, labels.astype(np.int32), f"{path}: {split}_images")


def _array(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    if key not in archive:
        raise ValueError(f"{path} lacks {key}. It has: {', '.join(archive.files)}")
    try:
        return archive[key]
    except _DAMAGE as error:
        pickled = "holds pickled objects, which are never loaded: store plain numbers or strings"
        reason = pickled if "pickle" in str(error) else f"cannot be read: {error}"
        raise ValueError(f"{key} of {path} {reason}") from error


def _strings(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> tuple[str, ...]:
    array = _array(archive, key, path)
    if array.dtype.kind not in "US" or array.ndim != 1 or not len(array):
        raise ValueError(
            f"{key} of {path} has dtype {array.dtype} and shape {array.shape}; expected at least one string, [K]"
        )
    return tuple(np.char.decode(array, "utf-8").tolist() if array.dtype.kind == "S" else array.tolist())


def check_names(class_names: Sequence[str], where: str) -> tuple[str, ...]:
    """Class names as they stand in prompts, each once.

    Raises:
        ValueError: two classes would get the same prompt, so that no head could tell them apart.
    """
    names = tuple(readable(name) for name in class_names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"classes of {where} share a name, so no prompt can tell them apart: {', '.join(twice[:5])}")
    return names

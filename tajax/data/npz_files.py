"""Tasks that lie in an .npz file: layout, reading and checks."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tajax.data.contents import SPLIT_NAMES, Contents, check_labels, check_splits, missing, some
from tajax.data.sources import ArraySource, Source, TextSource

_LARGEST, _TIGHTEST = 2**28, 200  # bytes of a member, and how many times less it may take in the file
# NumPy reads a header with Python's own tokenizer, takes the memory that it promises, and unpacks with zlib.
_DAMAGE: tuple[type[Exception], ...] = (ValueError, OSError, EOFError, RuntimeError, SyntaxError, MemoryError)
_DAMAGE += (ArithmeticError, LookupError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)


def open_npz(path: Path) -> Contents:
    """The images or texts of an .npz file.

    Keys: `train_images` and `test_images`, uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3], or `train_texts` and
    `test_texts`, strings [N]; `train_labels` and `test_labels`, whole numbers [N]; `class_names`, strings [K].
    Optional: `val_images` or `val_texts` with `val_labels`, and `templates`, strings with one {} each. Splits may have
    the other names of `SPLIT_NAMES`.

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
        raise ValueError(f"{path} holds a single array, not an .npz archive with train_images or train_texts")
    with archive:
        assert archive.zip is not None  # of an archive that is open
        _check_sizes(archive.zip, path)
        what = _kind(archive.files, path)
        called = _split_names(archive.files, what, path)
        needed = [f"{name}_{part}" for name in called.values() for part in (what, "labels")] + ["class_names"]
        lacking = [key for key in needed if key not in archive]
        if lacking:
            raise ValueError(f"{path} lacks {', '.join(lacking)}. It has: {', '.join(archive.files) or 'nothing'}")
        class_names = _strings(archive, "class_names", path)
        templates = _strings(archive, "templates", path) if "templates" in archive else None
        read = _texts_split if what == "texts" else _npz_split
        splits: dict[str, Source] = {split: read(archive, name, class_names, path) for split, name in called.items()}
        left_out = [key for key in archive.files if key not in [*needed, "templates"]]
    warnings = (f"{len(left_out)} arrays of {path} are not read: {some(left_out)}",) if left_out else ()
    contents = Contents(class_names, splits, templates, warnings=warnings)
    check_splits(contents, str(path))
    return contents


def _kind(keys: Sequence[str], path: Path) -> str:
    """What the examples are called in the keys: "images", or "texts"."""
    names = [name for names in SPLIT_NAMES.values() for name in names]
    found = {what: [f"{name}_{what}" for name in names if f"{name}_{what}" in keys] for what in ("images", "texts")}
    if all(found.values()):
        raise ValueError(f"{path} has {found['images'][0]} and {found['texts'][0]}; a task is of images or of texts")
    return "texts" if found["texts"] else "images"


def _split_names(keys: Sequence[str], what: str, path: Path) -> dict[str, str]:
    """What each split is called in the keys; "train" and "test" always, "val" if it is there."""
    called = {}
    for split, names in SPLIT_NAMES.items():
        found = [name for name in names if f"{name}_{what}" in keys or f"{name}_labels" in keys]
        if len(found) > 1:
            raise ValueError(f"{path} has {' and '.join(found)}, which are both the {split} split; keep one")
        if found or split != "val":
            called[split] = found[0] if found else split
    return called


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
    labels = _checked_labels(labels, len(images), "images", class_names, f"{split}_labels of {path}")
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    return ArraySource(images, labels, f"{path}: {split}_images")


def _texts_split(archive: np.lib.npyio.NpzFile, split: str, class_names: Sequence[str], path: Path) -> TextSource:
    texts, labels = (_array(archive, f"{split}_{what}", path) for what in ("texts", "labels"))
    if texts.dtype.kind != "U" or texts.ndim != 1:
        raise ValueError(
            f"{split}_texts of {path} has dtype {texts.dtype} and shape {texts.shape}; expected unicode strings, [N]"
        )
    labels = _checked_labels(labels, len(texts), "texts", class_names, f"{split}_labels of {path}")
    return TextSource(texts.tolist(), labels, f"{path}: {split}_texts")


def _checked_labels(labels: np.ndarray, count: int, what: str, class_names: Sequence[str], where: str) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(
            f"{where} has dtype {labels.dtype} and shape {labels.shape}; expected whole numbers, one for each of the "
            f"{count} {what}"
        )
    check_labels(labels, class_names, where)
    return labels.astype(np.int32)


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

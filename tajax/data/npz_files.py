"""Tasks that lie in an .npz file: layout, reading and checks."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tajax.data.contents import SPLIT_NAMES, Contents, check_labels, check_splits, missing, some
from tajax.data.sources import ArraySource, Source

_LARGEST, _TIGHTEST = 2**28, 200  # bytes of a member, and how many times less it may take in the file
# NumPy reads a header with Python's own tokenizer, takes the memory that it promises, and unpacks with zlib.
_DAMAGE: tuple[type[Exception], ...] = (ValueError, OSError, EOFError, RuntimeError, SyntaxError, MemoryError)
_DAMAGE += (ArithmeticError, LookupError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)


def open_npz(path: Path) -> Contents:
    """The images of an .npz file.

    Keys: `train_images` and `test_images`, uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]; `train_labels` and
    `test_labels`, whole numbers [N]; `class_names`, strings [K]. Optional: `val_images` with `val_labels`, and
    `templates`, strings with one {} each. Splits may have the other names of `SPLIT_NAMES`.

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
        raise ValueError(f"{path} holds a single array, not an .npz archive with train_images and so on")
    with archive:
        assert archive.zip is not None  # of an archive that is open
        _check_sizes(archive.zip, path)
        called = _split_names(archive.files, path)
        needed = [f"{name}_{what}" for name in called.values() for what in ("images", "labels")] + ["class_names"]
        lacking = [key for key in needed if key not in archive]
        if lacking:
            raise ValueError(f"{path} lacks {', '.join(lacking)}. It has: {', '.join(archive.files) or 'nothing'}")
        class_names = _strings(archive, "class_names", path)
        templates = _strings(archive, "templates", path) if "templates" in archive else None
        splits: dict[str, Source] = {
            split: _npz_split(archive, name, class_names, path) for split, name in called.items()
        }
        left_out = [key for key in archive.files if key not in [*needed, "templates"]]
    warnings = (f"{len(left_out)} arrays of {path} are not read: {some(left_out)}",) if left_out else ()
    contents = Contents(class_names, splits, templates, warnings=warnings)
    check_splits(contents, str(path))
    return contents


def _split_names(keys: Sequence[str], path: Path) -> dict[str, str]:
    """What each split is called in the keys; "train" and "test" always, "val" if it is there."""
    called = {}
    for split, names in SPLIT_NAMES.items():
        found = [name for name in names if f"{name}_images" in keys or f"{name}_labels" in keys]
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

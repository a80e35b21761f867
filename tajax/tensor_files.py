"""Safetensors files, read with suspicion: whoever wrote them, they hold what their header says or are refused.

A file is eight bytes with the length of the header, the header as JSON, and the tensors. The `safetensors` library
checks lengths and offsets. It takes the last of two entries of one name, so that is looked at here, as are names
that would leave a directory if anybody made paths of them.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import safetensors

__all__ = ["read", "read_metadata"]

LONGEST_HEADER = 100_000_000  # bytes; what the library allows
_POINTER = b"version https://git-lfs"


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every tensor of a file by name, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, damaged, a Git LFS pointer or no safetensors file, or its header names a tensor
            twice or with a path out of a directory. The message names the file.
    """
    metadata = read_metadata(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:  # or a dtype that NumPy has not
        raise _refusal(Path(path), str(error)) from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a file, from its header alone; empty if it has none.

    Raises:
        FileNotFoundError, ValueError: as `read`, as far as the header tells.
    """
    path = Path(path)
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError(f"{path} is no file but a directory, a pipe or a device.")  # which may never end
    with path.open("rb") as file:
        start = file.read(8)
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise _refusal(path, f"the length of its header is given as {length:,} bytes")
        header = file.read(length)
    try:
        entries = json.loads(header, object_pairs_hook=_unique)
    except _Twice as twice:
        raise ValueError(f"{path} is refused: its header names {twice} more than once.") from twice
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"its header is not JSON: {error}") from error
    metadata = entries.pop("__metadata__", {}) if isinstance(entries, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _refusal(path, "its header is not an object of tensors and strings")
    for name in entries:
        if ".." in name.replace("\\", "/").split("/") or name.startswith(("/", "\\")) or "\0" in name:
            raise ValueError(f"{path} is refused: the name {name!r} of a tensor leads out of its directory.")
    return metadata


class _Twice(ValueError):
    """The key that an object of JSON holds twice."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    whole = dict(pairs)
    if len(whole) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(repr(next(key for key in keys if keys.count(key) > 1)))
    return whole


def _refusal(path: Path, why: str) -> ValueError:
    with path.open("rb") as file:
        pointer = file.read(len(_POINTER)) == _POINTER
    what = "a Git LFS pointer (run `git lfs pull`)" if pointer else "truncated, damaged or no safetensors file"
    return ValueError(f"{path} ({path.stat().st_size:,} bytes) is {what}: {why}. Fetch the file again.")

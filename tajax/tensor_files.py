"""Safetensors files, read with suspicion: whoever wrote them, they hold what their header says or are refused.

A file is eight bytes with the length of the header, the header as JSON, and the tensors. The `safetensors` library
checks lengths and offsets. It takes the last of two entries of one name, so that is looked at here, as are names
that would leave a directory if anybody made paths of them.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

__all__ = [
    "FEW_BITS",
    "TASK_VECTOR",
    "is_safetensors",
    "mapped",
    "other_format",
    "parts",
    "read",
    "read_metadata",
    "read_names",
]

TASK_VECTOR = "tajax task vector 1"
"""`format` in the metadata of a file that holds a task vector, `tajax.vector_files`."""
LONGEST_HEADER = 100_000_000  # bytes; what the library allows
FEW_BITS = (
    "floats of fewer than 16 bits, which are not read: their scales stand elsewhere, and so coarse a rounding hides "
    "what fine-tuning moved. Save the weights as bfloat16 or wider, multiplied by their scales"
)
"""Said of such tensors, whatever kind of file they are in."""
_FEW_BITS = re.compile(r"F[468](_.*)?")  # as headers write them
_DTYPES: Mapping[str, np.dtype] = {
    word: jnp.dtype(name)
    for word, name in {
        **{"BOOL": "bool", "U8": "uint8", "I8": "int8"},
        **{"I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16"},
        **{"I32": "int32", "U32": "uint32", "F32": "float32"},
        **{"C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64"},
    }.items()
}
"""Of tensors, by the words of headers, in the order of the `safetensors` library, which writes the last first."""
_OTHER_FORMATS = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the weights: run `git lfs pull`"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml)", "a web page that was saved in place of the weights"),
    (rb"(Entry|Repository) not found|Invalid ", "the text of an error that was saved in place of the weights"),
    (rb"GGUF", "a GGUF file, whose weights are quantised as a rule: take those it was made from"),
    (rb"\x89HDF\r\n", "an HDF5 file of Keras or TensorFlow: save the weights as safetensors with their library"),
    (rb"\x93NUMPY", "a single NumPy array: save all weights in one safetensors file"),
    (rb"\x1f\x8b\x08|BZh|\xfd7zXZ", "compressed: unpack it"),
    (rb"\x08[\x01-\x20]\x12", "an ONNX file: save the weights of the model it was made from"),
    (rb"[\x81-\x8f][\xa1-\xbf]\w", "a msgpack file of Flax: convert it with transformers 4 and from_flax=True"),
)
"""How files begin that lie where weights should, what they are, and the way out."""


def read(path: str | Path, names: Iterable[str] | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors of a file by name, and its metadata.

    Args:
        path: The file.
        names: Those to read; all if not given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, damaged, a Git LFS pointer or no safetensors file, its header names a tensor
            twice or with a path out of a directory, or a tensor is of 8-bit floats. The message names the file.
    """
    tensors, metadata = mapped(path, names)
    return {name: np.array(tensor) for name, tensor in tensors.items()}, metadata


def mapped(path: str | Path, names: Iterable[str] | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """As `read`, but the arrays are the file: nothing is read before it is looked at, and nothing is kept in memory.

    They cannot be written to, and change where somebody writes into the file: what is kept has to be copied.

    Args:
        path: The file.
        names: Those to open; all if not given.

    Raises:
        FileNotFoundError, ValueError: as `read`.
    """
    path = Path(path)
    entries, metadata, start = _header(path)
    chosen = list(entries) if names is None else list(names)
    for name in chosen:
        entry = entries[name]
        word = str(entry.get("dtype")) if isinstance(entry, dict) else ""
        if _FEW_BITS.fullmatch(word):
            raise ValueError(f"{path}: {name!r} is {word}, {FEW_BITS}.")
    try:
        with safetensors.safe_open(path, framework="numpy"):  # which checks shapes and places of all tensors
            pass
    except safetensors.SafetensorError as error:
        raise _refusal(path, str(error)) from error
    whole = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    return {name: _tensor(path, name, entries[name], whole[start:]) for name in chosen}, metadata


def _tensor(path: Path, name: str, entry: Any, content: np.ndarray) -> np.ndarray:  # Any: JSON
    begin, end = entry["data_offsets"]
    if (dtype := _DTYPES.get(entry["dtype"])) is None:
        raise _refusal(path, f"{name!r} is {entry['dtype']}, which NumPy has not")
    return content[begin:end].view(dtype).reshape(entry["shape"])


def parts(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """A file that holds some tensors, piece by piece, so that no second copy of all is ever in memory.

    Tensors stand in the order of the `safetensors` library, wide ones first.

    Args:
        tensors: By name; they may be views, such as a transposed matrix, which are put in order one at a time.
        metadata: Texts that the header holds.

    Yields:
        The header, and the bytes of each tensor.

    Raises:
        ValueError: a tensor is of a dtype that such files have not; before anything is yielded.

    Example:
        >>> import safetensors.numpy
        >>> made = b"".join(parts({"w": np.eye(2)[::-1]}, {"format": "pt"}))
        >>> safetensors.numpy.load(made)
        {'w': array([[0., 1.],
               [1., 0.]])}
    """
    words = {dtype: word for word, dtype in _DTYPES.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in words:
            raise ValueError(f"{name!r} is {tensor.dtype}, which safetensors files have not: want {', '.join(_DTYPES)}")
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    ranks = {dtype: rank for rank, dtype in enumerate(_DTYPES.values())}
    order, end = sorted(tensors, key=lambda name: (-ranks[tensors[name].dtype], name)), 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": words[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        yield np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a file, from its header alone; empty if it has none.

    Raises:
        FileNotFoundError, ValueError: as `read`, as far as the header tells.
    """
    return _header(Path(path))[1]


def read_names(path: str | Path) -> list[str]:
    """The names of a file's tensors, from its header alone.

    Raises:
        FileNotFoundError, ValueError: as `read`, as far as the header tells.
    """
    return list(_header(Path(path))[0])


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file that begins so and has so many bytes is safetensors, as far as nine bytes tell."""
    return start[8:9] == b"{" and 2 <= struct.unpack("<Q", start[:8])[0] <= size - 8


def other_format(start: bytes) -> str | None:
    """What a file is that begins so and holds no weights that are read, with the way out; None of all others.

    Example:
        >>> other_format(b"GGUF...")
        'a GGUF file, whose weights are quantised as a rule: take those it was made from'
        >>> other_format(b"PK...") is None
        True
    """
    return next((what for pattern, what in _OTHER_FORMATS if re.match(pattern, start)), None)


def _header(path: Path) -> tuple[dict[str, object], dict[str, str], int]:
    """The entries of tensors by name, not looked into, the metadata, and where the tensors begin."""
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
    return entries, metadata, 8 + length


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
        other = other_format(file.read(64))
    size = f"{path} ({path.stat().st_size:,} bytes)"
    if other:
        return ValueError(f"{size} is {other}.")
    return ValueError(f"{size} is truncated, damaged or no safetensors file: {why}. Fetch the file again.")

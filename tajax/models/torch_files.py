"""PyTorch's checkpoint files without PyTorch: which tensors they hold, read without running anything in them.

Three layouts are told apart by their first bytes: the zip archive that `torch.save` writes since PyTorch 1.6, the
TorchScript archive (the same, with other names inside; OpenAI published CLIP so), and the sequence of pickles before
1.6. In each, a pickle describes the tensors and raw bytes follow. `tajax.models.pickled` reads the pickle; every size
that it declares is compared with the file before anything is allocated.

Source: PyTorch, torch/serialization.py (`_save`, `_legacy_save`); caffe2/serialize/inline_container.h for the archive.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tajax.models.convert import few
from tajax.models.pickled import read_program, unpickle
from tajax.models.pickled_values import Named, Plain, Storage, StoredTensor
from tajax.tensor_files import FEW_BITS, other_format

__all__ = ["TorchFile", "open_torch_file"]

_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DAMAGED = (
    ValueError,
    OverflowError,
    RuntimeError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
)  # all that zipfile raises
_LARGEST_PICKLE = 1 << 26  # bytes; the pickle of a ViT-L/14 with its optimiser has 2 MB
_DEEPEST, _LONGEST_NAME, _MOST_VALUES = 64, 1_000, 200_000  # of nested containers, their names, what they hold


class TorchFile(NamedTuple):
    """What a PyTorch file holds: its tensors under the names of a state dict, and what else says what they are."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    """By name: keys of nested dictionaries and modules, joined by dots."""
    classes: Mapping[str, str]
    """Names of the classes of whole pickled modules, by the modules' names."""
    texts: Mapping[str, str]
    """Texts among the tensors, such as the `model_name` of the tangent paper's checkpoints."""
    others: Mapping[str, str]
    """Names of the classes of all other values: NumPy's, dates, paths, the settings of whoever trained the model."""
    places: Mapping[str, tuple[int, int]] | None
    """Where each storage lies, offset and length in bytes; None in an archive."""

    def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Some of the tensors, as read-only arrays; those that share a storage share it here too.

        Raises:
            ValueError: the file is damaged, and the storage is named; or a tensor is of 8-bit floats.
        """
        chosen = {name: self.tensors[name] for name in names}
        narrow = [name for name, tensor in chosen.items() if tensor.storage.dtype.name.startswith("float8")]
        if narrow:
            held = chosen[narrow[0]].storage.dtype.name
            raise ValueError(f"{self.path}: {narrow[0]!r} is {held}, {FEW_BITS}.")
        storages = {tensor.storage.key: tensor.storage for tensor in chosen.values()}
        try:
            if self.places is None:
                data = dict(_read_archive(self.path, storages))
            else:
                data = dict(_read_legacy(self.path, storages, self.places))
            return {name: tensor.view(data[tensor.storage.key]) for name, tensor in chosen.items()}
        except _DAMAGED as error:
            raise ValueError(f"{self.path} is damaged: {error}. Fetch the file again.") from error


def open_torch_file(path: str | Path) -> TorchFile:
    """Which tensors a `.pt`, `.pth`, `.bin` or `.ckpt` file holds. Their values are read later, and only if asked for.

    Args:
        path: A file that `torch.save` or `torch.jit.save` wrote, of a state dict, a training checkpoint or a module.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format, a damaged file, or a pickle that asks for something that is not read here.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file but a directory, a pipe or a device.")
    with path.open("rb") as file:
        start = file.read(64)
    try:
        if start.startswith(b"PK\x03\x04"):
            root, places = _open_archive(path), None
        elif what := other_format(start):
            raise ValueError(f"it is {what}")
        elif not start:
            raise ValueError("it is empty")
        else:
            root, places = _open_legacy(path)
        tensors, classes, texts, others = _walk(root)
    except _DAMAGED as error:
        raise ValueError(f"{path} ({path.stat().st_size:,} bytes) cannot be read: {error}") from error
    return TorchFile(path, tensors, classes, texts, others, places)


def _open_archive(path: Path) -> Plain:
    """The object in a zip archive, whose storages were compared with its records."""
    with zipfile.ZipFile(path) as archive:
        records = _records(archive, path.stat().st_size)
        description = _stored(records["data.pkl"])
        if description.file_size > _LARGEST_PICKLE:
            raise ValueError(f"its data.pkl has {description.file_size:,} bytes, more than any model's")
        if "byteorder" in records and archive.read(_stored(records["byteorder"])).strip() != b"little":
            raise ValueError("it was written on a big-endian machine. Save it again on a little-endian one")
        program = read_program(io.BytesIO(archive.read(description)))
    for storage in program.storages.values():
        _record_of(records, storage)
    return program.root


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The records of an archive by name, without the directory that holds them all; nothing is ever extracted."""
    names = [info.filename for info in archive.infolist()]
    roots = [name.removesuffix("/data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"an archive ({few(names)}) with {len(roots)} data.pkl, where a PyTorch file has one")
    if any(not 0 <= info.header_offset < size for info in archive.infolist()):
        raise ValueError("its directory points outside the file: truncated or damaged")
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice in the archive")
    if sum(info.file_size for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED) > size:
        raise ValueError("its records are longer in sum than the file")
    return {name.removeprefix(f"{roots[0]}/"): archive.getinfo(name) for name in names}


def _record_of(records: Mapping[str, zipfile.ZipInfo], storage: Storage) -> zipfile.ZipInfo | None:
    """The record of a storage, of the length that the storage declares; None if it is empty and was not written."""
    length = storage.size * storage.dtype.itemsize
    record = records.get(f"data/{storage.key}")
    if record is None:
        if not length:
            return None
        raise ValueError(f"storage {storage.key[:80]!r} is not in the archive: truncated, or made by something else")
    if _stored(record).file_size != length:
        raise ValueError(f"storage {storage.key!r} declares {length:,} bytes, its record has {record.file_size:,}")
    return record


def _stored(record: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The record, which takes no more memory than it takes in the file."""
    if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
        raise ValueError(f"{record.filename[:80]} is compressed or encrypted, which PyTorch's are not")
    return record


def _read_archive(path: Path, storages: Mapping[str, Storage]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        records = _records(archive, path.stat().st_size)
        for key, storage in storages.items():
            record = _record_of(records, storage)
            yield key, b"" if record is None else archive.read(record)


def _read_legacy(
    path: Path, storages: Iterable[str], places: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        for key in storages:
            offset, length = places[key]
            file.seek(offset)
            yield key, file.read(length)


def _open_legacy(path: Path) -> tuple[Plain, dict[str, tuple[int, int]]]:
    """The object in a file of PyTorch before 1.6, and where its storages lie."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if unpickle(data) != _LEGACY_MAGIC:
            raise ValueError("a pickle, but not a file of torch.save. Save the state_dict() with torch.save")
        protocol, system = unpickle(data), unpickle(data)
        if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
            raise ValueError(f"it has format {protocol!r} of torch.save; {_LEGACY_PROTOCOL} is read")
        if system.get("little_endian") is not True:
            raise ValueError("it was written on a big-endian machine. Save it again on a little-endian one")
        root, declared = read_program(data)
        keys = unpickle(data)
        if not isinstance(keys, list) or any(not isinstance(key, str) or key not in declared for key in keys):
            raise ValueError("its list of storages names some that no tensor has")
        places: dict[str, tuple[int, int]] = {}
        position = data.tell()
        for key in keys:
            (size,) = struct.unpack("<q", data[position : position + 8].ljust(8, b"\xff"))
            length = declared[key].size * declared[key].dtype.itemsize
            left = len(data) - position - 8
            if length > left:
                raise ValueError(
                    f"storage {key[:80]!r} declares {length:,} bytes, {max(left, 0):,} are left: truncated"
                )
            if size != declared[key].size:
                raise ValueError(f"storage {key[:80]!r} declares {declared[key].size:,} elements, its data {size:,}")
            places[key] = (position + 8, length)
            position += 8 + length
        absent = next((key for key in declared if key not in places), None)
        if absent is not None:
            raise ValueError(f"storage {absent[:80]!r} is not in the file: truncated or damaged")
    return root, places


def _walk(root: Plain) -> tuple[dict[str, StoredTensor], dict[str, str], dict[str, str], dict[str, str]]:
    """Tensors, classes of modules, texts, and classes of other values, by the names they have in a state dict."""
    tensors: dict[str, StoredTensor] = {}
    classes: dict[str, str] = {}
    texts: dict[str, str] = {}
    others: dict[str, str] = {}
    waiting = [("", root, 0)]
    seen = 0
    while waiting:
        seen += 1
        name, value, depth = waiting.pop()
        if isinstance(value, StoredTensor | str):
            if name in tensors or name in texts:
                raise ValueError(f"{name[:120]!r} stands twice")
            if isinstance(value, str):
                texts[name] = value
            else:
                tensors[name] = value
            continue
        if isinstance(value, Named):
            (classes if _is_module(value) else others)[name] = value.name
        parts = _parts(value)
        if seen + len(waiting) + len(parts) > _MOST_VALUES:
            raise ValueError(f"it nests more than {_MOST_VALUES:,} values")
        prefix = f"{name}." if name else ""
        for key, part in reversed(parts):
            inner = f"{prefix}{key}"
            if depth == _DEEPEST or len(inner) > _LONGEST_NAME:
                raise ValueError(f"its values are nested more than {_DEEPEST} deep, or under names too long")
            waiting.append((inner, part, depth + 1))
    return tensors, classes, texts, others


def _is_module(value: Named) -> bool:
    """Whether a value is a module of PyTorch, whole or of a TorchScript archive."""
    whole = isinstance(value.state, dict) and "_modules" in value.state
    return value.is_object and (whole or value.name.startswith("__torch__."))


def _parts(value: Plain) -> list[tuple[object, Plain]]:
    """What a container or a module holds: of a module its parameters, buffers and modules, of other objects nothing."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list):
        return list(enumerate(value))
    if not isinstance(value, Named) or not _is_module(value) or not isinstance(value.state, dict):
        return []
    if value.name.startswith("__torch__."):  # TorchScript keeps no groups
        return list(value.state.items())
    groups = [value.state.get(group) for group in ("_parameters", "_buffers", "_modules")]
    return [item for group in groups if isinstance(group, dict) for item in group.items()]

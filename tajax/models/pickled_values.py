"""What a pickle can hold here, as plain data, and how it is made of what the file says; nothing of Python is called.

Source: PyTorch, torch/_utils.py and torch/serialization.py, for the constructors and for what their arguments mean.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from tajax.models.pickled_names import DTYPES, STORAGES, TENSOR_CLASSES, UNTYPED

__all__ = [
    "CONSTRUCTORS",
    "Named",
    "Plain",
    "Storage",
    "StoredTensor",
    "construct",
    "dictionary",
    "enter",
    "kind_of",
    "persistent",
]

_Scalar: TypeAlias = "str | int | float | bool | bytes | None"
Plain: TypeAlias = "_Scalar | list | tuple | dict | Named | Storage | StoredTensor"
"""What a pickle can hold here."""


@dataclasses.dataclass(eq=False, repr=False)
class Named:
    """A class or function that the file names, or an object of such a class: a name, and perhaps a state.

    Attributes:
        name: Full dotted name, such as 'torch.nn.modules.linear.Linear'. It is never imported.
        is_object: Whether this is an object of that class rather than the class.
        state: What the file says the object's attributes are, or None.
    """

    name: str
    is_object: bool = False
    state: Plain = None

    def __repr__(self) -> str:
        return self.name


class Storage(NamedTuple):
    """A named run of bytes elsewhere in the file, which tensors view."""

    key: str
    dtype: np.dtype
    size: int
    """Number of elements."""


class StoredTensor(NamedTuple):
    """A tensor as a view of a storage: where its elements lie, in elements, checked against the storage's size."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, data: bytes) -> np.ndarray:
        """The tensor as a read-only view of its storage's bytes, of which there must be as many as declared."""
        flat = np.frombuffer(data, self.storage.dtype)
        if 0 in self.shape:
            return np.zeros(self.shape, flat.dtype)
        steps = zip(self.shape, self.strides, strict=True)
        strides = tuple(stride * flat.dtype.itemsize if size > 1 else 0 for size, stride in steps)
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)


def construct(named: Plain, arguments: Plain) -> Plain:
    """What a constructor makes of its arguments, or an object of a class that is a name alone."""
    if not isinstance(named, Named) or named.is_object or not isinstance(arguments, tuple):
        raise TypeError(f"a {kind_of(named)} is called with a {kind_of(arguments)}")
    if named.name in CONSTRUCTORS:
        return CONSTRUCTORS[named.name](*arguments)
    if named.name in STORAGES or named.name in DTYPES or named.name in TENSOR_CLASSES:
        raise TypeError(f"{named.name} is called")
    return Named(named.name, is_object=True)


def persistent(identity: Plain) -> Plain:
    """A storage, or a class that comes with its source text, which is dropped."""
    match identity:
        case ("storage", Named(name=name), str(key), str(_), int(size), *views):
            if name not in STORAGES or size < 0 or any(view is not None for view in views):
                raise ValueError(
                    f"storage {_short(key)} has type {name}, size {_short(size)}, view {_short(views)}: not read"
                )
            return Storage(key, STORAGES[name], size)
        case ("module", Named(is_object=False) as named, *_):
            return named
    raise TypeError(f"a persistent id that is neither a storage nor a module: {kind_of(identity)}")


def _tensor(storage: Plain, offset: Plain, shape: Plain, strides: Plain, *rest: Plain) -> StoredTensor:
    """A view of a storage, whose furthest element lies inside."""
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise TypeError(f"a tensor is made of a {kind_of(storage)}, a {kind_of(shape)} and a {kind_of(strides)}")
    whole = all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
    if not isinstance(offset, int) or not whole or len(shape) != len(strides) or len(shape) > 32:
        raise ValueError(f"a tensor has offset {_short(offset)}, shape {_short(shape)} and strides {_short(strides)}")
    if len(rest) > 2 and rest[2]:
        raise ValueError(f"a tensor with the properties {_short(rest[2])} is not read")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last >= storage.size or math.prod(shape) > storage.size):
        raise ValueError(
            f"a tensor of shape {_short(shape)}, strides {_short(strides)} and offset {_short(offset)} exceeds its "
            f"storage {_short(storage.key)} of {storage.size:,} elements"
        )
    return StoredTensor(storage, offset, shape, strides)


def _tensor_of_dtype(storage: Plain, *view: Plain) -> StoredTensor:
    """A view of bytes, of a dtype that PyTorch has no storage for; it stands behind the hooks."""
    *before, dtype = view[:6]
    if not isinstance(storage, Storage) or storage.dtype != UNTYPED or not isinstance(dtype, Named):
        raise TypeError(f"a tensor is made of a {kind_of(storage)} and a {kind_of(dtype)}")
    if dtype.name not in DTYPES or storage.size % DTYPES[dtype.name].itemsize:
        raise ValueError(f"a tensor of {storage.size:,} bytes has the dtype {dtype.name}: not read")
    held = DTYPES[dtype.name]
    return _tensor(Storage(storage.key, held, storage.size // held.itemsize), *before, *view[6:])


def _with_attributes(constructor: Plain, tensor_class: Plain, arguments: Plain, *_: Plain) -> Plain:
    """A tensor or parameter that carries attributes, which are dropped; of another class it is a name."""
    if not isinstance(tensor_class, Named) or tensor_class.is_object:
        raise TypeError(f"the class of a tensor is a {kind_of(tensor_class)}")
    if tensor_class.name not in TENSOR_CLASSES:
        return Named(tensor_class.name, is_object=True)
    if isinstance(constructor, Named) and constructor.name == "torch._tensor._rebuild_from_type_v2":
        raise TypeError(f"a tensor with attributes is made of another {constructor.name}")
    return _parameter(construct(constructor, arguments))


def _parameter(tensor: Plain, *_: Plain) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise TypeError(f"a parameter is made of a {kind_of(tensor)}")
    return tensor


def dictionary(pairs: list[Plain]) -> dict:
    """A dictionary of keys and values in turn."""
    made: dict = {}
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        enter(made, key, value)
    return made


def _ordered(pairs: Plain = (), *_: Plain) -> dict:
    """A dictionary of pairs, as Python 2 wrote one."""
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise TypeError(f"a dictionary is made of a {kind_of(pairs)}")
    return dictionary([value for pair in pairs for value in pair])


def enter(target: dict, key: Plain, value: Plain) -> None:
    """Enter a new key: a scalar, a name or a tensor, or a short tuple of such. What nests may take for ever to hash."""
    parts = key if type(key) is tuple else (key,)
    if len(parts) > 32 or not all(isinstance(part, _Key) for part in parts):
        raise TypeError(f"the key of a dictionary is a {kind_of(key)}; scalars and short tuples of them are read")
    if any(isinstance(part, int) and abs(part) >> 60 for part in parts):
        raise ValueError(
            f"the key of a dictionary is {_short(key)}: integers up to 2**60, each of its own hash, are read"
        )
    if key in target:
        raise ValueError(f"{_short(key)} stands twice in one dictionary")
    target[key] = value


def _elements(values: Plain = (), *_: Plain) -> list:
    """A set or a list."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"a container is made of a {kind_of(values)}")
    return list(values)


_Key = str | bytes | int | float | None | Named | StoredTensor  # of an optimiser's parameters
_short = reprlib.repr  # of values from the file, however deep or long they are


def kind_of(value: Plain) -> str:
    """What to call a value in a message."""
    return value.name if isinstance(value, Named) else type(value).__name__


CONSTRUCTORS: Mapping[str, Callable[..., Plain]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch.Size": lambda sizes=(): tuple(_elements(sizes)),
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
    "builtins.set": _elements,
    "builtins.frozenset": _elements,
    "builtins.list": _elements,
    "builtins.tuple": lambda values=(): tuple(_elements(values)),
}

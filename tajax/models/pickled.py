"""A reader of pickles that runs nothing: what PyTorch writes beside its tensors, as plain data.

A pickle is a program for a small stack machine, and two of its instructions call whatever Python object the file names.
Here that machine is ours. It keeps numbers, texts, lists and dictionaries; it knows the constructors of tensors; it
keeps the names of modules' classes as names, without importing them; and it refuses every other name. No attribute is
ever looked up or set on a Python object, no `__setstate__` or `__reduce__` is called, and neither `pickle` nor
PyTorch takes part: the standard library's `pickletools` splits the file into instructions.

Source: CPython, Lib/pickletools.py, for the instructions; PyTorch, torch/_utils.py and torch/serialization.py, for
the constructors and for what their arguments mean.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
import reprlib
import struct
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

__all__ = ["Named", "Storage", "StoredTensor", "unpickle"]

STORAGES: Mapping[str, np.dtype] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
"""Storage types of PyTorch, and what their bytes are."""

NAMES_KEPT = (
    "__torch__.",  # classes of a TorchScript archive, as OpenAI's files are
    "clip.",
    "fusion_bench.",
    "open_clip.",
    "src.",  # the papers' repositories: src.modeling.ImageEncoder
    "torch.jit._pickle.",
    "torch.nn.",
    "torchvision.transforms.",
    "transformers.",
)
"""Packages whose classes and functions are kept as names. Nothing of them is imported or run."""

_TENSOR_CLASSES = frozenset({"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"})
_SINGLE_NAMES_KEPT = _TENSOR_CLASSES.union(
    {"argparse.Namespace", "builtins.dict", "builtins.list", "torch._C._nn.gelu", "torch.device"}
    | {f"torch.{dtype}" for dtype in ("float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "bool")}
)
_MOST_INSTRUCTIONS = 4_000_000  # a ViT-G with its optimiser has 200,000
_Scalar: TypeAlias = "str | int | float | bool | bytes | None"
Plain: TypeAlias = "_Scalar | list | tuple | dict | Named | Storage | StoredTensor"
"""What a pickle can hold here."""


@dataclasses.dataclass(eq=False)
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


def unpickle(stream: BinaryIO | mmap) -> Plain:
    r"""The object in a pickle, as plain data. The stream is left behind the pickle's last instruction.

    Tuples of a tensor's shape are tuples, sets are lists, dictionaries of all kinds are dictionaries; tensors are
    `StoredTensor`, and everything else that has a class is `Named`.

    Args:
        stream: Of bytes, with `read`, `readline` and `tell`; a read past its end must give what is left, as those of
            `io.BytesIO` and `mmap.mmap` do, since lengths in a pickle may be lies.

    Raises:
        ValueError: the pickle is damaged, or asks for something that is not read here. A name that is refused is
            given, with the names that are not.

    Example:
        >>> import io, pickle
        >>> unpickle(io.BytesIO(pickle.dumps({"a": [1, (2.5, None)]})))
        {'a': [1, (2.5, None)]}
        >>> unpickle(io.BytesIO(b"cposix\nsystem\n(S'true'\ntR."))
        Traceback (most recent call last):
        ValueError: ...the name 'posix.system' is refused...
    """
    machine = _Machine()
    position = stream.tell()
    instructions = pickletools.genops(stream)  # type: ignore[arg-type]  # for which read, readline and tell are enough
    try:
        for count, (instruction, argument, at) in enumerate(instructions):
            position = position if at is None else at
            if count > _MOST_INSTRUCTIONS:
                raise ValueError(f"more than {_MOST_INSTRUCTIONS:,} instructions, where a model has 200,000 at most")
            machine.do(instruction.name, argument)
        return machine.result()
    except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
        what = "an instruction finds nothing to work on" if isinstance(error, LookupError) else error
        raise ValueError(f"byte {position:,} of the pickle: {what}.") from error


class _Machine:
    """The stack machine of a pickle, without the instructions that reach Python."""

    def __init__(self) -> None:
        self.stack: list[Plain] = []
        self.marks: list[int] = []
        self.memo: dict[int, Plain] = {}

    def do(self, name: str, argument: Any) -> None:
        """One instruction, whose argument is of a type of its own."""
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("GLOBAL", "INST"):
            named = _named(*argument.split(" ", 1))
            self.stack.append(named if name == "GLOBAL" else _construct(named, tuple(self.above_mark())))
        elif name in _STACK:
            _STACK[name](self)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"the instruction {name} (a class or a buffer from outside the file) is not read")

    def pop(self) -> Plain:
        """The value on top, of those above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise IndexError
        return self.stack.pop()

    def above_mark(self) -> list[Plain]:
        """What lies above the last mark; both are taken away."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def result(self) -> Plain:
        """The one value that is left."""
        if len(self.stack) != 1 or self.marks:
            raise ValueError("the program ends with other than one value")
        return self.stack[0]

    def tuple_of(self, length: int) -> None:
        self.stack.append(tuple(reversed([self.pop() for _ in range(length)])))

    def extend(self, values: list[Plain]) -> None:
        """Append to the list on top; what is added to an object of a named class is dropped."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not (isinstance(target, Named) and target.is_object):
            raise TypeError(f"elements are added to a {_kind(target)}")

    def set_items(self, pairs: list[Plain]) -> None:
        """Enter keys and values, in turn, into the dictionary on top."""
        target = self.stack[-1]
        if isinstance(target, Named) and target.is_object:
            return
        if not isinstance(target, dict):
            raise TypeError(f"items are set on a {_kind(target)}")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            _enter(target, key, value)

    def build(self) -> None:
        """Give the object on top its state: kept for objects of named classes, dropped for dictionaries."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Named) and target.is_object and target.state is None:
            target.state = state
        elif not isinstance(target, dict):
            raise TypeError(f"a state is set on a {_kind(target)}")

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError(f"a global is named by a {_kind(module)} and a {_kind(name)}")
        self.stack.append(_named(module, name))

    def call(self, *, arguments: int) -> None:
        """Construct from what is named and its arguments; keyword arguments, third in some, are dropped."""
        if arguments == 2:
            self.pop()
        values, named = self.pop(), self.pop()
        self.stack.append(_construct(named, values))

    def call_marked(self) -> None:
        named, *values = self.above_mark()
        self.stack.append(_construct(named, tuple(values)))


_PUSHED = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_CONSTANTS: Mapping[str, Callable[[], Plain]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_STACK: Mapping[str, Callable[[_Machine], object]] = {
    "MARK": lambda m: m.marks.append(len(m.stack)),
    "POP": lambda m: m.pop() if len(m.stack) > (m.marks or [0])[-1] else m.marks.pop(),
    "POP_MARK": lambda m: m.above_mark(),
    "DUP": lambda m: m.stack.append(m.stack[-1]),
    "LIST": lambda m: m.stack.append(m.above_mark()),
    "FROZENSET": lambda m: m.stack.append(m.above_mark()),
    "TUPLE": lambda m: m.stack.append(tuple(m.above_mark())),
    "TUPLE1": lambda m: m.tuple_of(1),
    "TUPLE2": lambda m: m.tuple_of(2),
    "TUPLE3": lambda m: m.tuple_of(3),
    "DICT": lambda m: m.stack.append(_dictionary(m.above_mark())),
    "APPEND": lambda m: m.extend([m.pop()]),
    "APPENDS": lambda m: m.extend(m.above_mark()),
    "ADDITEMS": lambda m: m.extend(m.above_mark()),
    "SETITEM": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m: m.set_items(m.above_mark()),
    "BUILD": _Machine.build,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": lambda m: m.call(arguments=1),
    "NEWOBJ": lambda m: m.call(arguments=1),
    "NEWOBJ_EX": lambda m: m.call(arguments=2),
    "OBJ": _Machine.call_marked,
    "BINPERSID": lambda m: m.stack.append(_persistent(m.pop())),
}


def _named(module: str, name: str) -> Named:
    """A name that may stand in the file, as a name."""
    full = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)  # as Python 2 and protocol 2 call it
    if len(full) > 200:
        raise ValueError(f"a name of {len(full):,} characters")
    if full in _CONSTRUCTORS or full in STORAGES or full in _SINGLE_NAMES_KEPT or full.startswith(NAMES_KEPT):
        return Named(full)
    raise ValueError(
        f"the name {full!r} is refused: unpickling it could run code. Read are the constructors of tensors, storages "
        f"and containers ({', '.join(_CONSTRUCTORS)}), and kept as names without importing them are classes under "
        f"{', '.join(prefix + '*' for prefix in NAMES_KEPT)}. If you trust the file, load it with PyTorch elsewhere "
        "and save its state_dict() as safetensors"
    )


def _construct(named: Plain, arguments: Plain) -> Plain:
    """What a constructor makes of its arguments, or an object of a class that is a name alone."""
    if not isinstance(named, Named) or named.is_object or not isinstance(arguments, tuple):
        raise TypeError(f"a {_kind(named)} is called with a {_kind(arguments)}")
    if named.name in _CONSTRUCTORS:
        return _CONSTRUCTORS[named.name](*arguments)
    if named.name in STORAGES or named.name in _SINGLE_NAMES_KEPT - {"argparse.Namespace", "torch.device"}:
        raise TypeError(f"{named.name} is called")
    return Named(named.name, is_object=True)


def _persistent(identity: Plain) -> Plain:
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
    raise TypeError(f"a persistent id that is neither a storage nor a module: {_kind(identity)}")


def _tensor(storage: Plain, offset: Plain, shape: Plain, strides: Plain, *rest: Plain) -> StoredTensor:
    """A view of a storage, whose furthest element lies inside."""
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise TypeError(f"a tensor is made of a {_kind(storage)}, a {_kind(shape)} and a {_kind(strides)}")
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


def _with_attributes(constructor: Plain, kind: Plain, arguments: Plain, *_: Plain) -> Plain:
    """A tensor or parameter that carries attributes, which are dropped."""
    if not isinstance(kind, Named) or kind.name not in _TENSOR_CLASSES:
        raise TypeError(f"a tensor of the class {_kind(kind)} is not read; {', '.join(sorted(_TENSOR_CLASSES))} are")
    return _parameter(_construct(constructor, arguments))


def _parameter(tensor: Plain, *_: Plain) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise TypeError(f"a parameter is made of a {_kind(tensor)}")
    return tensor


def _dictionary(pairs: list[Plain]) -> dict:
    made: dict = {}
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        _enter(made, key, value)
    return made


def _ordered(pairs: Plain = (), *_: Plain) -> dict:
    """A dictionary of pairs, as Python 2 wrote one."""
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise TypeError(f"a dictionary is made of a {_kind(pairs)}")
    return _dictionary([value for pair in pairs for value in pair])


def _enter(target: dict, key: Plain, value: Plain) -> None:
    """Enter a new key. Only scalars are keys: the hash of nested tuples can take for ever, or overflow the C stack."""
    if not isinstance(key, str | int | float | None):
        raise TypeError(f"the key of a dictionary is a {_kind(key)}")
    if key in target:
        raise ValueError(f"{_short(key)} stands twice in one dictionary")
    target[key] = value


def _elements(values: Plain = (), *_: Plain) -> list:
    """A set or a list."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"a container is made of a {_kind(values)}")
    return list(values)


_short = reprlib.repr  # of values from the file, however deep or long they are


def _kind(value: Plain) -> str:
    return value.name if isinstance(value, Named) else type(value).__name__


_CONSTRUCTORS: Mapping[str, Callable[..., Plain]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch.Size": lambda sizes=(): tuple(_elements(sizes)),
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
    "builtins.set": _elements,
    "builtins.frozenset": _elements,
}

"""A reader of pickles that runs nothing: what PyTorch writes beside its tensors, as plain data.

A pickle is a program for a small stack machine, and two of its instructions call whatever Python object the file names.
Here that machine is ours. It keeps numbers, texts, lists and dictionaries; it knows the constructors of tensors; it
keeps the names of other data as names, without importing them; and it refuses a file that asks for code
(`tajax.models.pickled_names` says what is which). No attribute is ever looked up or set on a Python object, no
`__setstate__` or `__reduce__` is called, and neither `pickle` nor PyTorch takes part: the standard library's
`pickletools` splits the file into instructions. A subclass of `pickle.Unpickler` would not do: whatever its
`find_class` allows, it hashes a tuple of tuples until the process dies, and keeps the second of two equal keys.

Source: CPython, Lib/pickletools.py, for the instructions.
"""

from __future__ import annotations

import pickletools
import reprlib
import struct
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Any, BinaryIO, NamedTuple

from tajax.models.pickled_names import is_kept
from tajax.models.pickled_values import (
    CONSTRUCTORS,
    Named,
    Plain,
    Storage,
    construct,
    dictionary,
    enter,
    kind_of,
    persistent,
)

__all__ = ["Program", "read_program", "unpickle"]

_MOST_INSTRUCTIONS = 4_000_000  # a ViT-G with its optimiser has 200,000
_MOST_GIVEN = 2_000_000  # values to constructors, of which a tensor takes 20; each call may give the same ones again
_MOST_BITS = 1024  # of an integer; states of random numbers have 128


class Program(NamedTuple):
    """What a pickle holds, and the storages that anything in it declares, whether it was kept or not."""

    root: Plain
    storages: Mapping[str, Storage]


def unpickle(stream: BinaryIO | mmap) -> Plain:
    r"""The object in a pickle, as plain data. The stream is left behind the pickle's last instruction.

    Tuples of a tensor's shape are tuples, sets are lists, dictionaries of all kinds are dictionaries; tensors are
    `StoredTensor`, and everything else that has a class is `Named`.

    Args:
        stream: Of bytes, with `read`, `readline` and `tell`; a read past its end must give what is left, as those of
            `io.BytesIO` and `mmap.mmap` do, since lengths in a pickle may be lies.

    Raises:
        ValueError: the pickle is damaged, or asks for something that is not read here. A name that is refused is given.

    Example:
        >>> import io, pickle
        >>> unpickle(io.BytesIO(pickle.dumps({"a": [1, (2.5, None)]})))
        {'a': [1, (2.5, None)]}
        >>> unpickle(io.BytesIO(b"cposix\nsystem\n(S'true'\ntR."))
        Traceback (most recent call last):
        ValueError: ...the name 'posix.system' is refused...
    """
    return read_program(stream).root


def read_program(stream: BinaryIO | mmap) -> Program:
    """The object in a pickle and its storages; all else as `unpickle`."""
    machine = _Machine()
    position = stream.tell()
    instructions = pickletools.genops(stream)  # type: ignore[arg-type]  # for which read, readline and tell are enough
    try:
        for count, (instruction, argument, at) in enumerate(instructions):
            position = position if at is None else at
            if count > _MOST_INSTRUCTIONS:
                raise ValueError(f"more than {_MOST_INSTRUCTIONS:,} instructions, where a model has 200,000 at most")
            machine.do(instruction.name, argument)
        return Program(machine.result(), machine.storages)
    except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
        what = "an instruction finds nothing to work on" if isinstance(error, LookupError) else error
        raise ValueError(f"byte {position:,} of the pickle: {what}.") from error


class _Machine:
    """The stack machine of a pickle, without the instructions that reach Python."""

    def __init__(self) -> None:
        self.stack: list[Plain] = []
        self.marks: list[int] = []
        self.memo: dict[int, Plain] = {}
        self.storages: dict[str, Storage] = {}
        self.given = 0

    def do(self, name: str, argument: Any) -> None:
        """One instruction, whose argument is of a type of its own."""
        if name in _PUSHED:
            if isinstance(argument, int) and argument.bit_length() > _MOST_BITS:
                raise ValueError(f"an integer of {argument.bit_length():,} bits")
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("GLOBAL", "INST"):
            named = _named(*argument.split(" ", 1))
            if name == "GLOBAL":
                self.stack.append(named)
            else:
                self.construct(named, tuple(self.above_mark()))
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
            raise TypeError(f"elements are added to a {kind_of(target)}")

    def set_items(self, pairs: list[Plain]) -> None:
        """Enter keys and values, in turn, into the dictionary on top."""
        target = self.stack[-1]
        if isinstance(target, Named) and target.is_object:
            return
        if not isinstance(target, dict):
            raise TypeError(f"items are set on a {kind_of(target)}")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            enter(target, key, value)

    def build(self) -> None:
        """Give the object on top its state: kept for objects of named classes, dropped for dictionaries."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Named) and target.is_object and target.state is None:
            target.state = state
        elif not isinstance(target, dict):
            raise TypeError(f"a state is set on a {kind_of(target)}")

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError(f"a global is named by a {kind_of(module)} and a {kind_of(name)}")
        self.stack.append(_named(module, name))

    def refer(self) -> None:
        """What a persistent id stands for; a storage that is declared in two ways is refused."""
        identity = self.pop()
        self.give(identity)
        found = persistent(identity)
        if isinstance(found, Storage) and self.storages.setdefault(found.key, found) != found:
            raise ValueError(f"storage {reprlib.repr(found.key)} is declared twice, with other sizes or types")
        self.stack.append(found)

    def call(self, *, arguments: int) -> None:
        """Construct from what is named and its arguments; keyword arguments, third in some, are dropped."""
        if arguments == 2:
            self.pop()
        values, named = self.pop(), self.pop()
        self.construct(named, values)

    def call_marked(self) -> None:
        named, *values = self.above_mark()
        self.construct(named, tuple(values))

    def construct(self, named: Plain, arguments: Plain) -> None:
        self.give(arguments)
        self.stack.append(construct(named, arguments))

    def give(self, arguments: Plain) -> None:
        """Count what a constructor is given, and perhaps copies, before it does."""
        if isinstance(arguments, tuple):
            self.given += len(arguments) + sum(len(part) for part in arguments if isinstance(part, list | tuple))
        if self.given > _MOST_GIVEN:
            raise ValueError(f"its constructors are given more than {_MOST_GIVEN:,} values, the same again and again")


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
    "DICT": lambda m: m.stack.append(dictionary(m.above_mark())),
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
    "BINPERSID": _Machine.refer,
}


def _named(module: str, name: str) -> Named:
    """A name that may stand in the file, as a name."""
    full = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)  # as Python 2 and protocol 2 call it
    if len(full) > 200:
        raise ValueError(f"a name of {len(full):,} characters")
    if full in CONSTRUCTORS or is_kept(full):
        return Named(full)
    raise ValueError(
        f"the name {full!r} is refused: unpickling it could run code. Of the standard library, PyTorch and NumPy only "
        "the constructors of tensors and the names of data are read. If you trust the file, load it with PyTorch "
        "elsewhere and save its state_dict() as safetensors"
    )

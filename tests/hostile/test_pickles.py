"""Pickles that a reader other than ours would fall for: small ones that grow, nest, or reach what they must not."""

import copyreg
import io
import os
import struct
import sys
import time

import numpy as np
import pytest

from tajax.models.pickled import unpickle
from tajax.models.torch_files import open_torch_file
from tests.hostile.conftest import SECONDS, little_memory
from tests.models.pickles import SIX, archive, dictionary, named, number, program, read, storage, tensor, text, tuple_of

MANY = b"(" + b"N" * 100_000
PAIRS = b"(" + b"".join(b"(%sNl" % number(i) for i in range(20_000)) + b"l"
REBUILD = named("torch._tensor._rebuild_from_type_v2") + b"q\x01" + named("torch.Tensor") + b"q\x020"


def again(body, times=3_000):
    """A list of what the body makes, each time anew."""
    return b"](" + body * times + b"e"


def long_integer(length):
    return b"\x8b" + struct.pack("<i", length) + b"\x7f" * length


BOMBS = {
    "lists of a list": (MANY + b"lq\x00" + named("builtins.list") + b"q\x01" + again(b"h\x01h\x00\x85R"), "again"),
    "sets of a tuple": (MANY + b"tq\x00" + named("builtins.set") + b"q\x01" + again(b"h\x01h\x00\x85\x81"), "again"),
    "sizes of a list": (MANY + b"lq\x00" + named("torch.Size") + b"q\x01" + again(b"(h\x01h\x00o"), "again"),
    "tuples of a list": (MANY + b"lq\x00" + again(b"(h\x00ibuiltins\ntuple\n"), "again"),
    "dictionaries of pairs": (
        PAIRS + b"q\x00" + named("collections.OrderedDict") + b"q\x01" + again(b"h\x01h\x00\x85R", 1_000),
        "again",
    ),
    "arguments that are dropped": (
        MANY + b"tq\x00" + named("collections.defaultdict") + b"q\x01" + again(b"h\x01h\x00R", 10_000),
        "again",
    ),
    "a storage with many views": (
        tuple_of(text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), number(6), b"N" * 100_000)
        + b"q\x00"
        + again(b"h\x00Q", 10_000),
        "again",
    ),
    "a list that begins with itself": (b"]q\x00(h\x00" + b"N" * 190_000 + b"e", "more than 200,000 values"),
    "a long name again and again": (
        dictionary(**{"a" * 1_000_000: text("x")}) + b"q\x00" + again(b"h\x00", 2_000),
        "names too long",
    ),
    "a long part of many names": (
        text("a" * 1_000_000) + b"q\x00}(" + b"".join(b"h\x00%s\x86N" % number(i) for i in range(2_000)) + b"u",
        "names too long",
    ),
    "a product of long integers": (tensor(None, 0, (1, 1), (0, 0)).replace(number(1), long_integer(1 << 22)), "bits"),
    "a long integer as a key": (b"}" + long_integer(1 << 22) + b"Ns", "an integer of 33,554,"),
    "a long tuple as a key": (b"}" + MANY + b"tNs", "the key of a dictionary is a tuple"),
    "long integers of one hash": (
        b"}("
        + b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1, 30_000))
        + b"u",
        "each of its own hash",
    ),
    "a key whose hash takes for ever": (b")q\x00" + b"h\x00h\x00\x86q\x00" * 64 + b"}h\x00Ns", "is a tuple"),
    "tensors within tensors": (
        REBUILD + tuple_of(tensor()) + b"q\x03" + b"(h\x01h\x02h\x03}tq\x03" * 5_000 + b"h\x01h\x03R",
        "made of another",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_small_files_that_grow_are_refused(tmp_path, bomb):
    body, message = BOMBS[bomb]
    path = archive(tmp_path / "m.pt", b"](" + body + b"e")
    start = time.process_time()
    with little_memory(), pytest.raises(ValueError, match=message) as error:
        open_torch_file(path)
    assert str(path) in str(error.value) and time.process_time() - start < SECONDS


@pytest.mark.parametrize("add", [b"\x8f(h\x00\x90", b"(h\x00\x91"])
def test_what_lies_in_a_set_is_not_hashed(add):
    """A tuple of itself twice, 64 times over, whose hash would take longer than anybody lives."""
    laughs = b")q\x00" + b"h\x00h\x00\x86q\x00" * 64
    assert len(unpickle(io.BytesIO(program(b"(" + laughs + add + b"t")))[-1]) == 1


def test_objects_within_objects_are_read_however_deep():
    depth = 50_000
    body = named("src.Node") + b"q\x00" + b"h\x00)\x81" * depth + b"b" * (depth - 1)
    value = unpickle(io.BytesIO(program(b"(" + body + b"t")))[1]
    for _ in range(depth - 1):
        value = value.state
    assert value.is_object and value.state is None


def test_extensions_that_another_library_registered_are_not_reached(monkeypatch):
    """Python's own reader takes what its cache of them holds, and asks no `find_class`."""
    copyreg.add_extension("os", "system", 240)
    monkeypatch.setitem(copyreg._extension_cache, 240, os.system)
    try:
        for code in (b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"):
            with pytest.raises(ValueError, match=r"EXT\d .* is not read"):
                unpickle(io.BytesIO(program(code + tuple_of(text("true")) + b"R")))
    finally:
        copyreg.remove_extension("os", "system", 240)


@pytest.mark.parametrize("name", ["src.Node", "torch._utils._rebuild_tensor_v2", "collections.OrderedDict"])
@pytest.mark.parametrize("words", ["__init__", "__new__", "__defaults__", "__setstate__", "__call__"])
def test_nothing_is_set_on_what_a_name_stands_for(tmp_path, name, words):
    """Neither by a dictionary nor by the second of two, which Python's own reader hands to `setattr`."""
    state = b"}" + text(words) + b")s"
    for pair in (state, b"N" + state + b"\x86", state + state + b"\x86"):
        with pytest.raises(ValueError, match=f"a state is set on a {name}"):
            unpickle(io.BytesIO(program(named(name) + pair + b"b")))
    np.testing.assert_array_equal(read(archive(tmp_path / "m.pt", dictionary(a=tensor())))["a"].ravel(), SIX)


def test_a_state_in_two_parts_stays_data():
    state = b"N}" + text("__class__") + named("src.Other") + b"s\x86"
    value = unpickle(io.BytesIO(program(named("src.Node") + b")\x81" + state + b"b")))
    assert type(value).__name__ == "Named" and value.name == "src.Node" and value.state[0] is None
    for target in (tensor(), storage(), b"]", b")", b"N", text("a")):
        with pytest.raises(ValueError, match="a state is set on a"):
            unpickle(io.BytesIO(program(target + state + b"b")))


@pytest.mark.parametrize(
    "name", ["__init__.__globals__", "__class__.__base__.__subclasses__", "modules.module.os.system", "__dict__"]
)
def test_names_with_dots_are_not_followed(name):
    modules = set(sys.modules)
    for module in ("src.Node", "torch.nn", "collections.OrderedDict"):
        found = named("a.b").replace(b"a\nb", f"{module}\n{name}".encode())
        for body in (found, text(module) + text(name) + b"\x93"):
            value = unpickle(io.BytesIO(program(body + tuple_of(text("true")) + b"R")))
            assert (type(value).__name__, value.name) == ("Named", f"{module}.{name}")
    for module in ("os", "builtins", "torch", "numpy"):
        with pytest.raises(ValueError, match="is refused"):
            unpickle(io.BytesIO(program(text(module) + text(name) + b"\x93")))
    assert set(sys.modules) == modules


@pytest.mark.parametrize("target", [b"]K\x01a", b"\x96\x01" + bytes(7) + b"a", b")", b"N"])
def test_items_and_elements_enter_dictionaries_and_lists_alone(target):
    with pytest.raises(ValueError, match="items are set on a"):
        unpickle(io.BytesIO(program(target + b"K\x00K\x02s")))
    if not target.startswith(b"]"):
        with pytest.raises(ValueError, match="elements are added to a"):
            unpickle(io.BytesIO(program(target + b"K\x02a")))

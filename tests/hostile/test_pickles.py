"""Small pickles that grow, or take for ever."""

import struct
import time

import pytest

from tajax.models.torch_files import open_torch_file
from tests.hostile.conftest import SECONDS, little_memory
from tests.models.pickles import archive, dictionary, named, number, tensor, text, tuple_of

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

"""PyTorch files that want something run, or do not fit, or are damaged: refused by name, and nothing is ever run."""

import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tajax.models.pickled import unpickle
from tajax.models.torch_files import open_torch_file
from tests.models.pickles import (
    SIX,
    archive,
    dictionary,
    legacy,
    named,
    number,
    program,
    read,
    storage,
    tensor,
    text,
    tuple_of,
    with_attributes,
)


def hostile(canary):
    """Programs that would make a file if anything ran them, and what their refusal names."""
    command = f"touch {canary}"
    system, run = tuple_of(text(command)), named("os.system")
    makes_it = tuple_of(text(f"open({str(canary)!r}, 'w').close()"))
    stand_in = named("src.modeling.ImageEncoder")
    rebuild = named("torch._utils._rebuild_tensor_v2")

    class Reduced:
        def __reduce__(self):
            return os.system, (command,)

    yield "posix.system", pickle.dumps(Reduced(), 0)
    yield "posix.system", pickle.dumps({"a": [Reduced()]}, 4)
    yield "os.system", run + system + b"R."
    yield "os.system", f"(S'{command}'\nios\nsystem\n.".encode()
    yield "os.system", b"(" + run + text(command) + b"o."
    yield "os.system", text("os") + text("system") + b"\x93" + system + b"R."
    yield "os.system", run + system + b"\x81."
    yield "os.system", run + system + b"}\x92."
    yield "subprocess.Popen", named("subprocess.Popen") + system + b"R."
    for name in ("eval", "exec", "getattr", "setattr", "__import__", "compile", "open"):
        yield f"builtins.{name}", named(f"builtins.{name}") + makes_it + b"R."
        yield f"builtins.{name}", named(f"__builtin__.{name}") + makes_it + b"R."
    for name in ("copyreg._reconstructor", "copyreg.add_extension", "functools.partial", "operator.attrgetter"):
        yield name, named(name) + tuple_of(text("os"), text("system"), number(240)) + b"R."
    for name in ("torch.load", "torch.storage._load_from_bytes", "torch.hub.load", "torch.serialization.load"):
        yield name, named(name) + tuple_of(text(str(canary))) + b"R."
    for name in ("pickle.loads", "runpy.run_path", "tajax.models.pickled.unpickle", "numpy.load"):
        yield name, named(name) + tuple_of(text(str(canary))) + b"R."
    yield "torch.nnevil.run", named("torch.nnevil.run") + system + b"R."
    for name in ("types.CodeType", "types.FunctionType", "ctypes.CDLL", "imp.load_source", "joblib.load", "pip.main"):
        yield name, named(name) + system + b"R."
    yield "EXT1", b"\x82\x01."
    yield "EXT2", b"\x83\x01\x00."
    yield "EXT4", b"\x84\x01\x00\x00\x00."
    yield "PERSID", f"P{command}\n.".encode()
    yield "persistent id", tuple_of(text("module"), text("os"), text("system")) + b"Q."
    yield "persistent id", text(command) + b"Q."
    yield "NEXT_BUFFER", b"\x97."
    yield "a state is set on a src.modeling.ImageEncoder", stand_in + dictionary(__class__=run[:0] + b"N") + b"b."
    yield "a state is set", rebuild + tuple_of(b"N", dictionary(__defaults__=b")")) + b"b."
    yield "a state is set on a list", b"]" + dictionary(append=b"N") + b"b."
    yield "a state is set", tensor() + dictionary(view=b"N") + b"b."
    yield "items are set on a list", b"](" + text("a") + b"Nu."
    yield "is called", text("os.system") + system + b"R."
    yield "is called", b"N" + system + b"\x81."
    yield "is called", named("torch.FloatStorage") + system + b"R."
    yield "is called", named("src.modeling.ImageEncoder") + b")R" + system + b"R."


def test_nothing_in_a_hostile_pickle_is_run(tmp_path):
    canary, count = tmp_path / "canary", 0
    pickle.loads(next(hostile(canary))[1])
    assert canary.exists()  # the programs are what they seem
    canary.unlink()
    open_torch_file(archive(tmp_path / "good.pt", tensor()))  # of the library, an archive's first reading imports some
    modules = set(sys.modules)
    for refused, body in hostile(canary):
        count += 1
        with pytest.raises(ValueError) as error:
            unpickle(io.BytesIO(body))
        assert refused in str(error.value), body
        plain, zipped = tmp_path / "plain.pt", tmp_path / "zipped.pt"
        plain.write_bytes(body)
        with zipfile.ZipFile(zipped, "w") as file:
            file.writestr("x/data.pkl", body)
        for path in (plain, zipped, legacy(tmp_path / "old.pt", body[:-1].removeprefix(b"\x80\x04"), [], b"")):
            with pytest.raises(ValueError) as error:
                open_torch_file(path)
            assert str(path) in str(error.value) and refused in str(error.value)
    assert count > 50
    assert not canary.exists() and set(sys.modules) == modules


def test_a_hostile_object_deep_in_a_real_file_is_refused(torch, tmp_path):
    class Encoder(torch.nn.Linear):
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    for zipped in (True, False):
        torch.save({"state_dict": {}, "model": Encoder(2, 2)}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"m\.pt .*the name 'posix\.mkdir' is refused.*save its state_dict"):
            open_torch_file(tmp_path / "m.pt")
    assert not (tmp_path / "canary").exists()


def test_state_that_objects_are_given_stays_data(tmp_path):
    """`__class__`, `__dict__` and `__setstate__` are words like others: names of tensors, or nothing at all."""
    state = dictionary(____class____=text("x"), ____dict____=b"}", ____setstate____=number(1), _parameters=b"}")
    value = unpickle(io.BytesIO(program(named("src.modeling.ImageEncoder") + b")\x81" + state + b"b")))
    assert type(value).__name__ == "Named" and value.is_object
    ordered = named("collections.OrderedDict") + b")R" + dictionary(keys=number(3)) + b"b"
    assert unpickle(io.BytesIO(program(ordered))) == {}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (tensor(storage(size=7)), "declares 28 bytes, its record has 24"),
        (tensor(storage(size=5), shape=(5,), strides=(1,)), "declares 20 bytes, its record has 24"),
        (tensor(storage(size=1 << 40), shape=(1 << 40,), strides=(1,)), "declares 4,398,046,511,104 bytes"),
        (tensor(storage(size=-1)), "size -1"),
        (tensor(storage("1")), "storage '1' is not in the archive"),
        (tensor(storage("../../../etc/passwd")), "passwd' is not in the archive"),
        (tensor(storage("0", "torch.QInt8Storage")), "the name 'torch.QInt8Storage' is refused"),
        (tensor(storage("0", "torch.FloatStorage", 6, tuple_of(text("v"), number(0), number(1)))), "not read"),
        (tensor(offset=1), "exceeds its storage '0' of 6 elements"),
        (tensor(offset=-1), "offset -1"),
        (tensor(shape=(2, 4)), "exceeds its storage"),
        (tensor(strides=(4, 1)), "exceeds its storage"),
        (tensor(strides=(-3, 1)), "strides (-3, 1)"),
        (tensor(strides=(1,)), "strides (1,)"),
        (tensor(shape=(1 << 30, 1 << 30), strides=(0, 0)), "exceeds its storage"),
        (tensor(shape=(1,) * 40, strides=(1,) * 40), "a tensor has offset 0"),
        (tensor(None, 0, (2, 3), (3, 1), dictionary(conj=b"\x88")), "'conj': True"),
        (tensor(b"N"), "a tensor is made of a NoneType"),
        (with_attributes("torch.Tensor", "src.anything", tensor()), "a parameter is made of a src.anything"),
        (dictionary(a=tensor()) + text("a") + b"Ns", "'a' stands twice in one dictionary"),
        (dictionary(a__b=tensor(), a=dictionary(b=tensor())), "'a.b' stands twice"),
        (b"]" * 100 + b"a" * 99, "nested more than 64 deep"),
        (b")" + b"\x85" * 30_000 + b"q\x000}h\x00Ns", "the key of a dictionary is a tuple"),
        (dictionary(a=tensor(), b=tensor(storage("0", "torch.HalfStorage", 12))), "declared twice"),
        (b"(", "other than one value"),
        (b"NN", "other than one value"),
        (b"h\x07", "nothing to work on"),
        (b"0", "nothing to work on"),
        (named("src." + "a" * 300), "a name of 304 characters"),
        (b"I" + b"9" * 5000 + b"\n", "cannot be read"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path, body, message):
    path = archive(tmp_path / "m.pt", body)
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        open_torch_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(error.value) and message in str(error.value)
    assert peak < 40e6  # nothing of the declared size was allocated


def test_values_that_contain_each_other_again_and_again_end(tmp_path):
    body = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))
    with pytest.raises(ValueError, match="more than 200,000 values"):
        open_torch_file(archive(tmp_path / "m.pt", b"(" + body + b"t0h\x3c"))
    body = b"]q\x00h\x00a"  # a list that holds itself
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        open_torch_file(archive(tmp_path / "m.pt", body))


def test_a_memo_of_any_number_and_lengths_that_lie_allocate_nothing():
    assert unpickle(io.BytesIO(b"K\x05r\xff\xff\xff\xff0j\xff\xff\xff\xff.")) == 5
    for lie in (b"\x8e" + b"\xff" * 7 + b"\x3f", b"X\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f"):
        with pytest.raises(ValueError, match="byte 0 of the pickle"):
            unpickle(io.BytesIO(lie + b"."))


def test_archives_that_pytorch_does_not_write_are_refused(tmp_path):
    body, path = dictionary(a=tensor()), tmp_path / "m.pt"
    bomb = tensor(storage(size=1 << 22), shape=(1 << 22,), strides=(1,))
    for make, message in [
        (lambda: archive(path, bomb, {"data/0": bytes(1 << 24)}, compressed={"data/0"}), "is compressed or encrypted"),
        (lambda: archive(path, body, byteorder=b"big"), "big-endian"),
        (lambda: archive(path, body, {"data/0": SIX.tobytes(), "data.pkl": bytes((1 << 26) + 1)}), "more than any"),
        (lambda: archive(path, body, {}), "storage '0' is not in the archive"),
        (lambda: archive(path, body, root="a/b"), "with 0 data.pkl"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_torch_file(make())
    archive(path, body)
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", bytes(24))
    with pytest.raises(ValueError, match="a name stands twice in the archive"):
        open_torch_file(path)
    with zipfile.ZipFile(archive(path, body), "a") as file:
        file.writestr("other/data.pkl", b"N.")
    with pytest.raises(ValueError, match="with 2 data.pkl"):
        open_torch_file(path)


def test_old_files_that_do_not_fit_are_refused(tmp_path):
    body, path = dictionary(a=tensor(storage("0", "torch.FloatStorage", 6, b"N"))), tmp_path / "m.pt"
    data = struct.pack("<q", 6) + SIX.tobytes()
    cases = [
        (lambda: legacy(path, body, ["0"], data, little=b"\x89"), "big-endian"),
        (lambda: legacy(path, body, ["0"], data[:-1]), "declares 24 bytes, 23 are left"),
        (lambda: legacy(path, body, ["0"], b""), "declares 24 bytes, 0 are left"),
        (lambda: legacy(path, body, ["0"], struct.pack("<q", 5) + data[8:]), "declares 6 elements, its data 5"),
        (lambda: legacy(path, body, [], data), "storage '0' is not in the file"),
        (lambda: legacy(path, body, ["1"], data), "names some that no tensor has"),
        (lambda: path.write_bytes(pickle.dumps({"a": 1}, 2)) and path, "not a file of torch.save"),
        (lambda: path.write_bytes(b"") or path, "it is empty"),
        (lambda: path.write_text("version https://git-lfs.github.com/spec/v1\n") and path, "Git LFS pointer"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            open_torch_file(make())


@pytest.mark.parametrize("layout", ["archive", "legacy"])
def test_a_truncated_file_is_never_read_and_a_damaged_one_raises_nothing_else(tmp_path_factory, layout):
    directory = tmp_path_factory.mktemp("damaged")
    path = directory / "m.pt"
    body = dictionary(a=tensor(storage("0", "torch.FloatStorage", 6, *([b"N"] if layout == "legacy" else []))))
    if layout == "archive":
        archive(path, body)
    else:
        legacy(path, body, ["0"], struct.pack("<q", 6) + SIX.tobytes())
    whole = path.read_bytes()
    np.testing.assert_array_equal(read(path)["a"].ravel(), SIX)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=str(path)):
            read(path)

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=4))
    def damaged(changes):
        data = bytearray(whole)
        for place, byte in changes:
            data[place] = byte
        path.write_bytes(data)
        try:
            read(path)
        except ValueError as error:
            assert str(path) in str(error)

    damaged()


def test_values_damaged_on_disk_are_noticed_in_an_archive(tmp_path):
    path = archive(tmp_path / "m.pt", dictionary(a=tensor()))
    path.write_bytes(path.read_bytes().replace(SIX.tobytes(), (SIX + 1).tobytes()))
    with pytest.raises(ValueError, match=r"m\.pt is damaged: Bad CRC-32"):
        read(path)

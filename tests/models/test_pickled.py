"""PyTorch files: read to the bit, whatever wrote them; and nothing that stands in one is ever run."""

import argparse
import collections
import datetime
import decimal
import enum
import io
import os
import pathlib
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tajax.models.pickled import unpickle
from tajax.models.torch_files import open_torch_file


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def with_attributes(kind, constructor, *arguments):
    parts = (named(constructor), named(kind), tuple_of(*arguments), dictionary(mark=b"\x88"))
    return named("torch._tensor._rebuild_from_type_v2") + tuple_of(*parts) + b"R"


def number(value):
    return b"J" + struct.pack("<i", value) if abs(value) < 1 << 31 else b"\x8a\x09" + value.to_bytes(9, "little")


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def dictionary(**items):
    return b"}(" + b"".join(text(key.replace("__", ".")) + value for key, value in items.items()) + b"u"


def named(name):
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def storage(key="0", kind="torch.FloatStorage", size=6, *more):
    return tuple_of(text("storage"), named(kind), text(key), text("cpu"), number(size), *more) + b"Q"


def tensor(held=None, offset=0, shape=(2, 3), strides=(3, 1), *more):
    sizes = [tuple_of(*map(number, axis)) for axis in (shape, strides)]
    parts = [storage() if held is None else held, number(offset), *sizes, b"\x89", named("collections.OrderedDict")]
    return named("torch._utils._rebuild_tensor_v2") + tuple_of(*parts[:-1], parts[-1] + b")R", *more) + b"R"


def program(body):
    return b"\x80\x02" + body + b"."


SIX = np.arange(6, dtype="<f4")


def archive(path, body, records=None, *, root="archive", compressed=(), **more):
    """A file as `torch.save` writes it, from hand-made instructions."""
    records = {"data/0": SIX.tobytes()} if records is None else records
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"data.pkl": program(body), "byteorder": b"little", **records, **more}.items():
            kind = zipfile.ZIP_DEFLATED if name in compressed else zipfile.ZIP_STORED
            file.writestr(f"{root}/{name}", data, kind)
    return path


def legacy(path, body, keys, data, *, little=b"\x88"):
    """A file as `torch.save` wrote it before PyTorch 1.6."""
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)]
    parts += [program(dictionary(protocol_version=number(1001), little_endian=little)), program(body)]
    path.write_bytes(b"".join(parts) + pickle.dumps(keys, 2) + data)
    return path


def read(path):
    file = open_torch_file(path)
    return file.read(file.tensors)


def test_hand_made_files_of_both_layouts_are_read(tmp_path):
    marked = with_attributes("torch.nn.parameter.Parameter", "torch._utils._rebuild_parameter", tensor(), b"\x88", b"N")
    parts = {"a": tensor(), "b": tensor(offset=1, shape=(2, 2), strides=(1, 2)), "c": marked}
    body = dictionary(model=dictionary(**parts), epoch=number(3))
    view = storage("0", "torch.FloatStorage", 6, b"N")
    old = body.replace(storage(), view)
    for path in (
        archive(tmp_path / "new.pt", body),
        legacy(tmp_path / "old.pt", old, ["0"], struct.pack("<q", 6) + SIX.tobytes()),
    ):
        tensors = read(path)
        assert tensors.keys() == {"model.a", "model.b", "model.c"}
        for name in ("model.a", "model.c"):
            np.testing.assert_array_equal(tensors[name], [[0, 1, 2], [3, 4, 5]])
        np.testing.assert_array_equal(tensors["model.b"], [[1, 3], [2, 4]])


def test_a_module_is_its_parameters_buffers_and_modules_and_its_class_is_a_name(tmp_path):
    inner = dictionary(_parameters=dictionary(w=tensor(), none=b"N"), _buffers=b"}", _modules=b"}", secret=tensor())
    inner = named("src.modeling.Head") + b")\x81" + inner + b"b"
    outer = dictionary(_parameters=b"}", _buffers=dictionary(b=tensor()), _modules=dictionary(head=inner))
    file = open_torch_file(archive(tmp_path / "m.pt", named("open_clip.model.CLIP") + b")\x81" + outer + b"b"))
    assert file.tensors.keys() == {"head.w", "b"}
    assert file.classes == {"": "open_clip.model.CLIP", "head": "src.modeling.Head"}


class Arguments:
    """Settings as a training script keeps them."""

    def __init__(self):
        self.lr, self.out = 1e-5, pathlib.PurePosixPath("runs/a")


class Split(enum.Enum):
    TRAIN = "train"


def test_values_beside_the_weights_are_kept_as_names(tmp_path):
    """Whatever lies there, and of whatever package: nothing of it is imported, and a module is another thing."""
    beside = {
        "args": argparse.Namespace(lr=1e-5),
        "settings": Arguments(),
        "accuracy": np.float64(0.5),
        "history": np.arange(3.0),
        "when": datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
        "where": pathlib.PurePosixPath("runs/a"),
        "counts": collections.Counter("aab"),
        "nested": collections.defaultdict(list, {"split": [Split.TRAIN]}),
        "by": {Split.TRAIN: 1, ("train", 2): 2, b"raw": 3},
        "price": decimal.Decimal("1.5"),
        "none": types.SimpleNamespace(a=complex(1, 2)),
    }
    for protocol in range(2, 6):
        body = pickle.dumps(beside, protocol)[:-1]
        whole = dictionary(model=dictionary(a=tensor()), beside=body[2:] if body[:1] == b"\x80" else body)
        file = open_torch_file(archive(tmp_path / "m.pt", whole))
        np.testing.assert_array_equal(file.read(["model.a"])["model.a"].ravel(), SIX)
        assert file.tensors.keys() == {"model.a"} and not file.classes
        assert file.others["beside.args"] == "argparse.Namespace"
        assert file.others["beside.settings"].endswith("test_pickled.Arguments")
        assert file.others["beside.when"] == "datetime.datetime" and "beside.accuracy" in file.others


def test_names_of_packages_that_are_not_here_are_names(tmp_path):
    config = named("omegaconf.dictconfig.DictConfig") + b")\x81" + dictionary(_content=dictionary(a=tensor())) + b"b"
    odd = with_attributes("src.Odd", "torch._utils._rebuild_parameter", tensor())
    parts = {"w": tensor(), "hyper": config, "odd": odd, "fn": named("osrc.x") + tuple_of(text("a")) + b"R"}
    modules = set(sys.modules)
    file = open_torch_file(archive(tmp_path / "m.pt", dictionary(**parts)))
    assert file.tensors.keys() == {"w"} and set(sys.modules) == modules
    assert file.others == {"hyper": "omegaconf.dictconfig.DictConfig", "odd": "src.Odd", "fn": "osrc.x"}


def test_a_storage_that_only_a_name_holds_does_not_shift_those_behind_it(tmp_path):
    """Of the layout before PyTorch 1.6, in which storages follow each other without names."""
    hidden = named("src.Cache") + b")\x81" + dictionary(seen=tensor(storage("0", "torch.HalfStorage", 6, b"N"))) + b"b"
    body = dictionary(cache=hidden, a=tensor(storage("1", "torch.FloatStorage", 6, b"N")))
    count = struct.pack("<q", 6)
    path = legacy(tmp_path / "m.pt", body, ["0", "1"], count + bytes(12) + count + SIX.tobytes())
    np.testing.assert_array_equal(read(path)["a"].ravel(), SIX)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[parity]'")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read_to_the_bit(torch, tmp_path, zipped):
    torch.manual_seed(0)
    whole = torch.randn(5, 4)
    dtypes = ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint32")
    tensors = {dtype: whole.to(getattr(torch, dtype)) for dtype in dtypes}
    tensors |= {"whole": whole, "transposed": whole.T, "part": whole[1:4, ::2], "column": whole[:, 3], "row": whole[2]}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "again": whole}
    tensors |= {"parameter": torch.nn.Parameter(whole[:2]), "nothing": torch.zeros(3)[3:]}
    torch.save(tensors, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
    ours = read(tmp_path / "t.pt")
    assert ours.keys() == tensors.keys()
    for name, value in tensors.items():
        same = torch.tensor(ours[name].astype(np.float64)) == value.detach().double()
        assert ours[name].shape == tuple(value.shape) and same.all(), name
        assert ours[name].dtype.name == str(value.dtype).removeprefix("torch.")
    assert np.shares_memory(ours["whole"], ours["part"])


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_scripts_leave_beside_the_weights(torch, tmp_path, zipped):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    beside = {
        "optimizer": optimizer,
        "optimizer_state": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": (torch.get_rng_state(), np.random.get_state(), np.random.default_rng(0)),
        "version": torch.__version__,
        "kinds": [torch.bfloat16, torch.device("cpu"), torch.Size([2])],
        "sparse": torch.ones(2, 2).to_sparse(),
        "best": np.float32(0.5),
    }
    torch.save({"model": model.state_dict(), **beside}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    file = open_torch_file(tmp_path / "m.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(torch.tensor(file.read([f"model.{name}"])[f"model.{name}"]), value)
    assert not file.classes and {"optimizer", "sparse", "best", "version"} <= file.others.keys()


def test_floats_of_eight_bits_are_refused_where_they_are_asked_for(torch, tmp_path):
    torch.save({"a": torch.ones(2), "b": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "m.pt")
    file = open_torch_file(tmp_path / "m.pt")
    np.testing.assert_array_equal(file.read(["a"])["a"], [1, 1])
    with pytest.raises(ValueError, match=r"m\.pt: 'b' is float8_e4m3fn, floats of fewer than 16 bits, .* as bfloat16"):
        file.read(["b"])


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_modules_of_torch_are_their_state_dicts(torch, tmp_path, zipped):
    module = torch.nn.Sequential(torch.nn.MultiheadAttention(4, 2), torch.nn.BatchNorm1d(3), torch.nn.GELU())
    module[0].register_forward_hook(torch.nn.functional.relu)
    torch.save(module, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    state = module.state_dict()
    ours = read(tmp_path / "m.pt")
    assert ours.keys() == state.keys()
    assert all(torch.equal(torch.tensor(ours[name]), value) for name, value in state.items())
    assert open_torch_file(tmp_path / "m.pt").classes["2"] == "torch.nn.modules.activation.GELU"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_archives_are_their_state_dicts(torch, tmp_path):
    """The layout of OpenAI's published files; the code in them stays where it is."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2).half(), torch.nn.LayerNorm(2))
    module.register_buffer("input_resolution", torch.tensor(224))
    torch.jit.save(torch.jit.trace(module[1], torch.ones(2)), tmp_path / "trace.pt")
    torch.jit.save(torch.jit.script(module), tmp_path / "script.pt")
    for name, state in (("trace", module[1].state_dict()), ("script", module.state_dict())):
        ours = read(tmp_path / f"{name}.pt")
        assert ours.keys() == state.keys()
        assert all(torch.equal(torch.tensor(ours[key]), value) for key, value in state.items())


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

"""PyTorch files are read to the bit, whatever wrote them."""

import argparse
import collections
import datetime
import decimal
import enum
import pathlib
import pickle
import struct
import sys
import types

import numpy as np
import pytest

from tajax.models.torch_files import open_torch_file
from tests.models.pickles import (
    SIX,
    archive,
    dictionary,
    legacy,
    named,
    number,
    read,
    storage,
    tensor,
    text,
    tuple_of,
    with_attributes,
)


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

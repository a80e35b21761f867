"""A task vector on disk is what was saved, bit for bit, or an error that names the tensor."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tajax import atomic
from tajax.vector_files import (
    FORMAT,
    is_task_vector,
    load_task_vector,
    read_metadata,
    save_task_vector,
    vector_metadata,
)


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


MASK = {"blocks": {"kernel": True, "bias": False}, "scale": True, "logit_scale": False}


@pytest.fixture
def tau(params):
    return jax.tree.map(lambda p, trained: p / 3 if trained else jnp.zeros_like(p), params, MASK)


def test_task_vector_returns_bit_for_bit_without_its_frozen_leaves(tmp_path, tau, params):
    path = tmp_path / "deep" / "digits.safetensors"
    save_task_vector(path, tau, {"task": "digits", "seed": 3, "rule": ["a", "b"]}, mask=MASK)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert sorted(file.keys()) == ["blocks/kernel", "scale"]
    loaded, metadata = load_task_vector(path, params)
    assert_identical(loaded, tau)
    described = {"task": "digits", "seed": 3, "rule": '["a", "b"]'}
    assert metadata == described | {"naming": "tajax", "dtype": "bfloat16, float32"}
    assert read_metadata(path) == metadata
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary left


def test_layers_that_were_frozen_come_back_as_zeros(tmp_path, tau, params):
    layers = np.array([True, False, True])
    mask = MASK | {"blocks": {"kernel": layers, "bias": np.zeros(4, bool)}}
    with pytest.raises(ValueError, match="blocks/kernel is frozen by the mask and yet not zero"):
        save_task_vector(tmp_path / "t", tau, {}, mask=mask)
    kernel = jnp.where(layers[:, None], tau["blocks"]["kernel"], 0)
    tau = tau | {"blocks": tau["blocks"] | {"kernel": kernel}}
    save_task_vector(tmp_path / "t", tau, {}, mask=mask)
    assert_identical(load_task_vector(tmp_path / "t", params)[0], tau)


def test_without_mask_everything_is_stored(tmp_path, params):
    save_task_vector(tmp_path / "t", params, {})
    assert_identical(load_task_vector(tmp_path / "t", params)[0], params)


def test_task_vector_that_is_none_is_not_written(tmp_path, tau):
    path = tmp_path / "t.safetensors"
    with pytest.raises(ValueError, match="blocks/bias is frozen by the mask and yet not zero"):
        save_task_vector(path, tau | {"blocks": tau["blocks"] | {"bias": jnp.ones(4)}}, {}, mask=MASK)
    with pytest.raises(ValueError, match="scale"):
        save_task_vector(path, tau | {"scale": jnp.array([1.0, jnp.nan])}, {}, mask=MASK)
    with pytest.raises(ValueError, match="reserved key 'format'"):
        save_task_vector(path, tau, {"format": "mine"}, mask=MASK)
    with pytest.raises(ValueError, match="lacks scale, which is in the mask"):
        save_task_vector(path, {k: v for k, v in tau.items() if k != "scale"}, {}, mask=MASK)
    assert not list(tmp_path.iterdir())


def test_task_vector_of_another_model_is_refused(tmp_path, tau, params):
    path = tmp_path / "t.safetensors"
    save_task_vector(path, tau, {}, mask=MASK)
    with pytest.raises(ValueError, match=r"t.safetensors: scale has shape \(2,\), the model's is \(3,\)"):
        load_task_vector(path, params | {"scale": jnp.zeros(3)})
    with pytest.raises(ValueError, match="holds scale, which is not in the model"):
        load_task_vector(path, {k: v for k, v in params.items() if k != "scale"})


def test_damaged_or_foreign_file_is_refused(tmp_path, tau, params):
    path = tmp_path / "t.safetensors"
    with pytest.raises(FileNotFoundError, match="no task vector .*t.safetensors"):
        load_task_vector(path, params)
    save_task_vector(path, tau, {}, mask=MASK)
    whole = path.read_bytes()
    for content in (whole[:-5], whole[:20], b"", b"not tensors at all"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"t.safetensors \([\d,]+ bytes\) is truncated, damaged or no safetensors file"
        ):
            load_task_vector(path, params)
    safetensors.numpy.save_file({"scale": np.zeros(2, np.float32)}, path)
    with pytest.raises(ValueError, match="not a task vector of tajax"):
        load_task_vector(path, params)


def test_tensor_lost_or_added_after_saving_is_noticed(tmp_path, tau, params):
    """A missing tensor must not come back as the zeros of a frozen leaf."""
    path = tmp_path / "t.safetensors"
    save_task_vector(path, tau, {}, mask=MASK)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata, kernel = file.metadata(), file.get_tensor("blocks/kernel")
    safetensors.numpy.save_file({"blocks/kernel": kernel}, path, metadata=metadata)
    with pytest.raises(ValueError, match="lacks scale, which is in the list in its metadata"):
        load_task_vector(path, params)
    extra = {"blocks/kernel": kernel, "scale": kernel[0, :2], "logit_scale": np.zeros(())}
    safetensors.numpy.save_file(extra, path, metadata=metadata)
    with pytest.raises(ValueError, match="holds logit_scale, which is not in the list in its metadata"):
        load_task_vector(path, params)


def test_failed_write_leaves_the_old_file(tmp_path, tau, params, monkeypatch):
    path = tmp_path / "t.safetensors"
    save_task_vector(path, tau, {"seed": 1}, mask=MASK)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_task_vector(path, tau, {"seed": 2}, mask=MASK)
    assert load_task_vector(path, params)[1]["seed"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


SHA = "5f" * 32


def described(**changes):
    return vector_metadata(**{"model": "owner/clip", "base_sha256": SHA, "task": "digits"} | changes)


def test_what_a_vector_says_of_itself_comes_back_as_it_was(tmp_path, tau, params):
    fields = described(
        revision="3d" * 20,
        regime="linear_attention",
        trainable={"attn/.*": True, ".*": False},
        layers=(0, 6),
        linearized=True,
        seed=3,
        config_hash="0d134eb23e5d",
    )
    assert fields["layers"] == [0, 6] and fields["tajax_version"]
    save_task_vector(tmp_path / "t", tau, fields, mask=MASK)
    for metadata in (load_task_vector(tmp_path / "t", params)[1], read_metadata(tmp_path / "t")):
        assert {key: metadata[key] for key in fields} == fields
    assert "revision" not in described() and "layers" not in described(trainable="attention")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_sha256": "5f5f"}, "base_sha256 = '5f5f' is not a SHA-256"),
        ({"seed": -1}, "seed = '-1', which cannot be"),
        ({"layers": (0, 1, 2)}, r"layers = '\[0, 1, 2\]'"),
        ({"linearized": "yes"}, "linearized"),
        ({"trainable": 7}, "trainable = '7'"),
    ],
)
def test_a_field_of_another_kind_is_refused_when_written_and_when_read(tmp_path, tau, params, changes, message):
    with pytest.raises(ValueError, match=message):
        described(**changes)
    save_task_vector(tmp_path / "t", tau, described(), mask=MASK)
    with safetensors.safe_open(tmp_path / "t", framework="numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    forged = {key: value if isinstance(value, str) else json.dumps(value) for key, value in changes.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "t", metadata=metadata | forged)
    with pytest.raises(ValueError, match=message):
        load_task_vector(tmp_path / "t", params)


def test_a_vector_of_another_base_is_refused_unless_forced(tmp_path, tau, params):
    path = tmp_path / "t.safetensors"
    save_task_vector(path, tau, described(revision="3d" * 20), mask=MASK)
    assert_identical(load_task_vector(path, params, base_sha256=SHA)[0], tau)
    with pytest.raises(
        ValueError, match=f"sha256 {SHA} .owner/clip at {'3d' * 20}., but that of this base is {'a1' * 32}"
    ):
        load_task_vector(path, params, base_sha256="a1" * 32)
    assert_identical(load_task_vector(path, params, base_sha256="a1" * 32, force=True)[0], tau)
    save_task_vector(path, tau, {"task": "digits"}, mask=MASK)
    with pytest.raises(ValueError, match="does not say from which base it was made. Pass force=True"):
        load_task_vector(path, params, base_sha256=SHA)
    assert_identical(load_task_vector(path, params, base_sha256=SHA, force=True)[0], tau)


@pytest.mark.parametrize(("dtype", "relative", "absolute"), [("float16", 2**-11, 2**-25), ("bfloat16", 2**-8, 0.0)])
def test_half_precision_halves_the_file_at_the_rounding_that_is_promised(tmp_path, key, dtype, relative, absolute):
    magnitudes = 10.0 ** jax.random.uniform(key, (64, 64), minval=-7, maxval=0)
    tau = {"kernel": jnp.where(magnitudes > 1e-3, -magnitudes, magnitudes)}
    for name, stored in (("whole", None), ("half", dtype)):
        save_task_vector(tmp_path / name, tau, described(), dtype=stored)
    loaded, metadata = load_task_vector(tmp_path / "half", tau)
    assert metadata["dtype"] == dtype and loaded["kernel"].dtype == jnp.float32
    bound = np.maximum(relative * np.abs(tau["kernel"]), absolute)
    assert (np.abs(loaded["kernel"] - tau["kernel"]) <= bound).all()
    sizes = [(tmp_path / name).stat().st_size for name in ("whole", "half")]
    assert sizes[0] - sizes[1] == pytest.approx(2 * 64 * 64, abs=16)
    with pytest.raises(ValueError, match=r"kernel overflows float16 \(max \|τ\| 1e\+06\)"):
        save_task_vector(tmp_path / "x", {"kernel": jnp.float32([1e6])}, {}, dtype="float16")
    with pytest.raises(ValueError, match="dtype must be one of float16, .* got int8"):
        save_task_vector(tmp_path / "x", tau, {}, dtype="int8")
    assert not (tmp_path / "x").exists()


def write_raw(path, header, data=b"", length=None):
    content = header.encode()
    path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + data)


def entry(name, start=0, end=8, dtype="F32", shape="[2]"):
    return f'"{name}": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{start}, {end}]}}'


METADATA = f'"__metadata__": {{"format": "{FORMAT}", "trained": "[]"}}'


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        (f"{{{METADATA}, {entry('scale')}, {entry('scale')}}}", None, "its header names 'scale' more than once"),
        (f"{{{METADATA}, {METADATA}, {entry('scale')}}}", None, "names '__metadata__' more than once"),
        (f"{{{METADATA}, {entry('../scale')}}}", None, "the name '../scale' of a tensor leads out of its directory"),
        (f"{{{METADATA}, {entry('/etc/scale')}}}", None, "'/etc/scale' of a tensor leads out"),
        (f"{{{METADATA}, {entry('scale')}}}", 3, "its header is not JSON"),
        (f"{{{METADATA}, {entry('scale')}}}", 10**6, "the length of its header is given as 1,000,000 bytes"),
        (f"{{{METADATA}, {entry('scale')}}}", 2**63, "the length of its header is given as 9,223,372,"),
        (f"{{{METADATA}, {entry('scale', end=80, shape='[20]')}}}", None, "truncated, damaged or no safetensors"),
        (f"{{{METADATA}, {entry('scale', dtype='F99')}}}", None, "truncated, damaged or no safetensors"),
        ('{"__metadata__": {"format": 7}}', None, "its header is not an object of tensors and strings"),
        ("[" * 100_000, None, "its header is not JSON"),
        ("[1]", None, "its header is not an object"),
    ],
)
def test_a_header_that_lies_is_refused_by_name(tmp_path, params, header, length, message):
    path = tmp_path / "t.safetensors"
    write_raw(path, header, b"\0" * 8, length)
    with pytest.raises(ValueError, match=message) as refused:
        load_task_vector(path, params)
    assert "t.safetensors" in str(refused.value)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("value", "message"), [(np.nan, "'scale' is not finite"), (np.inf, "'scale' is not finite")])
def test_numbers_that_are_none_are_refused(tmp_path, params, value, message):
    metadata = {"format": FORMAT, "trained": '["scale"]'}
    safetensors.numpy.save_file({"scale": np.float32([1, value])}, tmp_path / "t", metadata=metadata)
    with pytest.raises(ValueError, match=message):
        load_task_vector(tmp_path / "t", params)
    safetensors.numpy.save_file({"scale": np.int32([1, 2])}, tmp_path / "t", metadata=metadata)
    with pytest.raises(ValueError, match="scale holds int32, not a float"):
        load_task_vector(tmp_path / "t", params)


def test_what_a_file_is_can_be_asked_without_reading_it(tmp_path, tau):
    save_task_vector(tmp_path / "tau.safetensors", tau, {}, mask=MASK)
    safetensors.numpy.save_file({"scale": np.zeros(2, np.float32)}, tmp_path / "clip.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "tau.safetensors").read_bytes()[:40])
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    answers = {file.name: is_task_vector(file) for file in [*tmp_path.iterdir(), tmp_path / "absent", tmp_path]}
    assert [name for name, answer in answers.items() if answer] == ["tau.safetensors"]
    with pytest.raises(ValueError, match=r"pointer\.safetensors .* is a Git LFS pointer"):
        read_metadata(tmp_path / "pointer.safetensors")


@pytest.fixture
def few(rng):
    """A vector of which some entries moved: a large leaf, a small one, one of 16 bits, a scalar, −0 among them."""
    leaf = rng(90).normal(size=(2, 60, 20)).astype(np.float32) * (rng(91).random((2, 60, 20)) < 0.1)
    leaf[0, 0, 0], leaf[0, 0, 1] = -0.0, 1e-30
    narrow = jnp.asarray(np.where(rng(92).random(400) < 0.2, 3.0, 0.0), jnp.bfloat16)
    whole = jnp.asarray(rng(93).normal(size=7), jnp.float32)
    return {"blocks": {"kernel": jnp.asarray(leaf), "bias": whole}, "narrow": narrow, "scale": jnp.float32(0)}


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_a_sparse_file_holds_what_a_dense_one_does_in_fewer_bytes(dtype, tmp_path, few):
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    save_task_vector(dense, few, {"task": "x"}, dtype=dtype)
    save_task_vector(sparse, few, {"task": "x"}, dtype=dtype, sparse=True)
    assert_identical(load_task_vector(sparse, few)[0], load_task_vector(dense, few)[0])
    assert load_task_vector(sparse, few)[1] == load_task_vector(dense, few)[1] == read_metadata(sparse)
    kernel = np.asarray(few["blocks"]["kernel"])
    assert np.signbit(np.asarray(load_task_vector(sparse, few)[0]["blocks"]["kernel"])[0, 0, 0])
    held = safetensors.numpy.load_file(sparse)
    assert sorted(held) == [
        "blocks/bias",
        "blocks/kernel",
        "blocks/kernel#entries",
        "narrow",
        "narrow#entries",
        "scale",
    ]
    if dtype is None:
        np.testing.assert_array_equal(
            np.unpackbits(held["blocks/kernel#entries"]), (kernel.view(np.uint32) != 0).reshape(-1)
        )
        np.testing.assert_array_equal(held["blocks/kernel"], kernel[kernel.view(np.uint32) != 0])
    stored = {path: safetensors.numpy.load_file(path) for path in (dense, sparse)}
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in stored.values()]
    assert sizes[1] < 0.6 * sizes[0]


def test_where_sparse_is_not_smaller_the_file_is_that_of_a_dense_one(tmp_path, params):
    save_task_vector(tmp_path / "dense", params, {})
    save_task_vector(tmp_path / "sparse", params, {}, sparse=True)
    for a, b in zip(*(safetensors.numpy.load_file(tmp_path / n).items() for n in ("dense", "sparse")), strict=True):
        assert a[0] == b[0] and a[1].tobytes() == b[1].tobytes()
    assert "sparse" not in safetensors.safe_open(tmp_path / "sparse", "numpy").metadata()


def test_a_sparse_vector_under_pytorchs_names_is_refused(tmp_path, few):
    with pytest.raises(ValueError, match="cannot be sparse under huggingface names"):
        save_task_vector(tmp_path / "t", few, {}, sparse=True, naming="huggingface")
    clash = few | {"scale#entries": jnp.zeros(3)}
    with pytest.raises(ValueError, match="no leaf of a sparse file may be called 'scale#entries'"):
        save_task_vector(tmp_path / "t", clash, {}, sparse=True)
    assert not list(tmp_path.iterdir())


def test_damaged_sparse_files_are_refused_by_tensor(tmp_path, few):
    path, name = tmp_path / "t.safetensors", "blocks/kernel"
    save_task_vector(path, few, {}, sparse=True)
    tensors = safetensors.numpy.load_file(path)
    metadata = safetensors.safe_open(path, "numpy").metadata()
    bits, values = tensors[name + "#entries"], tensors[name]

    def refused(message, without=(), **changes):
        changed = {key: leaf for key, leaf in (tensors | changes).items() if key not in without}
        about = metadata | {"trained": json.dumps(sorted(changed))}
        path.write_bytes(safetensors.numpy.save(changed, metadata=about))
        with pytest.raises(ValueError, match=message):
            load_task_vector(path, few)

    refused("blocks/kernel#entries does not fit the model's shape", **{name + "#entries": bits[:-1]})
    refused("blocks/kernel#entries does not fit", **{name + "#entries": bits.astype(np.int16)})
    refused(f"blocks/kernel holds values of shape .* for {len(values)} entries", **{name: values[:-1]})
    refused("blocks/kernel holds values of shape", **{name: values[None]})
    refused("or blocks/kernel#entries are missing", without=[name + "#entries"])
    refused("or blocks/kernel#entries are missing", without=[name])
    refused("blocks/kernel holds int32, not a float", **{name: np.ones(values.shape, np.int32)})
    refused("blocks/kernel", **{name: np.full(values.shape, np.nan, np.float32)})
    del few["narrow"]
    refused("holds narrow, which is not in the model")
    # What an earlier version, which knows nothing of sparse files, says of one.
    del metadata["sparse"]
    refused("holds blocks/kernel#entries.*, which is not in the model")

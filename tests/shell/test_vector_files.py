"""A task vector on disk is what was saved, bit for bit, or an error that names the tensor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tajax import atomic
from tajax.vector_files import load_task_vector, save_task_vector


@pytest.fixture
def params(key):
    a, b = jax.random.split(key)
    return {
        "blocks": {"kernel": jax.random.normal(a, (3, 4)), "bias": jnp.zeros(4)},
        "scale": jax.random.normal(b, (2,)).astype(jnp.bfloat16),
        "logit_scale": jnp.float32(4.6),
    }


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
    assert metadata == {"task": "digits", "seed": "3", "rule": '["a", "b"]'}
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
        with pytest.raises(ValueError, match="t.safetensors is truncated or not a safetensors file"):
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
    assert load_task_vector(path, params)[1] == {"seed": "1"}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

"""What is restored is what was saved, bit for bit, or an error that names the leaf."""

import gc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from tajax import checkpoints


class State(NamedTuple):
    step: jax.Array
    params: dict
    opt_state: optax.OptState


@pytest.fixture
def params(key):
    a, b = jax.random.split(key)
    return {
        "blocks": {"kernel": jax.random.normal(a, (3, 4)), "bias": jnp.zeros(4)},
        "scale": jax.random.normal(b, (2,)).astype(jnp.bfloat16),
        "logit_scale": jnp.float32(4.6),
    }


@pytest.fixture
def state(params):
    labels = {"blocks": {"kernel": "train", "bias": "freeze"}, "scale": "train", "logit_scale": "freeze"}
    tx = optax.partition({"train": optax.adamw(1e-3), "freeze": optax.set_to_zero()}, labels)
    opt_state = tx.init(params)
    _, opt_state = tx.update(jax.tree.map(lambda p: p / 3, params), opt_state, params)
    return State(jnp.int32(7), params, opt_state)


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_state_returns_bit_for_bit(tmp_path, state):
    checkpoints.save(tmp_path, state, step=7)
    blank = jax.tree.map(jnp.zeros_like, state)
    assert_identical(checkpoints.restore(tmp_path, blank, step=7), state)


def test_without_checkpoint_the_state_stays(tmp_path, state):
    assert checkpoints.latest(tmp_path / "nowhere") is None
    assert checkpoints.restore_latest(tmp_path / "nowhere", state) is state
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 3 .* Steps there: none"):
        checkpoints.restore(tmp_path, state, step=3)


def test_latest_ones_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (5, 20, 100):
        checkpoints.save("run", jnp.full(2, step), step=step)
    (tmp_path / "run" / "step_00000200.orbax-checkpoint-tmp").mkdir()  # killed while it wrote
    assert checkpoints.latest("run") == 100
    np.testing.assert_array_equal(checkpoints.restore_latest("run", jnp.zeros(2, int)), [100, 100])
    assert sorted(p.name for p in (tmp_path / "run").glob("step_????????")) == ["step_00000020", "step_00000100"]
    checkpoints.save("run", jnp.full(2, 101), step=101, keep=None)
    checkpoints.save("run", jnp.full(2, -1), step=101, keep=None)  # again: replaced
    np.testing.assert_array_equal(checkpoints.restore_latest("run", jnp.zeros(2, int)), [-1, -1])
    assert len(list((tmp_path / "run").iterdir())) == 3


def test_state_that_does_not_fit_is_named(tmp_path, state, params):
    checkpoints.save(tmp_path, state, step=7)
    cases = {
        "lacks params/new, which is in the state": state._replace(params=params | {"new": jnp.zeros(1)}),
        r"holds params/logit_scale, which is not in": state._replace(
            params={k: v for k, v in params.items() if k != "logit_scale"}
        ),
        r"params/logit_scale is float32\[\], the state to restore has float32\[5\]": state._replace(
            params=params | {"logit_scale": jnp.zeros(5)}
        ),
        r"step is int32\[\], the state to restore has float32\[\]": state._replace(step=jnp.float32(0)),
    }
    for message, like in cases.items():
        with pytest.raises(ValueError, match=message):
            checkpoints.restore_latest(tmp_path, like)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own pending reads
def test_damaged_checkpoint_is_named(tmp_path, state):
    path = checkpoints.save(tmp_path, state, step=7)
    for file in path.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(ValueError, match=r"step_00000007 cannot be read.*Delete it"):
        checkpoints.restore_latest(tmp_path, state)
    gc.collect()


MASK = {"blocks": {"kernel": True, "bias": False}, "scale": True, "logit_scale": False}


@pytest.fixture
def tau(params):
    return jax.tree.map(lambda p, trained: p / 3 if trained else jnp.zeros_like(p), params, MASK)


def test_task_vector_returns_bit_for_bit_without_its_frozen_leaves(tmp_path, tau, params):
    path = tmp_path / "deep" / "digits.safetensors"
    checkpoints.save_task_vector(path, tau, {"task": "digits", "seed": 3, "rule": ["a", "b"]}, mask=MASK)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert sorted(file.keys()) == ["blocks/kernel", "scale"]
    loaded, metadata = checkpoints.load_task_vector(path, params)
    assert_identical(loaded, tau)
    assert metadata == {"task": "digits", "seed": "3", "rule": '["a", "b"]'}
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary left


def test_layers_that_were_frozen_come_back_as_zeros(tmp_path, tau, params):
    layers = np.array([True, False, True])
    mask = MASK | {"blocks": {"kernel": layers, "bias": np.zeros(4, bool)}}
    with pytest.raises(ValueError, match="blocks/kernel is frozen by the mask and yet not zero"):
        checkpoints.save_task_vector(tmp_path / "t", tau, {}, mask=mask)
    kernel = jnp.where(layers[:, None], tau["blocks"]["kernel"], 0)
    tau = tau | {"blocks": tau["blocks"] | {"kernel": kernel}}
    checkpoints.save_task_vector(tmp_path / "t", tau, {}, mask=mask)
    assert_identical(checkpoints.load_task_vector(tmp_path / "t", params)[0], tau)


def test_without_mask_everything_is_stored(tmp_path, params):
    checkpoints.save_task_vector(tmp_path / "t", params, {})
    assert_identical(checkpoints.load_task_vector(tmp_path / "t", params)[0], params)


def test_task_vector_that_is_none_is_not_written(tmp_path, tau):
    path = tmp_path / "t.safetensors"
    with pytest.raises(ValueError, match="blocks/bias is frozen by the mask and yet not zero"):
        checkpoints.save_task_vector(path, tau | {"blocks": tau["blocks"] | {"bias": jnp.ones(4)}}, {}, mask=MASK)
    with pytest.raises(ValueError, match="scale"):
        checkpoints.save_task_vector(path, tau | {"scale": jnp.array([1.0, jnp.nan])}, {}, mask=MASK)
    with pytest.raises(ValueError, match="reserved key 'format'"):
        checkpoints.save_task_vector(path, tau, {"format": "mine"}, mask=MASK)
    with pytest.raises(ValueError, match="lacks scale, which is in the mask"):
        checkpoints.save_task_vector(path, {k: v for k, v in tau.items() if k != "scale"}, {}, mask=MASK)
    assert not list(tmp_path.iterdir())


def test_task_vector_of_another_model_is_refused(tmp_path, tau, params):
    path = tmp_path / "t.safetensors"
    checkpoints.save_task_vector(path, tau, {}, mask=MASK)
    with pytest.raises(ValueError, match=r"t.safetensors: scale has shape \(2,\), the model's is \(3,\)"):
        checkpoints.load_task_vector(path, params | {"scale": jnp.zeros(3)})
    with pytest.raises(ValueError, match="holds scale, which is not in the model"):
        checkpoints.load_task_vector(path, {k: v for k, v in params.items() if k != "scale"})


def test_damaged_or_foreign_file_is_refused(tmp_path, tau, params):
    path = tmp_path / "t.safetensors"
    with pytest.raises(FileNotFoundError, match="no task vector .*t.safetensors"):
        checkpoints.load_task_vector(path, params)
    checkpoints.save_task_vector(path, tau, {}, mask=MASK)
    whole = path.read_bytes()
    for content in (whole[:-5], whole[:20], b"", b"not tensors at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="t.safetensors is truncated or not a safetensors file"):
            checkpoints.load_task_vector(path, params)
    safetensors.numpy.save_file({"scale": np.zeros(2, np.float32)}, path)
    with pytest.raises(ValueError, match="not a task vector of tajax"):
        checkpoints.load_task_vector(path, params)


def test_tensor_lost_or_added_after_saving_is_noticed(tmp_path, tau, params):
    """A missing tensor must not come back as the zeros of a frozen leaf."""
    path = tmp_path / "t.safetensors"
    checkpoints.save_task_vector(path, tau, {}, mask=MASK)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata, kernel = file.metadata(), file.get_tensor("blocks/kernel")
    safetensors.numpy.save_file({"blocks/kernel": kernel}, path, metadata=metadata)
    with pytest.raises(ValueError, match="lacks scale, which is in the list in its metadata"):
        checkpoints.load_task_vector(path, params)
    extra = {"blocks/kernel": kernel, "scale": kernel[0, :2], "logit_scale": np.zeros(())}
    safetensors.numpy.save_file(extra, path, metadata=metadata)
    with pytest.raises(ValueError, match="holds logit_scale, which is not in the list in its metadata"):
        checkpoints.load_task_vector(path, params)


def test_failed_write_leaves_the_old_file(tmp_path, tau, params, monkeypatch):
    path = tmp_path / "t.safetensors"
    checkpoints.save_task_vector(path, tau, {"seed": 1}, mask=MASK)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save_task_vector(path, tau, {"seed": 2}, mask=MASK)
    assert checkpoints.load_task_vector(path, params)[1] == {"seed": "1"}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

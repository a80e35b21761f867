"""What is restored is what was saved, bit for bit, or an error that names the leaf."""

import gc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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

"""What is restored is what was saved, bit for bit, or an error that names the leaf; damage costs one checkpoint."""

import gc
import re
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tajax import checkpoints

HASH = "0123456789ab"
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's pending reads


class State(NamedTuple):
    step: jax.Array
    params: dict
    opt_state: optax.OptState


@pytest.fixture
def state(params):
    labels = {"blocks": {"kernel": "train", "bias": "freeze"}, "scale": "train", "logit_scale": "freeze"}
    tx = optax.partition({"train": optax.adamw(1e-3), "freeze": optax.set_to_zero()}, labels)
    opt_state = tx.init(params)
    _, opt_state = tx.update(jax.tree.map(lambda p: p / 3, params), opt_state, params)
    return State(jnp.int32(7), params, opt_state)


def bits(tree):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), [(leaf.dtype, leaf.shape, leaf.tobytes()) for leaf in leaves]


def save(directory, *states, keep=2):
    """Checkpoints of these states by step, written one after the other by one process."""
    with checkpoints.Writer(directory, config_hash=HASH, keep=keep) as writer:
        for state in states:
            path = writer.save(state, step=int(jax.tree.leaves(state)[0].ravel()[0]))
    return path


def numbers(step):
    return jnp.full(2, step)


def restored(directory):
    return checkpoints.restore_latest(directory, numbers(0)).state.tolist()


def test_state_and_notes_return_bit_for_bit(tmp_path, state):
    notes = {"unlogged": [{"loss": float(np.float32(0.1))}, {"loss": 1e-300}], "of": "tâche"}
    with checkpoints.Writer(tmp_path, config_hash=HASH) as writer:
        writer.save(state, step=7, notes=notes)
    blank = jax.tree.map(jnp.zeros_like, state)
    found = checkpoints.restore(tmp_path, blank, step=7, config_hash=HASH)
    assert bits(found.state) == bits(state)
    assert found.notes == notes


def test_what_is_written_is_the_state_at_the_call_though_a_step_takes_its_memory(tmp_path, key):
    """Large enough that the writing outlasts the steps, which donate the state and leave other numbers in its place."""
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: -leaf - 1, tree), donate_argnums=0)
    state = {name: jax.random.normal(k, (500_000,)) for name, k in zip("abc", jax.random.split(key, 3), strict=True)}
    expected, structure = bits(state), jax.tree.map(jnp.zeros_like, state)
    with checkpoints.Writer(tmp_path, config_hash=HASH) as writer:
        path = writer.save(state, step=1)
        began = path.exists()
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
    assert not began  # else the disk was quicker than the call, and the test shows nothing
    assert bits(checkpoints.restore(tmp_path, structure, step=1).state) == expected


def test_without_checkpoint_the_state_stays(tmp_path, state):
    assert checkpoints.latest(tmp_path / "nowhere") is None
    assert checkpoints.restore_latest(tmp_path / "nowhere", state) == (state, {})
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 3 .* Steps there: none"):
        checkpoints.restore(tmp_path, state, step=3)


def test_latest_ones_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("run", *map(numbers, (5, 20, 100)))
    (tmp_path / "run" / "step_00000200.orbax-checkpoint-tmp").mkdir()  # killed while it wrote
    assert (checkpoints.latest("run"), restored("run")) == (100, [100, 100])
    assert sorted(p.name for p in (tmp_path / "run").glob("step_????????")) == ["step_00000020", "step_00000100"]
    save("run", numbers(101), jnp.array([101, -1]), keep=None)  # the same step again: replaced
    assert restored("run") == [101, -1]
    assert len(list((tmp_path / "run").iterdir())) == 3


def test_checkpoint_of_another_config_is_refused(tmp_path):
    save(tmp_path, numbers(7))
    with pytest.raises(ValueError, match=r"step_00000007 was made by the config 0123456789ab, and .* ba98"):
        checkpoints.restore_latest(tmp_path, numbers(0), config_hash="ba9876543210")


def test_state_that_does_not_fit_is_named(tmp_path, state, params):
    save(tmp_path, state)
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


def damages(path):
    """Every file of a checkpoint in turn: gone, empty, cut in half, and without its last byte."""
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        whole = file.read_bytes()
        for left in (None, 0, len(whole) // 2, len(whole) - 1):
            yield f"{file.relative_to(path)} cut to {left}", file, left
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(whole)


@pytest.mark.parametrize("size", ["leaves of the index", "leaves with files"])
def test_damage_anywhere_is_noticed_and_the_one_before_is_taken(tmp_path, state, size, capsys, caplog):
    """Or it is of no consequence: what is restored is never anything but a state that was saved, bit for bit.

    And none of the many readings that fail beside each other is heard of later.
    """
    if size == "leaves with files":  # above 1 KiB, where Orbax raises errors of no type
        state = state._replace(params={f"w{i}": jnp.arange(1000.0) + i for i in range(6)})
    path = save(tmp_path, state._replace(step=jnp.int32(6)), state)
    before, last = bits(state._replace(step=jnp.int32(6))), bits(state)
    blank, passed_over = jax.tree.map(jnp.zeros_like, state), 0
    for what, file, left in damages(path):
        file.unlink() if left is None else file.write_bytes(file.read_bytes()[:left])
        got, message = bits(checkpoints.restore_latest(tmp_path, blank).state), capsys.readouterr().err
        damaged = "step_00000007 cannot be read" in message and "Going on from step 6" in message
        assert got == (before if damaged else last), (what, message)
        passed_over += damaged
    gc.collect()
    assert passed_over > 12
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_run_that_came_back_from_damage_writes_over_it(tmp_path, capsys):
    path = save(tmp_path, numbers(4), numbers(6))
    shutil.rmtree(path / "d")
    assert restored(tmp_path) == [4, 4]
    assert re.search("step_00000006 cannot be read.* Going on from step 4", capsys.readouterr().err)
    save(tmp_path, numbers(5))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000004", "step_00000005"]
    for damaged in tmp_path.iterdir():
        shutil.rmtree(damaged / "d")
    assert checkpoints.restore_latest(tmp_path, numbers(0)).state.tolist() == [0, 0]
    assert "Going on anew, because no other is left" in capsys.readouterr().err


def test_checkpoint_that_cannot_be_written_says_what_is_left(tmp_path):
    save(tmp_path / "run", numbers(4))
    writer = checkpoints.Writer(tmp_path / "run", config_hash=HASH)
    shutil.move(tmp_path / "run", tmp_path / "away")
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError):
        writer.save(numbers(5), step=5)

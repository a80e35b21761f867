"""τJp against explicit Jacobians in float64, and its stream of other tasks' images."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import data, finetune, optim
from tajax.parametrization import masked
from tajax.training import tau_jp
from tajax.types import Batch, Head, Preprocessing
from tests.core.conftest import mlp, mlp_params


@pytest.fixture
def world():
    """Parameters, images of this and of other tasks, one of them padding, all float64."""
    with jax.enable_x64(True):
        keys = iter(jax.random.split(jax.random.key(3), 4))
        params = mlp_params(next(keys), jnp.float64)
        own, others = (jax.random.normal(next(keys), (6, 3), jnp.float64) for _ in range(2))
        mask = jnp.array([True] * 5 + [False])
        labels = jnp.array([0, 1, 1, 0, 1, 0], jnp.int32)
        head = Head(jnp.array([[3.0, -1.0], [0.5, 2.0]]), jnp.int32(2))
        yield params, head, Batch(own, labels, mask), Batch(others.at[5].set(1e3), labels, mask)


def mean_length(params, tau, inputs):
    """By the whole Jacobian, an image at a time."""
    jacobian = jax.jacobian(mlp)(params, inputs)
    responses = sum(
        np.tensordot(np.asarray(a), np.asarray(b), axes=np.ndim(b))
        for a, b in zip(jax.tree.leaves(jacobian), jax.tree.leaves(tau), strict=True)
    )
    return np.linalg.norm(responses, axis=-1).mean()


@pytest.mark.parametrize("linearized", [True, False])
def test_the_penalty_is_the_mean_length_of_the_response_of_the_images_that_count(world, linearized):
    params, head, batch, others = world
    parametrization, strength = masked(), 0.3
    options = {"linearized": linearized}
    step = finetune.make_train_step(
        mlp, optim.adamw(0.05), parametrization, penalty=lambda *given: strength * tau_jp.penalty(*given), **options
    )
    state = finetune.init_state(parametrization.init(params), optim.adamw(0.05))
    lengths = []
    for _ in range(4):
        theta = parametrization.restore(params, jax.tree.map(jnp.copy, state.trained))
        lengths.append(mean_length(params, jax.tree.map(jnp.subtract, theta, params), others.inputs[:5]))
        state, metrics = step(state, params, head, batch, None, others)
        assert metrics["penalty"] == pytest.approx(strength * lengths[-1], rel=1e-9)
        assert np.isfinite(metrics["grad_norm"])
    assert lengths[0] == 0 and lengths[-1] > 0.1


def test_its_gradient_is_that_of_finite_differences_and_zero_at_the_start(world, rng):
    params, _, batch, others = world
    start = masked().init(params)
    given = SimpleNamespace(others=others)
    given.respond = lambda trained, inputs: jax.jvp(
        lambda leaves: mlp(masked().restore(params, leaves), inputs),
        (start,),
        (jax.tree.map(jnp.subtract, trained, start),),
    )[1]
    zero = jax.grad(tau_jp.penalty)(start, given)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(zero))
    draw = rng(1)
    moved, along = (jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape)), start) for _ in range(2))
    at = [jax.tree.map(lambda a, b, t=t: a + t * b, moved, along) for t in (1e-6, -1e-6)]
    slope = (tau_jp.penalty(at[0], given) - tau_jp.penalty(at[1], given)) / 2e-6
    grad = jax.grad(tau_jp.penalty)(moved, given)
    inner = sum(float(jnp.vdot(grad[path], along[path])) for path in grad)
    assert inner == pytest.approx(float(slope), rel=1e-6)


@pytest.fixture
def tasks(tmp_path):
    """Three tasks whose images say of which they are."""
    for number, name in enumerate(("a", "b", "c")):
        arrays = {"class_names": ["x", "y"], "templates": ["{}"]}
        for split, count in {"train": 10, "val": 4, "test": 4}.items():
            arrays |= {f"{split}_images": np.full((count, 8, 8, 3), 10 * number, np.uint8)}
            arrays[f"{split}_images"] += np.arange(count, dtype=np.uint8)[:, None, None, None]
            arrays |= {f"{split}_labels": np.arange(count) % 2}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    return [data.open_task(tmp_path / f"{name}.npz") for name in ("a", "b", "c")]


def context(tasks, others, images=4):
    encoder = SimpleNamespace(inputs=Preprocessing(8, (0.5,) * 3, (0.5,) * 3))
    options = {"others": others, "others_images": images}
    return SimpleNamespace(
        task=tasks[0], others=tasks[1:], encoder=encoder, options=options, seed=5, workers=0, share=(0, 1)
    )


def test_steps_see_one_other_task_in_turn_or_all_and_never_their_own(tasks):
    cycle = list(itertools.islice(tau_jp.stream(context(tasks, "cycle"), 0), 7))
    assert [sorted(set(batch.inputs[batch.mask].ravel() // 10)) for batch in cycle] == [[1], [2]] * 3 + [[1]]
    assert [int(batch.mask.sum()) for batch in cycle] == [4, 4, 4, 4, 2, 2, 4]  # ten images are 4, 4 and 2
    seen = np.concatenate([batch.inputs[batch.mask][:, 0, 0, 0] for batch in cycle[:6:2]])
    assert sorted(seen) == list(range(10, 20))
    together = next(tau_jp.stream(context(tasks, "all"), 0))
    assert np.bincount(together.inputs[:, 0, 0, 0] // 10).tolist() == [0, 4, 4]
    assert not together.label.any()  # nobody is told


@pytest.mark.parametrize("others", ["cycle", "all"])
@pytest.mark.parametrize("start", [1, 2, 9])
def test_a_stream_that_begins_later_goes_on_as_the_whole_one(tasks, others, start):
    whole = itertools.islice(tau_jp.stream(context(tasks, others), 0), start, start + 3)
    late = itertools.islice(tau_jp.stream(context(tasks, others), start), 3)
    for one, other in zip(whole, late, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.mask, other.mask)


def test_without_another_task_it_is_refused(tasks):
    with pytest.raises(ValueError, match="names no other. Give at least two"):
        next(tau_jp.stream(context(tasks[:1], "cycle"), 0))

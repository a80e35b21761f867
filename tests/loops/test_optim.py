"""The optimiser: its schedule and update by hand, and what it may not see of frozen leaves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tajax.optim import adamw as optimizer_of_all
from tajax.optim import apply_updates, make_optimizer, make_schedule
from tajax.parametrization import masked


@pytest.mark.parametrize(("num_steps", "warmup"), [(10, 0), (10, 3), (1, 0), (2, 1)])
def test_schedule_is_a_line_and_then_a_cosine(num_steps, warmup):
    schedule = make_schedule(learning_rate=0.4, num_steps=num_steps, warmup_steps=warmup)
    for step in range(num_steps + 1):
        progress = (step - warmup) / (num_steps - warmup)
        expected = 0.4 * (step / warmup if step < warmup else (1 + math.cos(math.pi * progress)) / 2)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-6, atol=1e-7)  # float32


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_warmup_must_end_before_training_does(warmup):
    with pytest.raises(ValueError, match=f"warmup_steps is {warmup} but the run has 10 steps"):
        make_schedule(learning_rate=0.1, num_steps=10, warmup_steps=warmup)


SHAPES = {"a": (3, 5), "b": (7,), "c": (2, 11)}
MASK = {"a": True, "b": False, "c": True}


def trees(rng, number, *, frozen=1.0):
    draw = rng(number).normal
    return {name: jnp.asarray(draw(size=shape) * (1 if MASK[name] else frozen)) for name, shape in SHAPES.items()}


def adamw(params, grads, rates, *, decay, clip):
    """AdamW on the trained leaves alone, written out in NumPy; the updates of every step."""
    theta, moments = params, {name: (0.0, 0.0) for name in params}
    updates = []
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        norm = math.sqrt(sum(float((g**2).sum()) for g in grad.values()))
        update = {}
        for name, g in grad.items():
            g = g * min(1.0, clip / norm)
            m, v = (b * old + (1 - b) * new for b, old, new in zip((0.9, 0.999), moments[name], (g, g**2), strict=True))
            moments[name] = m, v
            direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            update[name] = -rate * (direction + decay * theta[name])
        theta = {name: theta[name] + update[name] for name in theta}
        updates.append(update)
    return updates


@pytest.mark.parametrize("clip", [1.0, None])
def test_updates_are_those_of_adamw_on_the_trained_leaves_alone(rng, x64, clip):
    """Frozen gradients are a million times larger: were they seen, clipping would leave nothing of the others."""
    schedule = make_schedule(learning_rate=0.1, num_steps=4, warmup_steps=1)
    tx = make_optimizer(MASK, learning_rate=schedule, weight_decay=0.1, clip_norm=clip)
    params = trees(rng, 10)
    grads = [trees(rng, 11 + step, frozen=1e6) for step in range(4)]
    trained = [{name: np.asarray(leaf) for name, leaf in tree.items() if MASK[name]} for tree in (params, *grads)]
    rates = [float(schedule(step)) for step in range(4)]
    expected = adamw(trained[0], trained[1:], rates, decay=0.1, clip=math.inf if clip is None else clip)
    state, step = tx.init(params), jax.jit(tx.update)
    for grad, want in zip(grads, expected, strict=True):
        updates, state = step(grad, state, params)
        for name, update in want.items():
            np.testing.assert_allclose(updates[name], update, rtol=1e-6)  # the schedule is float32
        assert not np.any(updates["b"])
        params = apply_updates(params, updates, MASK)


def test_a_mask_over_whole_trees_takes_the_steps_of_the_trained_part_alone(rng):
    """`make_optimizer(mask)` and `adamw` on `masked(mask)`, which `finetune` uses: the same bits."""
    mask, parts = MASK | {"a": LAYERS}, masked(MASK | {"a": LAYERS})
    params = trees(rng, 40)
    tx, part_tx = make_optimizer(mask, learning_rate=0.1), optimizer_of_all(0.1)
    whole, part = params, parts.init(params)
    state, part_state = tx.init(whole), part_tx.init(part)
    for number in range(41, 44):
        grads = trees(rng, number)
        updates, state = tx.update(grads, state, whole)
        whole = apply_updates(whole, updates, mask)
        updates, part_state = part_tx.update(parts.init(grads), part_state, part)
        part = optax.apply_updates(part, updates)
    for name, leaf in parts.restore(params, part).items():
        assert np.asarray(leaf).tobytes() == np.asarray(whole[name]).tobytes(), name


def test_state_holds_moments_of_the_trained_leaves_and_nothing_of_the_frozen(rng):
    params = trees(rng, 20)
    shapes = [leaf.shape for leaf in jax.tree.leaves(make_optimizer(MASK, learning_rate=0.1).init(params))]
    assert sorted(shape for shape in shapes if shape) == sorted(2 * [SHAPES["a"], SHAPES["c"]])


def test_frozen_leaves_are_the_same_array_and_trained_ones_keep_their_dtype():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.array([-0.0, 1.0])}
    moved = apply_updates(params, {"a": jnp.ones(2), "b": jnp.zeros(2)}, {"a": True, "b": False})
    assert moved["a"].dtype == jnp.bfloat16 and moved["a"][0] == 2
    assert moved["b"] is params["b"]
    assert np.signbit(moved["b"][0])
    assert not np.signbit(optax.apply_updates(params, {"a": jnp.ones(2), "b": jnp.zeros(2)})["b"][0])  # why not optax's


LAYERS = np.array([True, False, True])  # of the three of "a"


def by_layer(tree):
    """The first leaf as one leaf a layer: what is trained in some layers is then trained in whole leaves."""
    return {f"a{layer}": tree["a"][layer] for layer in range(3)} | {"b": tree["b"], "c": tree["c"]}


def test_layers_of_a_leaf_are_trained_as_leaves_of_their_own_would_be(rng):
    """Clipping, decay, moments: of the trained layers alone. Frozen ones keep every bit, the sign of a zero too."""
    options = {"learning_rate": 0.1, "weight_decay": 0.1, "clip_norm": 1.0}
    whole, parts = MASK | {"a": LAYERS}, {"a0": True, "a1": False, "a2": True, "b": False, "c": True}
    params, tx, reference = trees(rng, 30), make_optimizer(whole, **options), make_optimizer(parts, **options)
    params["a"] = params["a"].at[1, 0].set(-0.0)
    start, other = params, by_layer(params)
    state, other_state = tx.init(params), reference.init(other)
    held = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert held == 2 * (2 * SHAPES["a"][1] + math.prod(SHAPES["c"]))
    for number in (31, 32):
        grads = trees(rng, number)
        grads["a"] = grads["a"].at[1].mul(1e6)
        updates, state = tx.update(grads, state, params)
        assert not np.any(updates["a"][1]) and not np.any(updates["b"])
        params = apply_updates(params, updates, whole)
        others, other_state = reference.update(by_layer(grads), other_state, other)
        other = apply_updates(other, others, parts)
    assert by_layer(params).keys() == other.keys()
    for name, leaf in by_layer(params).items():
        np.testing.assert_allclose(
            leaf, other[name], rtol=1e-6, err_msg=name
        )  # float32; the norm sums in another order
    assert np.asarray(params["a"][1]).tobytes() == np.asarray(start["a"][1]).tobytes()
    assert np.all(params["a"][LAYERS] != start["a"][LAYERS]) and params["b"] is start["b"]

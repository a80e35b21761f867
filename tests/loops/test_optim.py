"""The optimiser: its schedule and update by hand, and what it may not see of frozen leaves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tajax.optim import OPTIMIZERS, apply_updates, make_optimizer, make_schedule, muon
from tajax.optim import adamw as optimizer_of_all
from tajax.parametrization import masked


@pytest.mark.parametrize(("num_steps", "warmup"), [(10, 0), (10, 3), (1, 0), (2, 1)])
def test_schedule_is_a_line_and_then_a_cosine(num_steps, warmup):
    """At the steps of `cosine_lr` in the papers' released code, `src/utils.py` of both."""
    schedule = make_schedule(learning_rate=0.4, num_steps=num_steps, warmup_steps=warmup)
    for step in range(num_steps + 1):
        progress = (step - warmup) / (num_steps - warmup)
        expected = 0.4 * ((step + 1) / warmup if step < warmup else (1 + math.cos(math.pi * progress)) / 2)
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


def newton_schulz(matrix):
    """Five iterations of the published polynomial, in NumPy."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def muon_by_hand(theta, grads, rates, *, decay):
    """Muon with Nesterov momentum on one matrix, in float64; what it is after each step."""
    moment, found = np.zeros_like(theta), []
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        moment = 0.95 * moment + 0.05 * g
        ahead = 0.95 * moment / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
        size = 0.2 * math.sqrt(max(theta.shape))
        theta = theta - rate * (size * newton_schulz(ahead) + decay * theta)
        found.append(theta)
    return found


MATRICES = {"blocks/attn/query/kernel": (3, 4, 4), "blocks/mlp/fc_in/kernel": (2, 4, 6), "projection/kernel": (6, 3)}
OTHERS = {
    "patch_embedding/kernel": (2, 2, 3, 4),
    "position_embedding": (5, 4),
    "token_embedding": (7, 4),
    "ln/scale": (4,),
}


def flat(rng, number):
    return {path: jnp.asarray(rng(number).normal(size=shape)) for path, shape in (MATRICES | OTHERS).items()}


@pytest.mark.parametrize("clip", [1.0, None])
def test_muon_orthogonalises_each_matrix_of_a_stack_and_leaves_the_rest_to_adamw(clip, rng, x64):
    schedule = make_schedule(learning_rate=0.1, num_steps=4, warmup_steps=1)
    tx, theta, grads = muon(schedule, weight_decay=0.1, clip_norm=clip), flat(rng, 60), [flat(rng, 61), flat(rng, 62)]
    norms = [math.sqrt(sum(float((leaf**2).sum()) for leaf in tree.values())) for tree in grads]
    clipped = [
        {path: np.asarray(leaf) * (1 if clip is None else min(1.0, clip / norm)) for path, leaf in tree.items()}
        for tree, norm in zip(grads, norms, strict=True)
    ]
    rates = [float(schedule(step)) for step in range(2)]
    state, now = tx.init(theta), theta
    for grad in grads:
        updates, state = jax.jit(tx.update)(grad, state, now)
        now = optax.apply_updates(now, updates)
    for path, shape in MATRICES.items():
        for layer in np.ndindex(*shape[:-2]):
            given = [np.asarray(tree[path][layer]) for tree in clipped]
            want = muon_by_hand(np.asarray(theta[path][layer]), given, rates, decay=0.1)[-1]
            # The schedule and the coefficients of the polynomial are float32.
            np.testing.assert_allclose(now[path][layer], want, rtol=1e-5, atol=1e-6, err_msg=f"{path} {layer}")
    rest = [{path: tree[path] for path in OTHERS} for tree in (theta, *clipped)]
    want = adamw(rest[0], rest[1:], rates, decay=0.1, clip=math.inf)
    for path in OTHERS:
        total = np.asarray(theta[path]) + sum(update[path] for update in want)
        np.testing.assert_allclose(now[path], total, rtol=1e-6, atol=1e-8, err_msg=path)


def test_entries_of_a_muon_step_are_as_large_as_those_of_adamw_and_its_scale_is_not_that_of_the_gradient(rng):
    for shape in ((16, 16), (3, 16, 48), (48, 16)):
        params, grad = {"kernel": jnp.zeros(shape)}, {"kernel": jnp.asarray(rng(63).normal(size=shape), jnp.float32)}
        tx = muon(1.0, weight_decay=0, clip_norm=None)
        small, large = (
            tx.update({"kernel": s * grad["kernel"]}, tx.init(params), params)[0]["kernel"] for s in (1e-3, 1e3)
        )
        np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-4)
        assert 0.15 < np.sqrt(np.mean(np.square(large))) < 0.25
        held = [leaf.size for leaf in jax.tree.leaves(tx.init(params)) if leaf.ndim and leaf.shape == shape]
        assert held == [math.prod(shape)]  # one moment


def test_muon_without_a_matrix_is_refused_by_name():
    for leaves in ({"ln/scale": (4,), "conv/kernel": (2, 2, 3, 4)}, {"head": (4, 4)}):
        with pytest.raises(ValueError, match=f"Muon is for matrices, and none of the .*{sorted(leaves)[0]}.*'adamw'"):
            muon(0.1).init({path: jnp.zeros(shape) for path, shape in leaves.items()})


def test_optimizers_are_made_alike():
    for name, make in OPTIMIZERS.items():
        tx = make(make_schedule(learning_rate=0.1, num_steps=3), weight_decay=0.0, clip_norm=1.0)
        assert tx.init({"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}), name

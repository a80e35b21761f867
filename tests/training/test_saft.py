"""Sharpness-aware steps: where the gradient is taken, by hand, whatever its scale, and where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tajax import trees
from tajax.finetune import init_state, make_train_step
from tajax.losses import cross_entropy, head_logits
from tajax.parametrization import masked
from tajax.training.saft import METHOD, uphill


def test_the_way_is_as_long_as_the_radius_over_all_leaves_together(x64):
    t, g = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(-1.0)}, {"a": jnp.array([2.0, 0.0]), "b": jnp.array(-1.0)}
    for scale in (1.0, 1e6, 1e-6):  # the gradient is a sum over rows
        moved = uphill(0.3)(t, {name: scale * leaf for name, leaf in g.items()})
        np.testing.assert_allclose(moved["a"], [1 + 0.6 / np.sqrt(5), 2], rtol=1e-12)
        np.testing.assert_allclose(moved["b"], -1 - 0.3 / np.sqrt(5), rtol=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-18])
def test_without_a_gradient_it_stays(size):
    t = {"w": jnp.array([1.0, -0.0])}
    moved = uphill(0.3)(t, {"w": jnp.full(2, size)})
    assert np.all(np.isfinite(moved["w"])) and np.abs(moved["w"] - t["w"]).max() <= 1e-6


def test_narrow_leaves_keep_their_dtype_and_radius_0_every_bit():
    t = {"w": jnp.array([1.0, -0.0], jnp.bfloat16)}
    assert uphill(0.5)(t, {"w": jnp.array([0.0, 4.0], jnp.bfloat16)})["w"].dtype == jnp.bfloat16
    assert np.asarray(uphill(0.0)(t, {"w": jnp.ones(2)})["w"]).tobytes() == np.asarray(t["w"]).tobytes()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("rule", ["all", "attention"])
def test_a_step_takes_the_gradient_uphill_of_where_it_stands(rule, parts, x64, encode, params, head, make_batch):
    """By hand: the mean gradient at t + ρ g/‖g‖, g over what is trained and over the rows that count."""
    batch, radius = make_batch(12, 0, masked=5), 0.2
    masking, tx = masked(trees.param_mask(params, rule)), optax.sgd(1.0)
    start = masking.init(params)

    def loss(trained):
        logits = head_logits(encode(masking.restore(params, trained), jnp.asarray(batch.inputs[:7])), head)
        return jnp.mean(cross_entropy(logits, batch.label[:7]))

    gradient = jax.jit(jax.grad(loss))
    g = gradient(start)
    length = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in g.values()))
    want = gradient({path: start[path] + radius * leaf / length for path, leaf in g.items()})
    step = make_train_step(encode, tx, masking, perturb=METHOD.perturb({"radius": radius}), accumulation_steps=parts)
    state, metrics = step(init_state(start, tx), params, head, batch)
    for path, leaf in want.items():
        np.testing.assert_allclose(start[path] - state.trained[path], leaf, rtol=1e-8, atol=1e-12, err_msg=path)
    assert not np.allclose(want["blocks/attn/out/kernel"], g["blocks/attn/out/kernel"], rtol=1e-2)
    np.testing.assert_allclose(metrics["loss"], loss(start), rtol=1e-9)  # where it stands, not uphill

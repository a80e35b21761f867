"""Masks that train some layers of a stacked leaf: whatever consumes them sees those layers and no others."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import trees
from tajax.layers import put_layers, take_layers

WIDTH, DEPTH = 3, 4
CHOSEN = np.array([True, False, False, True])


def tower(params, x):
    """A tower of DEPTH layers, stacked: [B, WIDTH] -> [B, WIDTH], linear in none of its parameters."""
    for kernel, bias in zip(params["blocks"]["kernel"], params["blocks"]["bias"], strict=True):
        x = jnp.tanh(x @ kernel) + jnp.square(bias)[None]
    return x * params["scale"][None]


@pytest.fixture
def setting(key, x64):
    """Parameters of `tower`, a mask of its first and last kernel, and inputs, in double precision."""
    kernel, bias, x = (jax.random.normal(k, (DEPTH, WIDTH, WIDTH), jnp.float64) for k in jax.random.split(key, 3))
    params = {"blocks": {"kernel": kernel, "bias": bias[:, 0]}, "scale": bias[0, 0]}
    return params, {"blocks": {"kernel": CHOSEN, "bias": False}, "scale": False}, x[0]


def of_two_kernels(params):
    """The tower as a function of its first and last kernel alone, written without a mask, and those kernels."""
    first, *middle, last = params["blocks"]["kernel"]

    def apply(kernels, x):
        stacked = jnp.stack([kernels[0], *middle, kernels[1]])
        return tower(params | {"blocks": params["blocks"] | {"kernel": stacked}}, x)

    return apply, [first, last]


@pytest.mark.parametrize("layers", list(itertools.product([False, True], repeat=DEPTH)))
def test_layers_are_taken_and_put_back_as_indexing_does(layers):
    layers, leaf = np.array(layers), np.arange(12.0).reshape(DEPTH, 3)
    if layers.any():
        part = take_layers(leaf, layers)
        np.testing.assert_array_equal(part, leaf[layers])
        want = leaf.copy()
        want[layers] *= -1
        np.testing.assert_array_equal(put_layers(leaf, layers, -part), want)
    assert trees.count_params({"w": leaf}, {"w": layers}) == leaf[layers].size
    trained, restore = trees.split({"w": leaf}, {"w": layers})
    assert set(trained) == ({"w"} if layers.any() else set())
    np.testing.assert_array_equal(restore(trained)["w"], leaf)


def test_the_tangent_model_expands_in_the_chosen_layers_alone(setting, key):
    params, mask, x = setting
    apply, kernels = of_two_kernels(params)
    moved = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.cos(leaf), params)
    step = [moved["blocks"]["kernel"][i] - kernels[n] for n, i in enumerate((0, DEPTH - 1))]
    want = sum(jax.jvp(lambda k: apply(k, x), (kernels,), (step,)))
    lin = tajax.linearize(tower, params, mask=mask)
    np.testing.assert_allclose(lin(moved, x), want, rtol=1e-12)
    tau = tajax.task_vector(params, moved)
    origin, (response,) = tajax.linear_responses(tower, params, [tau], x, mask=mask)
    np.testing.assert_allclose(origin + response, want, rtol=1e-12)
    gradient = jax.grad(lambda p: jnp.sum(lin(p, x) ** 2))(moved)
    np.testing.assert_array_equal(np.any(gradient["blocks"]["kernel"], axis=(1, 2)), CHOSEN)
    assert not np.any(gradient["blocks"]["bias"]) and not np.any(gradient["scale"])


def test_the_kernel_is_that_of_the_chosen_layers(setting):
    params, mask, x = setting
    apply, kernels = of_two_kernels(params)
    kernel = tajax.empirical_ntk(tower, params, x, mask=mask)
    np.testing.assert_allclose(kernel, tajax.empirical_ntk(apply, kernels, x), rtol=1e-12)
    product = tajax.ntk_vector_product(tower, params, x, jnp.cos(x), mask=mask)
    np.testing.assert_allclose(product, tajax.ntk_vector_product(apply, kernels, x, jnp.cos(x)), rtol=1e-12)


def test_gradients_of_all_layers_are_those_of_their_parts(setting):
    """The kernel is a sum over parameters, so over the parts of any partition of them."""
    params, mask, x = setting
    rest = {"blocks": {"kernel": ~CHOSEN, "bias": np.ones(DEPTH, bool)}, "scale": True}
    parts = [tajax.empirical_ntk(tower, params, x, mask=m) for m in (mask, rest)]
    np.testing.assert_allclose(sum(parts), tajax.empirical_ntk(tower, params, x), rtol=1e-12)

"""Linear responses of the towers: what loops over layers carry is what `jax.jvp` finds of the unrolled layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import trees
from tajax.encoders.text.bert import Tokens
from tests.towers import DEPTH, TOWERS, products

VECTORS = 3


@pytest.fixture(params=TOWERS)
def tower(request, key):
    """A family's encoder as a function of how its layers run, drawn parameters and vectors, and a batch."""
    kind, config = TOWERS[request.param]
    inputs = jax.random.normal(key, (2, 8, 8, 3))
    if request.param == "text":
        inputs = Tokens(jnp.arange(12).reshape(2, 6) % 20, jnp.arange(6)[None] < jnp.array([[6], [3]]))
    shapes = jax.eval_shape(kind(config).init, key, inputs)["params"]
    leaves, structure = jax.tree.flatten(shapes)
    draw = np.random.default_rng(0).normal
    drawn = [
        structure.unflatten([np.float32(0.3 * draw(size=leaf.shape)) for leaf in leaves]) for _ in range(VECTORS + 1)
    ]

    def encode(**layers):
        return lambda params, inputs: kind(config, **layers).apply({"params": params}, inputs)

    return encode, drawn[0], drawn[1:], inputs


def in_double(tree):
    """Floating-point leaves in float64."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64) if trees.is_float(leaf) else leaf, tree)


def test_loops_over_layers_give_the_responses_of_unrolled_ones(tower):
    encode, params, taus, inputs = tower
    half = np.arange(DEPTH) >= DEPTH // 2
    masks = [trees.param_mask(params, "attention"), jax.tree.map(lambda _: True, params)]
    masks[1]["blocks"] = jax.tree.map(lambda _: half, params["blocks"])
    with jax.enable_x64(True):
        exact = in_double((params, taus, inputs))
        for mask in (None, *masks):
            for given, tolerance in ((exact, 1e-12), ((params, taus, inputs), 2e-5)):
                got = jax.jit(lambda *given, mask=mask: tajax.linear_responses(encode(), *given, mask=mask))(*given)
                want = oracle(encode(unroll=True), *exact, mask)
                for ours, theirs in zip(got, want, strict=True):
                    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def oracle(apply, params, taus, inputs, mask):
    """One forward-mode derivative of all layers for each task vector, zero where the mask has it."""
    inside = taus
    if mask is not None:
        keep = jax.tree.map(lambda leaf, m: np.reshape(m, np.shape(m) + (1,) * (leaf.ndim - np.ndim(m))), params, mask)
        inside = [jax.tree.map(jnp.multiply, tau, keep) for tau in taus]

    def both(tau):
        return jax.jvp(lambda params: apply(params, inputs), (params,), (tau,))

    found = [jax.jit(both)(tau) for tau in inside]
    return found[0][0], jnp.stack([pushed for _, pushed in found])


@pytest.mark.parametrize("rule", ["all", "attention"])
def test_they_cost_the_products_of_one_linearisation(tower, rule):
    """Those of the forward pass once, and of each tangent what `jax.linearize` of the unrolled layers pushes."""
    encode, params, taus, inputs = tower
    mask = trees.param_mask(params, rule)

    def unrolled(params, taus, inputs):
        theta0, restore = trees.split(params, mask)
        outputs, push = jax.linearize(lambda theta: encode(unroll=True)(restore(theta), inputs), theta0)
        return outputs, [push(trees.split(tau, mask)[0]) for tau in taus]

    def carried(params, taus, inputs):
        return tajax.linear_responses(encode(), params, taus, inputs, mask=mask)

    costs = [products(jax.make_jaxpr(form)(params, taus, inputs).jaxpr) for form in (carried, unrolled)]
    assert costs[0] <= costs[1]

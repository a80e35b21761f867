"""Layers before the first trained one run forward only, though all run in loops: counted in the program of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import finetune, optim, trees
from tajax.encoders.text.bert import Tokens
from tajax.layers import frozen_layers
from tajax.parametrization import masked
from tajax.rules import STACKED
from tajax.types import Batch, Head
from tests.towers import DEPTH, TOWERS, products

ROWS = 2


@pytest.fixture(params=TOWERS, scope="module")
def family(request):
    return request.param


@pytest.fixture(scope="module")
def tower(family):
    """A family's encoder as a function of how its layers run, its parameters, and a batch."""
    kind, config = TOWERS[family]
    keys = jax.random.split(jax.random.key(5), 2)
    inputs = jax.random.normal(keys[0], (ROWS, 8, 8, 3))
    if family == "text":
        inputs = Tokens(jnp.arange(ROWS * 6).reshape(ROWS, 6) % 20, jnp.arange(6)[None] < jnp.array([[6], [3]]))
    params = jax.jit(kind(config).init)(keys[1], inputs)["params"]

    def encode(**layers):
        return lambda params, inputs: kind(config, **layers).apply({"params": params}, inputs)

    return encode, params, Batch(inputs, jnp.arange(ROWS) % 3, jnp.array([True, True]))


def step_of(encode, params, mask, *, linearized):
    """A compiled step, and what to call it with."""
    tx, trained = optim.adamw(1e-2, weight_decay=0.1, clip_norm=1.0), masked(mask)
    head = Head(jnp.cos(jnp.arange(48.0)).reshape(16, 3), jnp.int32(3))
    step = finetune.make_train_step(encode, tx, trained, linearized=linearized)
    return step, lambda: (finetune.init_state(trained.init(params), tx), params, head)


FORWARD, BACKWARD, TANGENT = 8, 16, 16
"""Products of a layer: by its six kernels, of scores and of values; twice as many to transpose, or push a tangent."""


@pytest.mark.parametrize(("linearized", "trained"), [(False, BACKWARD), (True, TANGENT + BACKWARD)])
def test_a_frozen_layer_costs_its_forward_pass(tower, linearized, trained):
    encode, params, batch = tower

    def cost(first, frozen):
        mask = trees.param_mask(params, "all", layers=(first, DEPTH))
        step, given = step_of(encode(frozen=frozen), params, mask, linearized=linearized)
        return products(jax.make_jaxpr(step)(*given(), batch).jaxpr)

    whole = cost(0, 0)
    assert whole >= DEPTH * (FORWARD + trained)
    assert cost(2, 0) == whole  # a loop is differentiated as a whole, whatever of it is trained
    assert cost(2, 2) == whole - 2 * trained
    assert cost(DEPTH - 1, DEPTH - 1) <= whole - (DEPTH - 1) * trained  # the last layer is given no tangent


@pytest.mark.parametrize(
    ("family", "linearized", "first", "layers"),
    [
        ("clip", False, 2, {}),
        ("clip", True, DEPTH - 1, {"remat": "layers"}),
        ("clip", False, 2, {"unroll": True}),
        ("vit", True, 2, {}),
        ("text", True, 2, {}),
    ],
    ids=str,
    indirect=["family"],
)
def test_steps_end_where_they_did(tower, linearized, first, layers):
    """Up to the order of sums."""
    encode, params, batch = tower
    mask = trees.param_mask(params, "attention", layers=(first, DEPTH))
    assert frozen_layers(trees.trained_layers(params, mask), stacked=STACKED) == first
    ends = []
    for frozen in (0, first):
        step, given = step_of(encode(frozen=frozen, **layers), params, mask, linearized=linearized)
        state, *constants = given()
        for _ in range(2):
            state, metrics = step(state, *constants, batch)
        ends.append((state.trained, metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *ends)


def test_what_stands_before_the_frozen_layers_is_trained_through_them(tower):
    encode, params, batch = tower
    (path,) = [path for path in trees.flatten_paths(params) if path.endswith("position_embedding")]

    def gradient(frozen):
        return jax.jit(jax.grad(lambda p: jnp.sum(encode(frozen=frozen)(p, batch.inputs) ** 3)))(params)

    whole, cut = map(trees.flatten_paths, (gradient(0), gradient(2)))
    for path, leaf in cut.items():
        frozen = 2 if path.startswith("blocks/") else 0
        assert not np.any(leaf[:frozen])
        np.testing.assert_allclose(leaf[frozen:], whole[path][frozen:], rtol=1e-4, atol=1e-4, err_msg=path)
    assert np.any(cut[path])


@pytest.mark.parametrize("frozen", [-1, DEPTH])
def test_there_is_always_a_layer_left(tower, frozen):
    encode, params, batch = tower
    with pytest.raises(ValueError, match=f"frozen is {frozen}; of {DEPTH} layers 0 to {DEPTH - 1}"):
        jax.eval_shape(encode(frozen=frozen), params, batch.inputs)

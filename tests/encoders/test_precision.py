"""How exactly encoders compute: of which numbers their products are, and those of whatever is derived from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import encoders
from tajax.encoders.encoder import through_norm
from tajax.encoders.text.bert import Tokens
from tajax.precision import DEFAULT_PRODUCTS, in_float32, products
from tests.programs import equations
from tests.towers import TOWERS

HIGHEST = jax.lax.Precision.HIGHEST
FEWEST = 16  # products of two layers, that of the loop and the last: four projections, scores, mixing, two of the MLP


@pytest.fixture(params=TOWERS)
def tower(request, key):
    """A family's encoder as a function of its dtype, its parameters, a short task vector, and a batch."""
    kind, config = TOWERS[request.param]
    inputs = jax.random.normal(key, (2, 8, 8, 3))
    if request.param == "text":
        inputs = Tokens(jnp.arange(12).reshape(2, 6) % 20, jnp.arange(6)[None] < jnp.array([[6], [3]]))
    shapes = jax.eval_shape(kind(config).init, key, inputs)["params"]
    draw = np.random.default_rng(1).normal
    params = jax.tree.map(lambda leaf: np.float32(0.3 * draw(size=leaf.shape)), shapes)
    tau = jax.tree.map(lambda leaf: np.float32(1e-4 * draw(size=leaf.shape)), shapes)

    def encode(dtype=None):
        return lambda params, inputs: kind(config, dtype=dtype, unroll=True).apply({"params": params}, inputs)

    return encode, params, tau, inputs


def derived(apply, params, tau, inputs):
    """Programs that are made of a function: itself, its gradient, its response to a vector, its linearised sweep."""

    def loss(params):
        return jnp.sum(jnp.square(apply(params, inputs)))

    return {
        "features": jax.make_jaxpr(apply)(params, inputs),
        "gradient": jax.make_jaxpr(jax.value_and_grad(loss))(params),
        "remat": jax.make_jaxpr(jax.grad(jax.checkpoint(loss)))(params),
        "responses": jax.make_jaxpr(lambda tau: tajax.linear_responses(apply, params, [tau], inputs))(tau),
        "linearised": jax.make_jaxpr(lambda tau: jax.linearize(lambda p: apply(p, inputs), params)[1](tau))(tau),
    }


def test_highest_reaches_every_product_and_those_of_derivatives(tower):
    encode, params, tau, inputs = tower
    asked = derived(in_float32(encode()), params, tau, inputs)
    silent = derived(encode(), params, tau, inputs)
    for name, program in asked.items():
        found = [eqn.params["precision"] for eqn in equations(program.jaxpr, "dot_general")]
        assert len(found) >= FEWEST and set(found) == {(HIGHEST, HIGHEST)}, name
        assert None in {eqn.params["precision"] for eqn in equations(silent[name].jaxpr, "dot_general")}, name


def test_bfloat16_is_what_is_computed_and_not_what_is_kept(tower):
    encode, params, tau, inputs = tower
    for name, program in derived(encode(jnp.bfloat16), params, tau, inputs).items():
        every = equations(program.jaxpr, "dot_general")
        narrow = [eqn for eqn in every if all(value.aval.dtype == jnp.bfloat16 for value in eqn.invars)]
        assert len(narrow) >= FEWEST, name
        assert {value.dtype for value in program.out_avals} == {jnp.dtype(jnp.float32)}, name


def test_the_response_to_a_short_vector_survives_bfloat16_and_a_difference_of_features_does_not(tower):
    """A tenth of a per mille of θ₀ is lost in bfloat16 where θ₀ + τ is cast, and kept where τ is."""
    encode, params, tau, inputs = tower
    narrow = jax.jit(encode(jnp.bfloat16))
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, tau))
        along = jax.jit(lambda *pair: jax.jvp(lambda p: encode()(p, inputs), *((tree,) for tree in pair))[1])
        want = np.asarray(along(*double))
    _, (pushed,) = jax.jit(lambda tau: tajax.linear_responses(narrow, params, [tau], inputs))(tau)
    moved = narrow(jax.tree.map(np.add, params, tau), inputs) - narrow(params, inputs)
    errors = [np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want) for got in (pushed, moved)]
    assert errors[0] < 0.1 < 0.5 < errors[1], errors


def test_a_precision_changes_features_and_never_parameters_or_heads():
    images = np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), np.uint8)
    names, templates = ["a red circle", "a green square", "the letter k"], ["a photo of {}."]
    found = {name: encoders.load("tiny", precision=name) for name in ("highest", "default", "bf16")}
    features = {name: np.asarray(jax.jit(one.apply)(one.params, images)) for name, one in found.items()}
    np.testing.assert_array_equal(features["highest"], features["default"])  # on a CPU
    error = np.linalg.norm(features["bf16"] - features["default"]) / np.linalg.norm(features["default"])
    assert 1e-4 < error < 2e-2 and features["bf16"].dtype == np.float32
    plain = found["default"].zero_shot.head(names, templates)
    for name, one in found.items():
        jax.tree.map(np.testing.assert_array_equal, one.params, found["default"].params)
        np.testing.assert_array_equal(one.zero_shot.head(names, templates).weights, plain.weights, err_msg=name)
    for function in (
        found["highest"].apply_for_responses,
        found["highest"].for_training(remat="dots"),
        through_norm(found["highest"]).for_training(remat="layers", frozen=1),
    ):
        program = jax.make_jaxpr(function)(found["highest"].params, images)
        assert {eqn.params["precision"] for eqn in equations(program.jaxpr, "dot_general")} == {(HIGHEST, HIGHEST)}


def test_an_unknown_precision_is_refused_by_name():
    with pytest.raises(ValueError, match="precision is 'fp16'; choose one of 'highest', 'default', 'bf16'"):
        encoders.load("tiny", precision="fp16")


def test_what_products_are_of_is_said_for_every_platform():
    assert {products("highest", platform) for platform in DEFAULT_PRODUCTS} == {"float32"}
    assert {products("bf16", platform) for platform in DEFAULT_PRODUCTS} == {"bfloat16"}
    assert products("default", "cpu") == "float32" != products("default", "tpu")
    assert products("default", "a new one") == "what the device makes of float32"

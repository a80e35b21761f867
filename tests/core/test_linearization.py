import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tests.core import shapes

from .conftest import mlp, mlp_params


@pytest.fixture
def setting(key, x64):
    """θ₀, two directions and a batch, in double precision."""
    keys = jax.random.split(key, 4)
    params0, tau, other = (mlp_params(k, jnp.float64) for k in keys[:3])
    return params0, tau, other, jax.random.normal(keys[3], (5, 3), jnp.float64)


def moved(params0, *steps):
    """θ₀ + Σ c τ for pairs (c, τ)."""
    return tajax.apply_task_vector(params0, tajax.combine([tau for _, tau in steps], [c for c, _ in steps]))


def test_the_tangent_model_is_affine_in_its_parameters(setting):
    params0, tau, other, x = setting
    lin = tajax.linearize(mlp, params0)
    f0, f1, f2 = lin(params0, x), lin(moved(params0, (1.0, tau)), x), lin(moved(params0, (1.0, other)), x)
    both = lin(moved(params0, (2.5, tau), (-1.5, other)), x)
    np.testing.assert_allclose(both, f0 + 2.5 * (f1 - f0) - 1.5 * (f2 - f0), rtol=1e-12)
    assert not np.allclose(mlp(moved(params0, (1.0, tau)), x), f1, rtol=1e-2)  # the model itself is not


def test_the_tangent_model_touches_the_model_at_the_origin(setting):
    params0, _, _, x = setting
    lin = tajax.linearize(mlp, params0)
    np.testing.assert_array_equal(lin(params0, x), mlp(params0, x))
    loss = lambda model: jax.grad(lambda params: jnp.sum(jnp.sin(model(params, x))))(params0)  # noqa: E731
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), loss(lin), loss(mlp))


def test_the_gap_to_the_model_shrinks_as_the_square(setting):
    params0, tau, _, x = setting
    lin = tajax.linearize(mlp, params0)
    gaps = [
        np.abs(lin(theta, x) - mlp(theta, x)).max() for theta in (moved(params0, (eps, tau)) for eps in (1e-3, 1e-4))
    ]
    np.testing.assert_allclose(gaps[0] / gaps[1], 100, rtol=0.02)  # the third order is 1e-3 of the second


def test_leaves_outside_the_mask_are_constants(setting):
    params0, tau, _, x = setting
    mask = tajax.param_mask(params0, "attention")
    lin, full = tajax.linearize(mlp, params0, mask=mask), tajax.linearize(mlp, params0)
    inside = jax.tree.map(lambda keep, leaf: leaf * keep, mask, tau)
    np.testing.assert_allclose(lin(moved(params0, (1.0, tau)), x), full(moved(params0, (1.0, inside)), x), rtol=1e-12)
    np.testing.assert_array_equal(lin(params0, x), mlp(params0, x))

    grads = jax.grad(lambda params: jnp.sum(lin(params, x) ** 2))(moved(params0, (1.0, tau)))
    wanted = jax.grad(lambda params: jnp.sum(full(params, x) ** 2))(moved(params0, (1.0, inside)))
    for keep, got, want in zip(*map(jax.tree.leaves, (mask, grads, wanted)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12) if keep else np.testing.assert_array_equal(got, 0)


def test_responses_give_the_tangent_model_at_every_coefficient(setting):
    params0, tau, other, x = setting
    f0, responses = jax.jit(lambda *a: tajax.linear_responses(mlp, *a))(params0, [tau, other], x)
    assert responses.shape == (2, 5, 2)
    lin = tajax.linearize(mlp, params0)
    for coefs in ([1.0, 0.0], [0.3, 0.3], [-2.0, 5.0]):
        want = lin(moved(params0, *zip(coefs, [tau, other], strict=True)), x)
        np.testing.assert_allclose(f0 + jnp.tensordot(jnp.array(coefs), responses, axes=1), want, rtol=1e-12)
    for t, direction in enumerate([tau, other]):
        np.testing.assert_allclose(responses[t], jax.jvp(lambda p: mlp(p, x), (params0,), (direction,))[1], rtol=1e-12)

    mask = tajax.param_mask(params0, "attention")
    _, masked = tajax.linear_responses(mlp, params0, [tau], x, mask=mask)
    want = tajax.linearize(mlp, params0, mask=mask)(moved(params0, (1.0, tau)), x) - f0
    np.testing.assert_allclose(masked[0], want, rtol=1e-10)


def test_the_forward_pass_of_many_responses_runs_once(setting):
    params0, tau, other, x = setting
    products = lambda taus: str(  # noqa: E731
        jax.make_jaxpr(lambda *a: tajax.linear_responses(mlp, *a))(params0, taus, x)
    ).count("tanh")
    assert products([tau]) == products([tau, other] * 4) == 1


def test_any_function_of_any_tree_linearises(key):
    """Lists, integer leaves, bfloat16 weights, two inputs, two outputs."""
    params0 = [jnp.array(2.0, jnp.bfloat16), {"n": 3, "w": jnp.ones(2)}]
    apply_fn = lambda p, x, y: (p[0] * x * p[1]["n"], (p[1]["w"] ** 2).sum() * y)  # noqa: E731
    lin = tajax.linearize(apply_fn, params0)
    params = [jnp.array(2.5, jnp.bfloat16), {"n": 3, "w": jnp.array([1.0, 3.0])}]
    first, second = lin(params, jnp.ones(1, jnp.bfloat16), jnp.ones(1))
    assert first.dtype == jnp.bfloat16
    np.testing.assert_array_equal(first, [7.5])
    np.testing.assert_array_equal(second, [2.0 + 2 * 2])
    tau, inputs = tajax.task_vector(params0, params), (jnp.ones(1, jnp.bfloat16), jnp.ones(1))
    with shapes.unchecked():  # the types know of one output
        f0, responses = tajax.linear_responses(apply_fn, params0, [tau], *inputs)
    np.testing.assert_array_equal(f0[1] + responses[1][0], second)


def test_trees_that_do_not_fit_are_named_before_anything_compiles(setting):
    params0, tau, _, x = setting
    with pytest.raises(ValueError, match="'ln_1/scale' is in params0 but not in params"):
        tajax.linearize(mlp, params0)({"attn": tau["attn"], "mlp": tau["mlp"]}, x)
    with pytest.raises(ValueError, match="'ln_1/scale' has shape .* in task vector 1"):
        tajax.linear_responses(mlp, params0, [tau, tau | {"ln_1": {"scale": jnp.ones(3)}}], x)
    with pytest.raises(ValueError, match="in params but not in mask"):
        tajax.linearize(mlp, params0, mask={"attn": True})
    with pytest.raises(TypeError, match="list of task vectors"):
        tajax.linear_responses(mlp, params0, tau, x)

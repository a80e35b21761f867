"""The gap between a model and its linearisation: closed forms, the definition in float64, and what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax.gap import gap_sums, relative_feature_gap, relative_gap
from tajax.types import Batch
from tests.core.conftest import mlp, mlp_params

COEFS = [-1.0, 0.0, 0.25, 1.0, 2.0]


@pytest.fixture
def world(x64, key):
    """θ₀, a task vector and inputs, float64."""
    keys = jax.random.split(key, 3)
    params, tau = (mlp_params(k, jnp.float64) for k in keys[:2])
    return params, tau, jax.random.normal(keys[2], (7, 3), jnp.float64)


def test_it_is_the_definition(world):
    params, tau, x = world
    lin = tajax.linearize(mlp, params)
    wanted = []
    for alpha in COEFS:
        theta = tajax.apply_task_vector(params, tau, alpha)
        movement = np.linalg.norm(mlp(theta, x) - mlp(params, x))
        wanted.append(np.linalg.norm(mlp(theta, x) - lin(theta, x)) / movement if alpha else 0)
    assert max(wanted) > 0.3  # the model is far from linear
    np.testing.assert_allclose(relative_feature_gap(mlp, params, tau, [x], coefs=COEFS), wanted, rtol=1e-9)


def test_a_model_that_is_affine_along_the_vector_has_none(world):
    params, tau, x = world
    last = jax.tree.map(jnp.zeros_like, tau) | {"mlp": tau["mlp"]}  # the last layer alone
    np.testing.assert_allclose(relative_feature_gap(mlp, params, last, [x], coefs=COEFS), 0, atol=1e-12)
    assert relative_feature_gap(tajax.linearize(mlp, params), params, tau, [x], coefs=[1.0]) < 1e-12


def test_it_vanishes_in_proportion_to_the_step(world):
    params, tau, x = world
    small, smaller = relative_feature_gap(mlp, params, tau, [x], coefs=[1e-3, 1e-4])
    np.testing.assert_allclose(small / smaller, 10, rtol=0.02)  # the next order is 1e-3 of it


def test_only_the_product_of_coefficient_and_vector_matters(world):
    params, tau, x = world
    twice = tajax.combine([tau], [2.0])
    np.testing.assert_allclose(
        relative_feature_gap(mlp, params, twice, [x], coefs=[0.5, 1.0]),
        relative_feature_gap(mlp, params, tau, [x], coefs=[1.0, 2.0]),
        rtol=1e-9,
    )


def test_batches_and_padding_do_not_matter(world):
    params, tau, x = world
    whole = relative_feature_gap(mlp, params, tau, [x], coefs=COEFS)
    rubbish = jnp.full((2, 3), 1e3)
    padded = Batch(jnp.concatenate([x[4:], rubbish]), np.zeros(5, np.int32), np.arange(5) < 3)
    np.testing.assert_allclose(relative_feature_gap(mlp, params, tau, [x[:4], padded], coefs=COEFS), whole, rtol=1e-9)


def test_one_program_serves_every_later_gap(world):
    params, tau, x = world
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return mlp(params, x)

    first = relative_feature_gap(counted, params, tau, [x, x + 1], coefs=[0.5, 1.0])
    after_one = len(traces)
    second = relative_feature_gap(counted, tau, params, [x], coefs=[1.0, 2.0])
    assert len(traces) == after_one and not np.array_equal(first, second)


def test_a_masked_row_that_is_not_finite_counts_for_nothing():
    moved, origin = jnp.array([[[2.0], [jnp.nan]]]), jnp.array([[1.0], [jnp.inf]])
    sums = gap_sums(moved, origin, jnp.array([[0.5], [jnp.nan]]), jnp.ones(1), jnp.array([True, False]))
    assert [float(np.squeeze(leaf)) for leaf in sums] == [0.25, 1.0, 1.0]
    assert relative_gap(sums).tolist() == [0.5]


def test_sums_of_narrow_features_are_float32():
    ones = jnp.ones((1000, 1), jnp.bfloat16)
    sums = gap_sums(2 * ones[None], ones, ones / 2, jnp.ones(1), jnp.ones(1000, bool))
    assert [leaf.dtype for leaf in sums] == [jnp.float32] * 3
    assert (sums.residual[0], sums.movement[0], sums.origin) == (250, 1000, 1000)


def test_features_that_are_not_finite_show():
    sums = gap_sums(jnp.array([[[jnp.nan]]]), jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones(1), jnp.array([True]))
    assert np.isnan(relative_gap(sums)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": {"w": jnp.ones(2)}}, r"'w' has shape \(1,\) in params0 but \(2,\) in task vector 0"),
        ({"coefs": [[1.0]]}, r"got shape \(1, 1\)"),
        ({"coefs": [jnp.nan]}, "finite numbers"),
        ({"batches": []}, "holds no input"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"tau": {"w": jnp.ones(1)}, "batches": [jnp.ones((1, 1))], "coefs": [1.0]} | change
    coefs = given.pop("coefs")
    with pytest.raises(ValueError, match=message):
        relative_feature_gap(lambda params, x: x * params["w"], {"w": jnp.ones(1)}, *given.values(), coefs=coefs)

"""A scalar coefficient is one number: several of them never broadcast over the entries of a leaf."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax.affine import AffineLogits, correct_intervals, logits_at, tally_at
from tajax.merging import METHODS

THETA = {"w": jnp.ones(2), "b": jnp.zeros(())}
TAUS = [{"w": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}, {"w": jnp.array([4.0, -1.0]), "b": jnp.array(1.0)}]
OPTIONS = {"dare": {"drop_rate": 0.0}, "ties": {"density": 1.0}}


def of_method(name):
    drawn = {"key": jax.random.key(0)} if METHODS[name].random else {}
    return lambda coef: METHODS[name](THETA, TAUS, scaling_coef=coef, **OPTIONS.get(name, {}), **drawn)


SCALED = {  # everything that takes one coefficient
    "apply_task_vector": lambda coef: tajax.apply_task_vector(THETA, TAUS[0], coef),
    "combine": lambda coef: tajax.combine(TAUS, [coef, 1.0]),
    "task_arithmetic, of a task": lambda coef: METHODS["task_arithmetic"](THETA, TAUS, coefs=[coef, 1.0]),
    **{name: of_method(name) for name, method in METHODS.items() if method.scaled},
}


def takes_a_coefficient(method):
    parameters = inspect.signature(method.merge).parameters.values()
    return any(p.name == "scaling_coef" or p.kind is p.VAR_KEYWORD for p in parameters)


def test_methods_with_a_coefficient_are_those_that_are_tuned():
    assert {name for name, method in METHODS.items() if takes_a_coefficient(method)} == {
        name for name, method in METHODS.items() if method.scaled
    }


@pytest.mark.parametrize("name", SCALED)
def test_several_coefficients_are_refused_with_the_way_out(name):
    several = jnp.array([0.1, 0.2])  # fits the leaf w, whose entries it would scale
    for coef, function in itertools.product((several, several[:1], [0.1, 0.2]), (SCALED[name], jax.jit(SCALED[name]))):
        with pytest.raises(ValueError, match=r"has shape \(.,\), want one number.*`combine\(taus, coefs\)`"):
            function(coef)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("coef", [True, np.bool_(True), "0.5", None, 1j], ids=repr)
def test_what_is_no_real_number_is_refused(name, coef):
    with pytest.raises(TypeError, match="want a real number"):
        SCALED[name](coef)


@pytest.mark.parametrize("name", SCALED)
def test_one_number_of_any_kind_does_under_jit_and_vmap(name):
    want = SCALED[name](0.5)
    for coef in (np.float64(0.5), np.array(0.5), jnp.asarray(0.5, jnp.bfloat16)):
        jax.tree.map(np.testing.assert_array_equal, SCALED[name](coef), want)
    each = jax.jit(jax.vmap(SCALED[name]))(jnp.array([0.5, 2.0]))
    for got, coef in zip((jax.tree.map(lambda leaf, i=i: leaf[i], each) for i in range(2)), (0.5, 2), strict=True):
        jax.tree.map(np.testing.assert_array_equal, got, SCALED[name](coef))


def test_task_arithmetic_with_a_coefficient_for_each_task():
    merge = METHODS["task_arithmetic"]
    for coefs in ([0.1, 0.2], jnp.array([0.1, 0.2])):
        for function in (merge, tajax.merging.compiled(merge)):
            merged = function(THETA, TAUS, coefs=coefs, scaling_coef=2.0)
            np.testing.assert_allclose(merged["w"], [1 + 2 * (0.1 + 0.8), 1 + 2 * (0.2 - 0.2)], rtol=1e-6)
            np.testing.assert_allclose(merged["b"], 2 * (0.3 + 0.2), rtol=1e-6)
    with pytest.raises(ValueError, match="2 task vectors need 2 coefficients, one each; got shape"):
        merge(THETA, TAUS, coefs=[0.1])
    with pytest.raises(ValueError, match="2 task vectors need 2 coefficients, one each; got 0.1"):
        merge(THETA, TAUS, coefs=0.1)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (1, 2)])
def test_linearised_models_want_a_coefficient_for_each_vector(shape):
    rows = AffineLogits(jnp.ones((1, 3, 2)), jnp.ones((1, 3, 3)), jnp.int32(2))
    labels, mask, coefs = jnp.zeros(1, jnp.int32), jnp.ones(1, bool), jnp.ones(shape)
    with pytest.raises(ValueError, match=r"coefs has shape .* want \[2\]"):
        logits_at(rows, coefs)
    with pytest.raises(ValueError, match=r"direction has shape .* want \[2\]"):
        correct_intervals(rows, labels, coefs)
    if shape != (1, 2):
        with pytest.raises(ValueError, match=r"coefs has shape .* want \[G, 2\]"):
            tally_at(rows, labels, mask, coefs)

"""What is done to vectors before a method: by hand, and that a composed method is a method."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import merging
from tajax.merging import METHODS, PREPARATIONS, compose
from tests.merging.agreement import N, tree_of, vector_of
from tests.merging.oracles import ORACLES, slow_ties
from tests.merging.test_contract import moves_along_one_vector, setting

__all__ = ["setting"]  # a fixture


def test_rows_say_what_functions_take_and_have_names_of_their_own():
    assert not set(PREPARATIONS) & set(METHODS)
    for row in PREPARATIONS.values():
        first, *options = inspect.signature(row.prepare).parameters.values()
        assert first.name == "taus" and all(option.kind is option.KEYWORD_ONLY for option in options)
        defaults = {option.name: option.default for option in options if option.name != "key"}
        assert defaults == {keyword: option.default for keyword, option in row.options.items()}
        assert row.random == any(option.name == "key" for option in options)
        assert all(option.holds(option.default) and option.help for option in row.options.values())


@pytest.mark.parametrize("name", PREPARATIONS)
def test_preparations_keep_trees_and_refuse_what_differs(name, setting):
    row, taus = PREPARATIONS[name], list(map(tree_of, setting[1]))
    drawn = {"key": jax.random.key(0)} if row.random else {}
    prepared = row(taus, **drawn)
    assert [jax.tree.structure(tau) for tau in prepared] == [jax.tree.structure(tau) for tau in taus]
    assert [leaf.shape for leaf in jax.tree.leaves(prepared)] == [np.shape(leaf) for leaf in jax.tree.leaves(taus)]
    with pytest.raises(ValueError, match="'w' is in task vector 0 but not in task vector 1"):
        row([{"w": 1.0}, {"v": 1.0}], **drawn)
    with pytest.raises(ValueError, match="is empty"):
        row([], **drawn)
    nothing = [jax.tree.map(np.zeros_like, tau) for tau in taus]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(row(nothing, **drawn)))


def test_trimmed_vectors_are_those_of_ties(setting):
    theta, taus = setting
    elected = compose(PREPARATIONS["trim"], METHODS["ties"], density=0.3)
    got = elected(tree_of(theta), list(map(tree_of, taus)), density=1.0, scaling_coef=0.5)
    np.testing.assert_allclose(vector_of(got), slow_ties(theta, taus, 0.3, 0.5), rtol=1e-6)


def test_dare_is_drop_and_the_sum(setting, key):
    theta, taus = tree_of(setting[0]), list(map(tree_of, setting[1]))
    composed = compose(PREPARATIONS["drop"], METHODS["task_arithmetic"], drop_rate=0.3)
    want = METHODS["dare"](theta, taus, key=key, drop_rate=0.3, scaling_coef=0.5)
    jax.tree.map(np.testing.assert_array_equal, composed(theta, taus, key=key, scaling_coef=0.5), want)


def test_rescaled_vectors_have_one_length_and_their_directions(setting):
    taus = [tree_of(scale * tau) for scale, tau in zip((1, 10, 0.1), setting[1], strict=True)]
    lengths = [float(tajax.norm(tau)) for tau in taus]
    rescaled = merging.PREPARATIONS["rescale"](taus)
    for tau, other in zip(taus, rescaled, strict=True):
        np.testing.assert_allclose(tajax.norm(other), np.mean(lengths), rtol=1e-5)
        np.testing.assert_allclose(tajax.cosine_similarity(tau, other), 1, rtol=1e-5)
    again = merging.PREPARATIONS["rescale"](rescaled)
    np.testing.assert_allclose(*(np.stack([vector_of(tau) for tau in each]) for each in (rescaled, again)), rtol=1e-5)


@pytest.mark.parametrize("preparation", PREPARATIONS)
@pytest.mark.parametrize("name", ["dare", "lines"])
def test_a_composed_method_is_what_its_row_says(preparation, name, setting, key):
    row, method = PREPARATIONS[preparation], METHODS[name]
    composed = compose(row, method)
    assert composed.options is method.options and not composed.by_leaf and composed.alone is None
    assert (composed.affine, composed.scaled, composed.layered) == (method.affine, method.scaled, method.layered)
    assert composed.random == (row.random or method.random)
    drawn = {"key": key} if composed.random else {}
    theta, taus = tree_of(setting[0]), list(map(tree_of, setting[1]))
    given = {keyword: value for keyword, value in ORACLES[name].options.items() if keyword != "key"}
    merge = merging.compiled(composed, **given)
    merged = merge(theta, taus, **drawn)
    halves = jax.random.split(key) if row.random and method.random else (key, key)
    prepared = row(taus, **({"key": halves[0]} if row.random else {}))
    want = method(theta, prepared, **given, **({"key": halves[1]} if method.random else {}))
    np.testing.assert_allclose(vector_of(merged), vector_of(want), rtol=1e-5, atol=1e-5)
    if method.affine and method.scaled:
        options = {keyword: value for keyword, value in given.items() if keyword != "scaling_coef"}
        assert moves_along_one_vector(lambda p, t, **o: composed(p, t, **options, **drawn, **o), setting)
    with pytest.raises(ValueError, match="'w' is in pretrained but not in task vector 1"):
        composed({"w": 1.0}, [{"w": 1.0}, {"v": 1.0}], **given, **drawn)


def test_preparations_are_applied_from_the_outside(setting):
    theta, taus = tree_of(np.zeros(N)), [tree_of(scale * tau) for scale, tau in zip((1, 5, 9), setting[1], strict=True)]
    trimmed = compose(PREPARATIONS["rescale"], METHODS["task_arithmetic"])
    both = compose(PREPARATIONS["trim"], trimmed, density=0.1)(theta, taus)
    want = tajax.combine(PREPARATIONS["rescale"](PREPARATIONS["trim"](taus, density=0.1)))
    np.testing.assert_allclose(vector_of(both), vector_of(want), rtol=1e-5, atol=1e-6)


def test_options_out_of_range_are_named(key):
    with pytest.raises(ValueError, match="has no option 'densty'. It has: density"):
        compose(PREPARATIONS["trim"], METHODS["ties"], densty=0.1)
    with pytest.raises(ValueError, match="has no option 'density'. It has: none"):
        compose(PREPARATIONS["rescale"], METHODS["ties"], density=0.1)
    with pytest.raises(TypeError, match="draws: give it a PRNG key"):
        compose(PREPARATIONS["drop"], METHODS["ties"])({"w": 1.0}, [{"w": 1.0}])
    with pytest.raises(ValueError, match=r"density is the share .* got 0"):
        PREPARATIONS["trim"]([{"w": 1.0}], density=0)
    with pytest.raises(ValueError, match=r"drop_rate is the share .* got 1"):
        PREPARATIONS["drop"]([{"w": jnp.ones(1)}], key=key, drop_rate=1)

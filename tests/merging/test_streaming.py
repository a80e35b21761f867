"""Merging leaf by leaf, with layers one by one: the same model, and never all vectors in memory."""

import jax
import numpy as np
import pytest

from tajax import trees
from tajax.merging import METHODS, PREPARATIONS
from tajax.merging.streaming import merge_by_leaf, prepare_alone
from tests.merging.agreement import N, tree_of
from tests.merging.oracles import ORACLES

BY_LEAF = [name for name, method in METHODS.items() if method.by_leaf]


@pytest.mark.parametrize("name", BY_LEAF)
def test_leaf_by_leaf_is_the_same_model(name, rng):
    """Vectors of normal entries: none ties with another. The projection moves in one of them, the scale in none."""
    method, case, draws = METHODS[name], ORACLES[name], rng(40).normal(size=(4, N))
    pretrained, taus = tree_of(draws[0]), [tree_of(tau) for tau in draws[1 : 1 + case.tasks]]
    for tau in taus:
        tau["scale"] = np.zeros((), np.float32)
    for tau in taus[1:]:
        tau["projection"]["kernel"] = np.zeros((4, 3), np.float32)
    whole = trees.flatten_paths(method(pretrained, taus, **case.options))
    options, alone = dict(case.options), taus
    if method.alone is not None:
        given = {key: value for key, value in options.items() if key != "key"}
        drawn = {"key": jax.random.key(1)} if method.random else {}
        alone, left = zip(*(method.alone(tau, **given, **drawn) for tau in taus), strict=True)
        options = dict(left[0]) | {key: options[key] for key in ("key",) if key in options}
    flats = [{p: leaf for p, leaf in trees.flatten_paths(tau).items() if np.any(leaf)} for tau in alone]
    merged = dict(merge_by_leaf(method, pretrained, flats, **options))
    assert "scale" not in merged and "projection/kernel" in merged
    for path, leaf in trees.flatten_paths(pretrained).items():
        np.testing.assert_allclose(merged.get(path, leaf), whole[path], rtol=1e-5, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(("name", "options"), [("trim", {"density": 0.3}), ("rescale", {})])
def test_vectors_prepared_one_by_one_are_those_prepared_together(name, options, rng, tmp_path):
    """Also where they are memory maps of files, which nothing writes to."""
    taus = [tree_of(scale * tau) for scale, tau in zip((1, 5, 9), rng(42).normal(size=(3, N)), strict=True)]
    whole = PREPARATIONS[name](taus, **options)

    def read(number):
        leaves, structure = jax.tree.flatten(taus[number])
        for place, leaf in enumerate(leaves):
            np.save(tmp_path / f"{place}.npy", leaf)
        mapped = [np.load(tmp_path / f"{place}.npy", mmap_mode="r") for place in range(len(leaves))]
        return jax.tree.unflatten(structure, mapped)

    for number, tau in enumerate(prepare_alone(PREPARATIONS[name], [lambda n=n: read(n) for n in range(3)], **options)):
        for one, other in zip(jax.tree.leaves(tau), jax.tree.leaves(whole[number]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


def test_each_vector_is_thinned_by_its_own_key(rng):
    tau, keys = tree_of(rng(43).normal(size=N)), jax.random.split(jax.random.key(3), 2)
    first, second = prepare_alone(PREPARATIONS["drop"], [lambda: tau] * 2, keys=keys, drop_rate=0.5)
    again, _ = prepare_alone(PREPARATIONS["drop"], [lambda: tau] * 2, keys=keys, drop_rate=0.5)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    one, other, whole = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (first, second, tau))
    assert np.any((one != 0) != (other != 0))
    np.testing.assert_allclose(one[one != 0], 2 * whole[one != 0], rtol=1e-6)


def test_what_looks_at_all_leaves_is_refused():
    method = METHODS["ties"]
    with pytest.raises(ValueError, match="looks at all leaves together"):
        next(merge_by_leaf(type(method)(method.merge), {"w": np.ones(1)}, [{}]))


def test_a_method_alone_leaves_nothing_to_do_to_a_vector(rng):
    """TIES of vectors that are trimmed already, leaf by leaf, trims no second time."""
    tau = tree_of(rng(41).normal(size=N))
    trimmed, left = METHODS["ties"].alone(tau, density=0.3, merge="sum")
    assert left == {"density": 1.0, "merge": "sum"}
    assert sum(np.count_nonzero(leaf) for leaf in jax.tree.leaves(trimmed)) == round(0.3 * N)
    thin, left = METHODS["dare"].alone(tau, key=jax.random.key(0), drop_rate=0.5)
    assert left == {"drop_rate": 0.0}
    kept = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(thin)])
    whole = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tau)])
    np.testing.assert_allclose(kept[kept != 0], 2 * whole[kept != 0], rtol=1e-6)
    assert 0 < np.count_nonzero(kept) < N

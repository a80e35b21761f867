"""Single entries that are trained: exactly so many of the smallest, back and forth as bits, and the rest untouched."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import trees
from tajax.sparse import entries, packed, smallest, unpacked

SHAPES = {"a": (3, 5), "b": (4,), "c": (2, 3, 3), "d": ()}


def everywhere(shapes=SHAPES):
    return {path: np.ones(shape, bool) for path, shape in shapes.items()}


@pytest.mark.parametrize("levels", [3, 10**6])  # many ties, and none
def test_the_smallest_are_those_of_a_stable_sort_over_all_leaves(levels, rng):
    scores = {path: rng(70).integers(levels, size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    among = {path: rng(71).random(shape) < 0.7 for path, shape in SHAPES.items()}
    places = [(path, index) for path, where in among.items() for index in np.ndindex(where.shape) if where[index]]
    ordered = sorted(places, key=lambda place: scores[place[0]][place[1]])  # stable
    for count in range(1, len(places) + 1):
        found = smallest(scores, count, among)
        chosen = {(path, index) for path, index in places if found[path][index]}
        assert chosen == set(ordered[:count]) and sum(where.sum() for where in found.values()) == count


def test_scores_without_an_order_and_counts_out_of_range_are_refused():
    scores = {"a": np.array([1.0, np.nan, np.inf])}
    with pytest.raises(ValueError, match="1 of 3 scores are not a number"):
        smallest(scores, 1, {"a": np.ones(3, bool)})
    among = {"a": np.array([True, False, True])}
    assert smallest(scores, 2, among)["a"].tolist() == [True, False, True]
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"{count} entries are to be chosen among 2"):
            smallest(scores, count, among)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (3, 3), (0, 4)])
def test_bits_come_back_and_are_refused_where_they_do_not_fit(shape, rng):
    chosen = rng(72).random(shape) < 0.5
    bits, size = packed(np.asarray(chosen)), int(np.prod(shape))
    np.testing.assert_array_equal(unpacked(bits, shape), chosen)
    for wrong in (np.append(bits, np.uint8(0)), bits.astype(np.int8), bits[None]):
        with pytest.raises(ValueError, match=f"bits of {size} entries are uint8"):
            unpacked(wrong, shape)
    if size % 8:
        with pytest.raises(ValueError, match="one set behind the last entry"):
            unpacked(bits | np.uint8(1), shape)


@pytest.fixture
def tree(rng):
    draw = rng(73).normal
    leaves = {"blocks/kernel": (3, 2, 4), "blocks/bias": (3, 4), "scale": (5,), "narrow": (6,)}
    flat = {path: jnp.asarray(draw(size=shape), jnp.float32).at[..., 0].set(-0.0) for path, shape in leaves.items()}
    flat["narrow"] = flat["narrow"].astype(jnp.bfloat16)
    return trees.unflatten_paths(flat | {"step": jnp.int32(3)})


def test_entries_go_in_and_out_and_all_others_keep_every_bit(tree, rng):
    mask = trees.param_mask(tree, "all")
    mask["blocks"]["kernel"], mask["scale"] = np.array([True, False, True]), False
    whole, _ = trees.split(tree, mask)
    chosen = {path: rng(74).random(leaf.shape) < 0.5 for path, leaf in whole.items()} | {
        "blocks/bias": np.zeros((3, 4), bool)
    }
    parts = entries(mask, chosen)
    start = parts.init(tree)
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in start.items()} == {
        path: ((chosen[path].sum(),), whole[path].dtype) for path in ("blocks/kernel", "narrow")
    }
    back = parts.restore(tree, start)
    assert [np.asarray(a).tobytes() for a in jax.tree.leaves(back)] == [
        np.asarray(a).tobytes() for a in jax.tree.leaves(tree)
    ]
    moved = jax.jit(parts.restore)(tree, {path: leaf + 1 for path, leaf in start.items()})
    for path, leaf in trees.split(moved, mask)[0].items():
        same = np.asarray(leaf).view(np.uint8).reshape(leaf.size, -1) == np.asarray(whole[path]).view(np.uint8).reshape(
            leaf.size, -1
        )
        np.testing.assert_array_equal(~same.all(1), chosen[path].reshape(-1), err_msg=path)
        np.testing.assert_array_equal(leaf[chosen[path]], whole[path][chosen[path]] + 1)
    for path in ("scale", "step"):
        assert np.asarray(moved[path]).tobytes() == np.asarray(tree[path]).tobytes()
    assert np.asarray(moved["blocks"]["kernel"][1]).tobytes() == np.asarray(tree["blocks"]["kernel"][1]).tobytes()


def test_the_gradient_in_entries_is_that_of_the_leaf_there(x64, rng):
    tree = {path: jnp.asarray(rng(75).normal(size=shape)) for path, shape in SHAPES.items()}
    chosen = {path: rng(76).random(shape) < 0.6 for path, shape in SHAPES.items()}
    parts = entries(None, chosen)

    def loss(tree):
        return sum(jnp.sum(jnp.sin(a) * jnp.sum(b)) for a, b in itertools.combinations(tree.values(), 2))

    grads = jax.grad(loss)(tree)
    found = jax.jit(jax.grad(lambda t: loss(parts.restore(tree, t))))(parts.init(tree))
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, np.asarray(grads[path])[chosen[path]], rtol=1e-12)


def test_entries_of_another_model_are_refused_by_name(tree):
    with pytest.raises(ValueError, match="no entry of any leaf is chosen"):
        entries(None, {"scale": np.zeros(5, bool)})
    with pytest.raises(ValueError, match=r"entries of 'scale' are chosen in shape \(4,\), but it has shape \(5,\)"):
        entries(None, {"scale": np.ones(4, bool)}).init(tree)
    frozen = trees.param_mask(tree, "bias")
    with pytest.raises(ValueError, match="entries of 'scale' are chosen in shape .* but it is not trained"):
        entries(frozen, {"scale": np.ones(5, bool)}).restore(tree, {"scale": jnp.ones(5)})

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import trees
from tests.core import shapes

BLOCK = {f"ln_{i}": {"scale": (6, 4), "bias": (6, 4)} for i in (1, 2)} | {
    "attn": {name: {"kernel": (6, 4, 4), "bias": (6, 4)} for name in ("query", "key", "value", "out")},
    "mlp": {"fc_in": {"kernel": (6, 4, 8), "bias": (6, 8)}, "fc_out": {"kernel": (6, 8, 4), "bias": (6, 4)}},
}
TOWER = {
    "class_embedding": (4,),
    "position_embedding": (5, 4),
    "patch_embedding": {"kernel": (2, 2, 3, 4)},
    "ln_pre": {"scale": (4,), "bias": (4,)},
    "blocks": BLOCK,
    "ln_post": {"scale": (4,), "bias": (4,)},
    "projection": {"kernel": (4, 3)},
}


@pytest.fixture
def tower():
    """Shapes of a CLIP image tower: width 4, 6 layers, 4 patches."""
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    with shapes.unchecked():  # types speak of arrays; paths and masks want no more than their shapes
        yield jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), TOWER, is_leaf=is_shape)


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        ("attention", 4 * 6 * 16),
        ("attention_with_bias", 4 * 6 * (16 + 4)),
        ("attention_query", 6 * 16),
        ("attention_key", 6 * 16),
        ("attention_value", 6 * 16),
        ("attention_out", 6 * 16),
        ("attention_query_value", 2 * 6 * 16),
        ("attention_query_key_value", 3 * 6 * 16),
        ("mlp", 2 * 6 * 32),
        ("linear_layers", 4 * 6 * 16 + 2 * 6 * 32),
        ("biases", 6 * (4 * 4 + 8 + 4 + 2 * 4) + 2 * 4),
        ("layer_norms", 6 * 2 * 8 + 2 * 8),
        ("all", 4 + 20 + 48 + 16 + 12 + 6 * (4 * 20 + 40 + 36 + 16)),
        (r"(query|value)/kernel", 2 * 6 * 16),
        (["projection/kernel", "class_embedding"], 12 + 4),
        ({r"ln_.*": True, r".*/bias": False, r"blocks/.*": True, r".*": False}, 112 + 6 * (64 + 64)),
    ],
)
def test_every_rule_trains_exactly_its_own_numbers(tower, rule, count):
    assert trees.count_params(tower, trees.param_mask(tower, rule)) == count
    # A rule says the same of the tower inside a whole CLIP, where paths begin with 'image/'.
    if not isinstance(rule, dict):
        whole = {"image": tower, "logit_scale": jax.ShapeDtypeStruct((), jnp.int32)}
        assert trees.count_params(whole, trees.param_mask(whole, rule)) == count


def test_every_named_rule_is_in_the_table_above():
    (params,) = test_every_rule_trains_exactly_its_own_numbers.pytestmark
    assert set(trees.RULES) == {case[0] for case in params.args[1] if isinstance(case[0], str) and "/" not in case[0]}


@pytest.mark.parametrize(
    ("rule", "error", "words"),
    [
        ("atention", ValueError, ["'atention'", "none of the 24 parameters", "Did you mean 'attention'?"]),
        ("kernel/attn", ValueError, ["none of the 24", "Named rules: all, attention"]),
        ("blocks/attn/query/kernal", ValueError, ["Nearest paths: blocks/attn/query/kernel"]),
        ("query", ValueError, ["matches none"]),  # part of a path is not a suffix of it
        ("(", ValueError, ["not a valid regular expression"]),
        (["attn/query/kernel", "no_such"], ValueError, ["'no_such'"]),
        ([], ValueError, ["empty"]),
        ({"attn/.*": True}, ValueError, ["says nothing about 'blocks/ln_1/bias'", "16 of 24"]),
        ({".*": True, "attn/.*": False}, ValueError, ["'attn/.*'", "Move it up"]),
        ({".*": 1}, TypeError, ["True or False"]),
        (3, TypeError, ["got 3"]),
    ],
)
def test_a_rule_that_claims_nothing_or_not_everything_is_an_error(tower, rule, error, words):
    with pytest.raises(error) as caught:
        trees.param_mask(tower, rule)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("rule", trees.RULES)
def test_the_halves_of_a_tower_are_its_layers_and_nothing_else(tower, rule):
    count = lambda **layers: trees.count_params(tower, trees.param_mask(tower, rule, **layers))  # noqa: E731
    halves = count(layers=(0, 3)), count(layers=(3, 6))
    outside = {path: leaf for path, leaf in trees.flatten_paths(tower).items() if "blocks" not in path}
    mask = trees.flatten_paths(trees.param_mask(tower, rule))
    beyond = trees.count_params(outside, {path: mask[path] for path in outside})
    assert halves[0] == halves[1] > 0
    assert sum(halves) == count(layers=(0, 6)) == count() - beyond
    assert 3 * count(layers=(4, 5)) == halves[0]


def test_layers_are_counted_from_the_input(tower):
    mask = trees.param_mask({"image": tower, "step": 3}, "attention_key", layers=(1, 3))
    np.testing.assert_array_equal(mask["image"]["blocks"]["attn"]["key"]["kernel"], [0, 1, 1, 0, 0, 0])
    others = {path: trained for path, trained in trees.flatten_paths(mask).items() if "key/kernel" not in path}
    assert set(others.values()) == {False}
    assert trees.param_mask(tower, "mlp", layers=(0, 6)) == trees.param_mask(tower, "mlp")


@pytest.mark.parametrize(
    ("rule", "layers", "error", "words"),
    [
        ("attention", (0, 7), ValueError, "layers is (0, 7), which is no range of the 6 layers of 'blocks/attn/key"),
        ("attention", (3, 3), ValueError, "give (first, end) with 0 <= first < end <= 6"),
        ("attention", (-2, 6), ValueError, "layers is (-2, 6)"),
        ("attention", (1, 2, 3), TypeError, "layers is (1, 2, 3); give (first, end)"),
        ("attention", (0, 2.0), TypeError, "two whole numbers"),
        ("projection/kernel", (0, 3), ValueError, "'projection/kernel' claims no leaf below a node 'blocks'"),
    ],
)
def test_layers_that_there_are_not_are_an_error(tower, rule, layers, error, words):
    with pytest.raises(error, match=re.escape(words)):
        trees.param_mask(tower, rule, layers=layers)


def test_layers_are_stacked_by_the_node_that_is_named(tower):
    chosen = {"rule": "mlp", "layers": (1, 3)}
    renamed = {"layer" if name == "blocks" else name: node for name, node in tower.items()}
    mask, want = trees.param_mask(renamed, **chosen, stacked="layer"), trees.param_mask(tower, **chosen)
    jax.tree.map(np.testing.assert_array_equal, mask["layer"], want["blocks"])
    with pytest.raises(ValueError, match="claims no leaf below a node 'blocks'"):
        trees.param_mask(renamed, **chosen)
    with pytest.raises(ValueError, match=re.escape("layers=(1, 3), but no node of this model stacks layers")):
        trees.param_mask(tower, **chosen, stacked=None)


def test_integer_leaves_are_never_trained(key):
    params = {"w": jnp.ones(2), "position_ids": jnp.arange(3), "key": key}
    assert trees.param_mask(params, "all") == {"w": True, "position_ids": False, "key": False}
    with pytest.raises(ValueError, match="none of the 1 parameters"):
        trees.param_mask(params, "position_ids")


Point = collections.namedtuple("Point", "x y")


@jax.tree_util.register_pytree_with_keys_class
class Layer:
    """A node with named children, as NNX states and Equinox modules are."""

    def __init__(self, kernel, name="layer"):
        self.kernel, self.name = kernel, name

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("kernel"), self.kernel)], self.name

    @classmethod
    def tree_unflatten(cls, name, children):
        return cls(*children, name)


def test_paths_of_every_kind_of_node():
    tree = {"a": [1, (2, None)], "b": Point(3, {"c": 4}), "d": Layer(5)}
    assert trees.flatten_paths(tree) == {"a/0": 1, "a/1/0": 2, "b/x": 3, "b/y/c": 4, "d/kernel": 5}
    mask = trees.param_mask(jax.tree.map(float, tree), "kernel")
    assert mask["d"].kernel is True and mask["b"] == Point(False, {"c": False}) and mask["a"] == [False, (False, None)]


def test_unflatten_inverts_flatten_and_refuses_what_no_tree_has(tower):
    flat = trees.flatten_paths(tower)
    assert trees.unflatten_paths(flat) == tower
    assert trees.unflatten_paths(dict(reversed(flat.items()))) == tower
    assert trees.unflatten_paths(trees.flatten_paths(7)) == 7
    for clash in ({"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}):
        with pytest.raises(ValueError, match="'a' is a leaf"):
            trees.unflatten_paths(clash)
    with pytest.raises(ValueError, match="two leaves share the path 'a/b'"):
        trees.flatten_paths({"a/b": 1, "a": {"b": 2}})


@pytest.mark.parametrize(
    ("b", "message"),
    [
        ({"w": np.ones(3), "z": 1.0}, "'b' is in pretrained but not in finetuned (1 such path, of 2 in pretrained"),
        ({"w": np.ones(3), "b": 1.0, "z": 1.0}, "'z' is in finetuned but not in pretrained"),
        ({"w": np.ones(3), "b": None}, "'b' is in pretrained but not in finetuned"),
        ({"w": np.ones((3, 1)), "b": 1.0}, "'w' has shape (3,) in pretrained but (3, 1) in finetuned"),
    ],
)
def test_the_first_difference_between_trees_is_named(b, message):
    a = {"w": jnp.ones(3), "b": 1.0}
    with pytest.raises(ValueError, match=re.escape(message)):
        tajax.task_vector(a, b)


def test_containers_may_differ_but_paths_may_not():
    trees.check_same_tree({"a": [jnp.ones(2)]}, {"a": (np.ones(2, np.float16),)})
    trees.check_same_tree(Layer(1.0), {"kernel": 2.0})


def test_masks_must_fit_and_hold_bools():
    params = {"w": jnp.ones(3), "b": jnp.ones(2)}
    assert trees.count_params(params) == 5
    with pytest.raises(ValueError, match="'b' is in params but not in mask"):
        trees.count_params(params, {"w": True})
    for wrong in (1, np.array([0, 1])):
        with pytest.raises(TypeError, match=r"the mask at 'b' is .*; each leaf of a mask is a bool, or a bool array"):
            trees.count_params(params, {"w": True, "b": wrong})
    for shape in ((3,), (1,), (2, 1)):
        with pytest.raises(ValueError, match=r"'b' has shape .*one bool for each layer of the leaf.* has shape \(2,\)"):
            trees.count_params(params, {"w": True, "b": np.ones(shape, bool)})


def test_split_restores_what_it_took_apart_and_keeps_the_rest_itself(key):
    params = {"w": jax.random.normal(key, (3,)), "b": np.ones(2), "step": 4}
    trained, restore = trees.split(params, {"w": True, "b": False, "step": True})
    assert set(trained) == {"w"}
    back = restore(jax.tree.map(lambda leaf: leaf * 2, trained))
    np.testing.assert_array_equal(back["w"], params["w"] * 2)
    assert back["b"] is params["b"] and back["step"] is params["step"]


def test_not_finite_entries_are_found_and_counted():
    clean = {"w": jnp.ones((2, 3), jnp.bfloat16), "step": 3}
    trees.check_finite(clean, "x")
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        dirty = clean | {"w": clean["w"].at[1].set(bad)}
        with pytest.raises(ValueError, match="task vector of dtd: 3 of the 6 entries of 'w' are not finite"):
            trees.check_finite(dirty, "task vector of dtd")


def test_a_leaf_that_is_no_array_says_what_to_do():
    with pytest.raises(TypeError, match=r"^'activation'.*not an array. Keep the arrays apart first.*equinox.partition"):
        trees.param_mask({"activation": jax.nn.relu, "w": jnp.ones(1)}, "all")


def test_rules_see_through_boxes_around_arrays():
    # As variables of flax.nnx: an object whose attribute `value` is the array.
    box = collections.namedtuple("Box", ["value"])
    params = {"attn": {"key": {"kernel": box(jnp.ones(2)), "bias": box(jnp.ones(1))}}, "value": jnp.ones(3)}
    assert list(trees.flatten_paths(params)) == ["attn/key/bias", "attn/key/kernel", "value"]
    assert trees.count_params(params, trees.param_mask(params, "attention")) == 2
    tau = tajax.task_vector(params, jax.tree.map(jnp.zeros_like, params))
    assert jax.tree.structure(tau) == jax.tree.structure(params)

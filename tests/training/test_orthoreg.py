"""OrthoReg: its penalty from singular values, its gradient in closed form, and which kernels it counts."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import trees
from tajax.finetune import Penalized
from tajax.parametrization import masked
from tajax.regimes import REGIMES
from tajax.training import training_method
from tajax.training.orthoreg import dense_kernels, distance_to_orthogonal

METHOD = training_method(REGIMES["orthoreg"].method)
SHAPES = {
    "blocks/attn/query/kernel": (3, 4, 4),
    "blocks/attn/query/bias": (3, 4),
    "blocks/mlp/fc_in/kernel": (3, 4, 6),
    "blocks/mlp/fc_out/kernel": (3, 6, 4),
    "blocks/ln_1/scale": (3, 4),
    "patch_embedding/kernel": (2, 2, 3, 4),
    "position_embedding": (5, 4),
    "projection/kernel": (4, 2),
}
DENSE = [name for name in SHAPES if name.endswith("kernel") and name != "patch_embedding/kernel"]


@pytest.fixture
def tree(rng):
    draw = rng(50).normal
    return trees.unflatten_paths({path: jnp.asarray(draw(size=shape)) for path, shape in SHAPES.items()})


def penalty_of(pretrained, theta, mask):
    """The penalty and its gradient in what is trained, as a step takes them."""
    parts = masked(mask)
    data = METHOD.data(SimpleNamespace(encoder=SimpleNamespace(params=pretrained, stacked="blocks"), mask=mask))
    unread = dict.fromkeys(set(Penalized._fields) - {"pretrained", "restore", "data"})
    seen = Penalized(pretrained=pretrained, restore=lambda t: parts.restore(pretrained, t), data=data, **unread)
    return jax.jit(jax.value_and_grad(lambda t: METHOD.penalty({})(t, seen)))(parts.init(theta))


def by_hand(delta):
    """The paper's ‖ΔWᵀΔW − I‖² for W = Kᵀ, less the constant of the larger side, and its gradient in K, in float64."""
    w = np.asarray(delta, np.float64).T  # [out, in], as PyTorch has it
    rest = w.T @ w - np.eye(w.shape[1])
    return (rest**2).sum() - max(0, w.shape[1] - w.shape[0]), (4 * w @ rest).T


@pytest.mark.parametrize("layers", [None, (1, 3)])
def test_penalty_and_gradient_are_the_papers_layer_by_layer(layers, x64, rng, tree):
    mask = trees.param_mask(tree, "all", layers=layers)
    theta = jax.tree.map(lambda leaf: leaf + 0.4 * rng(51).normal(size=leaf.shape), tree)
    value, grads = penalty_of(tree, theta, mask)
    before, after, chosen = trees.flatten_paths(tree), trees.flatten_paths(theta), trees.trained_layers(tree, mask)
    total, counted = 0.0, [path for path in DENSE if np.any(chosen[path])]
    for path in counted:
        delta = np.asarray(after[path] - before[path])
        if delta.ndim == 3:
            kept = delta[np.broadcast_to(chosen[path], 3)]
            found = [by_hand(layer) for layer in kept]
            want = np.stack([grad for _, grad in found])
        else:
            found = [by_hand(delta)]
            want = found[0][1]
        total += sum(value for value, _ in found)
        np.testing.assert_allclose(grads[path], want, rtol=1e-9, atol=1e-12, err_msg=path)
    np.testing.assert_allclose(value, total, rtol=1e-12)
    assert len(counted) == (4 if layers is None else 3)
    assert not any(np.any(leaf) for path, leaf in grads.items() if path not in counted)


def test_the_start_is_a_maximum_with_no_gradient_and_orthogonal_vectors_are_the_minimum(x64, rng, tree):
    mask = trees.param_mask(tree, "all")
    value, grads = penalty_of(tree, tree, mask)
    assert value == 3 * (4 + 4 + 4) + 2 and not any(np.any(leaf) for leaf in grads.values())
    for rows, columns in ((4, 4), (4, 6), (6, 4)):
        left, _, right = np.linalg.svd(rng(52).normal(size=(rows, columns)), full_matrices=False)
        turned = jnp.asarray(left @ right)
        for sigma in (0.5, 1.0, 2.0):  # Σ (σ² − 1)² over the singular values
            np.testing.assert_allclose(distance_to_orthogonal(sigma * turned), 4 * (sigma**2 - 1) ** 2, atol=1e-12)
    near = distance_to_orthogonal(1e-3 * jnp.eye(4))
    assert near < distance_to_orthogonal(jnp.zeros((4, 4))) == 4  # what moves a little is drawn further away


def test_the_smaller_side_has_the_gradient_of_the_larger(x64, rng):
    for shape in ((4, 6), (6, 4)):
        delta = jnp.asarray(rng(53).normal(size=shape))
        sides = [
            lambda d: jnp.sum((d.T @ d - jnp.eye(d.shape[1])) ** 2),
            lambda d: jnp.sum((d @ d.T - jnp.eye(d.shape[0])) ** 2),
        ]
        first, second = (jax.value_and_grad(side)(delta) for side in sides)
        np.testing.assert_allclose(first[1], second[1], rtol=1e-9)
        ours = jax.value_and_grad(distance_to_orthogonal)(delta)
        np.testing.assert_allclose(ours[0], min(first[0], second[0]), rtol=1e-12)
        np.testing.assert_allclose(abs(first[0] - second[0]), 2, rtol=1e-9)
        np.testing.assert_allclose(ours[1], first[1], rtol=1e-9)


def test_dense_kernels_are_those_of_two_axes_below_the_layers():
    tree = {path: np.zeros(shape) for path, shape in SHAPES.items()}
    tree = trees.unflatten_paths(tree)
    assert sorted(dense_kernels(tree, trees.param_mask(tree, "all"), stacked="blocks")) == sorted(DENSE)
    unstacked = dense_kernels(tree, trees.param_mask(tree, "all"), stacked=None)
    assert list(unstacked) == ["projection/kernel"]  # three axes and no layers: a convolution in one dimension


@pytest.mark.parametrize("rule", ["biases", "patch_embedding/kernel", "layer_norms"])
def test_a_rule_without_dense_kernels_is_refused_by_name(rule):
    tree = trees.unflatten_paths({path: np.zeros(shape) for path, shape in SHAPES.items()})
    encoder = SimpleNamespace(params=tree, stacked="blocks")
    first = {"biases": "blocks/attn/query/bias", "layer_norms": "blocks/ln_1/scale"}.get(rule, rule)
    with pytest.raises(ValueError, match=f"regime 'orthoreg' .* none among the 1 leaves that are trained, .*{first}"):
        METHOD.check(encoder, trees.param_mask(tree, rule), {})
    METHOD.check(encoder, trees.param_mask(tree, "attention_query"), {})

"""Linear probes: the optimality condition, a closed form, an independent solver, and the choice of λ."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from scipy.special import expit

from tajax.losses import cross_entropy, head_logits
from tajax.models import pad_head
from tajax.models.probe import linear_probe

CLASSES = 3


def draw(count, number, spread=0.6):
    """Features in a narrow cone, of very different lengths, around one direction a class."""
    random = np.random.default_rng([20230522, number])
    labels = np.arange(count) % CLASSES
    means = 4 + np.random.default_rng(7).normal(size=(CLASSES, 5))
    lengths = 10.0 ** random.uniform(-2, 2, size=(count, 1))
    return lengths * (means[labels] + spread * random.normal(size=(count, 5))), labels


def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("strength", [1e-1, 1e-3, 1e-5])
def test_the_gradient_of_the_objective_vanishes(strength):
    """Xᵀ(Y − P)/N = λ W, in float64 from the definition; strictly convex, so this is the only minimum."""
    features, labels = draw(60, 1)
    probe = linear_probe(features, labels, *draw(30, 2), num_classes=CLASSES, regularizations=[strength])
    weights, x = np.asarray(probe.head.weights, np.float64), unit(features)
    p = np.exp(x @ weights)
    p /= p.sum(axis=1, keepdims=True)
    wanted = x.T @ (np.eye(CLASSES)[labels] - p) / len(x)
    np.testing.assert_allclose(strength * weights, wanted, atol=5e-6)  # float32 weights up to 50; the solver's 1e-6
    assert np.abs(strength * weights).max() > 1e-4  # large beside the tolerance
    np.testing.assert_allclose(weights.sum(axis=1), 0, atol=1e-3)  # the penalty's choice among equal softmaxes
    assert probe.converged


@pytest.mark.parametrize("strength", [0.5, 0.01])
def test_two_opposite_images_have_a_closed_form(strength):
    """W = [w, −w] along the image: σ(−2w) = λ·w, one equation in one unknown, for each of both images."""
    features, labels = np.array([[3.0], [-0.2]]), np.array([0, 1])
    probe = linear_probe(features, labels, features, labels, num_classes=2, regularizations=[strength])
    w = brentq(lambda w: expit(-2 * w) - strength * w, 0, 1e3)
    np.testing.assert_allclose(probe.head.weights, [[w, -w]], rtol=1e-4)


def test_an_independent_solver_finds_no_lower_loss_on_the_model_s_own_head():
    features, labels = draw(45, 3)
    strength = 1e-3
    head = linear_probe(features, labels, features, labels, num_classes=CLASSES, regularizations=[strength]).head

    def objective(flat):
        logits = unit(features) @ flat.reshape(5, CLASSES)
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
        return losses.mean() + strength / 2 * (flat**2).sum()

    other = minimize(objective, np.zeros(5 * CLASSES), method="BFGS", options={"gtol": 1e-7})
    losses = cross_entropy(head_logits(jnp.asarray(features, jnp.float32), head), jnp.asarray(labels))
    ours = float(losses.mean()) + strength / 2 * float((head.weights**2).sum())
    np.testing.assert_allclose(ours, other.fun, rtol=1e-5)
    np.testing.assert_allclose(head.weights, other.x.reshape(5, CLASSES), atol=0.02)


def test_lengths_of_features_and_order_of_images_do_not_matter():
    features, labels = draw(40, 4)
    order = np.random.default_rng(5).permutation(40)
    plain = linear_probe(features, labels, *draw(20, 5), num_classes=CLASSES)
    other = linear_probe(3 * features[order], labels[order], *draw(20, 5), num_classes=CLASSES)
    assert other.regularization == plain.regularization
    np.testing.assert_allclose(other.head.weights, plain.head.weights, rtol=1e-3, atol=1e-3)


def test_the_strength_is_the_one_that_predicts_validation_best():
    """Noise asks for a strong penalty, clean classes for a weak one; every λ alone does worse, whatever their order."""
    chosen = []
    for number, spread in ((6, 3.0), (7, 0.1)):
        train, val = draw(30, number, spread), draw(300, 10 + number, spread)
        grid = [1e-4, 1e-1, 1e-2, 1e-5, 1e-3]
        best = linear_probe(*train, *val, num_classes=CLASSES, regularizations=grid)
        each = [linear_probe(*train, *val, num_classes=CLASSES, regularizations=[strength]) for strength in grid]
        losses = {probe.regularization: probe.val_loss for probe in each}
        assert best.regularization == min(losses, key=losses.get)
        np.testing.assert_allclose(best.val_loss, min(losses.values()), rtol=1e-4)  # begun elsewhere, same minimum
        x = np.asarray(val[0], np.float32)
        assert best.val_top1 == np.mean(np.argmax(head_logits(jnp.asarray(x), best.head), axis=1) == val[1])
        chosen.append(best.regularization)
    assert chosen[0] > chosen[1]


def test_a_class_without_examples_is_never_predicted_and_the_head_is_padded_as_any_other():
    features, labels = draw(40, 8)
    probe = linear_probe(features, labels, features, labels, num_classes=CLASSES + 1, regularizations=[1e-4])
    logits = head_logits(jnp.asarray(features, jnp.float32), pad_head(probe.head, 7))
    assert (int(probe.head.num_classes), probe.head.weights.dtype) == (CLASSES + 1, jnp.float32)
    assert np.argmax(logits, axis=1).max() < CLASSES
    assert np.isneginf(logits[:, CLASSES + 1 :]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.full((2, 3), np.nan)}, r"features: row 0 is not finite \(2 of 2 rows\)"),
        ({"val_labels": np.array([0, 2])}, "val_features: row 1 has label 2, outside the 2 classes"),
        ({"labels": np.array([0])}, r"features has shape \(2, 3\) and its labels \(1,\)"),
        ({"features": np.ones((0, 3)), "labels": np.ones(0, int)}, "N at least 1"),
        ({"regularizations": [1e-3, 0.0]}, r"regularizations is \[0.001, 0.0\]; give finite numbers above 0"),
        ({"regularizations": []}, "above 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = dict.fromkeys(("features", "val_features"), np.eye(2, 3)) | dict.fromkeys(
        ("labels", "val_labels"), np.arange(2)
    )
    with pytest.raises(ValueError, match=message):
        linear_probe(**(given | change), num_classes=2)

"""Linear-probe heads: a classifier fitted to the frozen features of the pre-trained encoder, for a closed vocabulary.

Where class names say nothing to the text tower, or there is none, the head of a task is a multinomial logistic
regression on the pre-trained model's own features. It is frozen from then on, exactly as a zero-shot head is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize

from tajax.types import Head

__all__ = ["REGULARIZATIONS", "LinearProbe", "linear_probe"]

REGULARIZATIONS = tuple(10.0**-k for k in range(1, 9))
"""Values of λ to choose from. On the bundled model the best are 1e-6 and 1e-7: its unit features lie close together."""

_MAX_ITERATIONS = 1000
_GRADIENT = 1e-6  # largest entry of the gradient at the solution, in coordinates whose Hessian is nearly the identity


class LinearProbe(NamedTuple):
    """A fitted head, and how it was chosen."""

    head: Head
    """W [E, K], float32."""
    regularization: float
    """λ of the head: the one with the lowest validation loss."""
    train_top1: float
    """Accuracy on the examples it was fitted to."""
    val_top1: float
    """Accuracy on validation, which λ was chosen on."""
    val_loss: float
    """Mean cross-entropy on validation."""
    converged: bool
    """Whether the solver reached its tolerance; False at a λ too weak to be worth the wait."""


def linear_probe(
    features: Float[np.ndarray, "N E"],
    labels: Int[np.ndarray, " N"],
    val_features: Float[np.ndarray, "M E"],
    val_labels: Int[np.ndarray, " M"],
    *,
    num_classes: int,
    regularizations: Sequence[float] = REGULARIZATIONS,
) -> LinearProbe:
    """The multinomial logistic regression on unit features, of the strength that predicts validation best.

        W(λ) = argmin_W (1/N) Σ_i −log softmax(x̂_i W)[y_i] + (λ/2) ‖W‖²,   x̂ = x / ‖x‖

    It has no bias, as heads have none; the mean of the unit features, which is long for CLIP, serves as one. The
    objective is strictly convex, so W(λ) is one matrix, whatever the solver: L-BFGS in float64, from the strongest λ to
    the weakest, each begun at the solution before it. λ is chosen by validation loss where Radford et al. take
    accuracy: on a few hundred images it is less of a lottery, and it says how long W should be, too.

    Args:
        features: x, of the frozen pre-trained encoder, not normalised.
        labels: y, in [0, num_classes). A class may be absent.
        val_features: of other images, to choose λ by.
        val_labels: their labels.
        num_classes: K.
        regularizations: the λ to choose from, each above 0.

    Returns:
        The head, its λ and its accuracies. Some hundred iterations in all, of 2·N·E·K multiplications each: a second
        or two for 2,000 images, 128 features and 10 classes.

    Raises:
        ValueError: a feature is not finite, a label outside the classes, examples without labels or none at all, or a λ
            that is not above 0.

    Source: Radford et al. 2021, §3.2 and A.3 (L-BFGS, λ by a sweep on validation); Ortiz-Jimenez et al. 2023 for task
        arithmetic on such heads.

    Example:
        >>> x, y = np.array([[2.0, 0.0], [0.0, 5.0]]), np.array([0, 1])
        >>> probe = linear_probe(x, y, x, y, num_classes=2, regularizations=[0.1])
        >>> probe.val_top1, probe.head.weights.round(3).tolist()  # each column is the opposite of the other
        (1.0, [[0.8..., -0.8...], [-0.8..., 0.8...]])
    """
    train = _checked("features", features, labels, num_classes)
    val = _checked("val_features", val_features, val_labels, num_classes)
    strengths = sorted((float(strength) for strength in regularizations), reverse=True)
    if not strengths or not all(0 < strength < np.inf for strength in strengths):
        raise ValueError(f"regularizations is {regularizations!r}; give finite numbers above 0, such as (1e-4, 1e-3).")
    weights = np.zeros((train[0].shape[1], num_classes))
    probes = []
    for strength in strengths:
        weights, converged = _fit(*train, strength, weights)
        head = Head(jnp.asarray(weights, jnp.float32), jnp.int32(num_classes))
        train_top1, _ = _measure(*train, weights)
        probes.append(LinearProbe(head, strength, train_top1, *_measure(*val, weights), converged))
    return min(probes, key=lambda probe: probe.val_loss)


def _fit(
    x: Float[np.ndarray, "N E"], y: Int[np.ndarray, " N"], strength: float, start: Float[np.ndarray, "E K"]
) -> tuple[Float[np.ndarray, "E K"], bool]:
    """W(λ), and whether the solver says that it is there.

    Solved for V with W = S V. S = (h XᵀX / N + λ)^(−1/2), with h the mean of p (1 − p) at the start, makes the Hessian
    nearly the identity: CLIP's features are so narrow a cone that without it the steps are ten times as many.
    """
    rows = np.arange(len(y))
    p = np.exp(_log_softmax(x @ start))
    spectrum, axes = np.linalg.eigh(x.T @ x / len(y))
    scale = (np.mean(p * (1 - p)) * np.maximum(spectrum, 0) + strength) ** -0.5
    scaled, penalty = (x @ axes) * scale, (strength * scale**2)[:, None]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        v = flat.reshape(start.shape)
        log_p = _log_softmax(scaled @ v)
        value = np.sum(penalty * v**2) / 2 - log_p[rows, y].mean()
        error = np.exp(log_p)
        error[rows, y] -= 1
        return value, (scaled.T @ error / len(y) + penalty * v).ravel()

    begun = axes.T @ start / scale[:, None]
    options = {"maxiter": _MAX_ITERATIONS, "maxfun": 2 * _MAX_ITERATIONS, "ftol": 0.0, "gtol": _GRADIENT}
    found = minimize(objective, begun.ravel(), jac=True, method="L-BFGS-B", options=options)
    return axes @ (scale[:, None] * found.x.reshape(start.shape)), bool(found.success)


def _measure(
    x: Float[np.ndarray, "N E"], y: Int[np.ndarray, " N"], weights: Float[np.ndarray, "E K"]
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy."""
    log_p = _log_softmax(x @ weights)
    return float(np.mean(log_p.argmax(axis=1) == y)), float(-log_p[np.arange(len(y)), y].mean())


def _log_softmax(logits: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _checked(
    what: str, features: Float[np.ndarray, "N E"], labels: Int[np.ndarray, " N"], num_classes: int
) -> tuple[Float[np.ndarray, "N E"], Int[np.ndarray, " N"]]:
    """Unit features in float64 and their labels."""
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    if x.ndim != 2 or not len(x) or y.shape != x.shape[:1]:
        raise ValueError(f"{what} has shape {x.shape} and its labels {y.shape}: want [N, E] and [N], N at least 1.")
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise ValueError(f"{what}: row {bad[0]} is not finite ({len(bad)} of {len(x)} rows). Is the encoder damaged?")
    outside = np.flatnonzero((y < 0) | (y >= num_classes))
    if len(outside):
        raise ValueError(f"{what}: row {outside[0]} has label {y[outside[0]]}, outside the {num_classes} classes.")
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), y

"""Linearised models at all coefficients at once: their features are affine in the coefficients, so one pass serves.

At coefficients c the features of an image are f(θ₀) + Σ_t c_t Jτ_t = Σ_s c̃_s φ_s, with c̃ = (1, c), φ_0 = f(θ₀) and
φ_t = Jτ_t. A head W without a bias makes of them the logits

    z(c) = Σ_s c̃_s φ_s W / ‖Σ_s c̃_s φ_s‖,    ‖Σ_s c̃_s φ_s‖² = Σ_{s,u} c̃_s c̃_u φ_s·φ_u,

so (T+1)·K scores and (T+1)² inner products an image are all that grids, per-task coefficients, subsets of tasks and
the exact best coefficient need. Where the expansion goes through the norm, φ_0 is a unit vector and the logits are
Σ_s c̃_s φ_s W as they stand. Source: Ortiz-Jimenez, Favero and Frossard 2023, §3; the intervals are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from tajax.linearization import linear_responses
from tajax.losses import unit_scale
from tajax.metrics import Tally, tally
from tajax.types import ApplyFn, Head, Mask, Params


class AffineLogits(NamedTuple):
    """What a linearised model says of B images at any coefficients of T task vectors."""

    scores: Float[Array, "B T+1 K"]
    """φ_s W: of the features at θ₀ first, then of the response to each task vector; not normalised."""
    gram: Float[Array, "B T+1 T+1"]
    """Inner products φ_s·φ_u. Where the head does not normalise, 1 for (0, 0) and 0 else: no norm is divided by."""
    num_classes: Int[Array, ""]
    """How many of the K columns are classes."""


class Interval(NamedTuple):
    """Open intervals of the coefficient α, one an image; empty where `lower >= upper`."""

    lower: Float[Array, " B"]
    """−∞ where nothing bounds the interval from below."""
    upper: Float[Array, " B"]
    """+∞ where nothing bounds it from above."""


def affine_logits(
    apply_fn: ApplyFn,
    params0: Params,
    taus: Sequence[Params],
    head: Head,
    *inputs: Array,
    mask: Mask | None = None,
) -> AffineLogits:
    """The scores of the linearised model at θ₀ along each task vector, from one linearisation and T tangent passes.

    Args:
        apply_fn: f, from parameters and inputs to features [B, E], not normalised.
        params0: θ₀.
        taus: T trees with the paths and shapes of `params0`.
        head: W [E, K], without a bias, and its number of classes.
        *inputs: what f takes after the parameters.
        mask: leaves to expand in, as in `linearize`.

    Returns:
        Scores [B, T+1, K] and inner products [B, T+1, T+1], in the dtype of the features.

    Raises:
        ValueError: there are no vectors, or one differs from `params0` in a path or shape.

    Example:
        >>> f = lambda params, x: x * params["w"][None]
        >>> tau = {"w": jnp.array([-4.0, 3.0])}
        >>> head = Head(jnp.eye(2), jnp.int32(2))
        >>> rows = affine_logits(f, {"w": jnp.array([4.0, 0.0])}, [tau], head, jnp.ones((1, 2)))
        >>> logits_at(rows, jnp.array([0.0])).tolist(), logits_at(rows, jnp.array([1.0])).tolist()
        ([[1.0, 0.0]], [[0.0, 1.0]])
    """
    origin, responses = linear_responses(apply_fn, params0, taus, *inputs, mask=mask)
    features = jnp.concatenate([origin[None], responses]).swapaxes(0, 1)  # [B, T+1, E]
    # Full precision: bfloat16 products, the default on TPU, would move predictions.
    highest = jax.lax.Precision.HIGHEST
    gram = jnp.einsum("bse,bue->bsu", features, features, precision=highest)
    return AffineLogits(
        scores=jnp.einsum("bse,ek->bsk", features, head.weights, precision=highest),
        gram=jnp.where(head.normalizes, gram, jnp.zeros_like(gram).at[:, 0, 0].set(1)),
        num_classes=head.num_classes,
    )


def logits_at(rows: AffineLogits, coefs: Float[ArrayLike, " T"]) -> Float[Array, "B K"]:
    """Logits at one choice of coefficients: those of `head_logits` on the features f(θ₀) + Σ_t c_t Jτ_t.

    Padded classes are −inf. A row whose features vanish has zero logits.

    Raises:
        ValueError: there is not one coefficient for each task vector.
    """
    _check_coefs("coefs", coefs, rows)
    extended = jnp.concatenate([jnp.ones(1), jnp.asarray(coefs)]).astype(rows.scores.dtype)
    # Sums of a few products an entry, not matrix products, which a TPU would round.
    squares = jnp.sum(rows.gram * jnp.outer(extended, extended)[None], axis=(1, 2))
    logits = jnp.sum(rows.scores * extended[None, :, None], axis=1) * unit_scale(squares)[:, None]
    return jnp.where(_classes(rows), logits, -jnp.inf)


def tally_at(
    rows: AffineLogits, labels: Int[ArrayLike, " B"], mask: Bool[ArrayLike, " B"], coefs: Float[ArrayLike, "G T"]
) -> Tally:
    """Tallies at G choices of coefficients: leaves of shape [G].

    Raises:
        ValueError: `coefs` does not have a column for each task vector.
    """
    _check_coefs("coefs", coefs, rows, many=True)
    return jax.lax.map(lambda c: tally(logits_at(rows, c), labels, mask), coefs)


def on_line(rows: AffineLogits, base: Float[ArrayLike, " T"], direction: Float[ArrayLike, " T"]) -> AffineLogits:
    """The same images at the coefficients base + α direction, as those of one task vector: at α they are `rows` there.

    Raises:
        ValueError: `base` or `direction` does not have one number for each task vector.

    Example:
        >>> rows = AffineLogits(jnp.array([[[3.0, 1.0], [-1.0, 1.0]]]), jnp.ones((1, 2, 2)), jnp.int32(2))
        >>> on_line(rows, jnp.array([2.0]), jnp.array([0.5])).scores.tolist()
        [[[1.0, 3.0], [-0.5, 0.5]]]
    """
    _check_coefs("base", base, rows)
    _check_coefs("direction", direction, rows)
    scores, gram = jnp.asarray(rows.scores), jnp.asarray(rows.gram)
    line = jnp.stack([jnp.asarray(base, scores.dtype), jnp.asarray(direction, scores.dtype)])
    line = jnp.concatenate([jnp.array([[1], [0]], line.dtype), line], axis=1)  # [2, T+1]
    highest = jax.lax.Precision.HIGHEST
    return rows._replace(
        scores=jnp.einsum("as,bsk->bak", line, scores, precision=highest),
        gram=jnp.einsum("as,bsu,cu->bac", line, gram, line, precision=highest),
    )


def correct_intervals(rows: AffineLogits, labels: Int[ArrayLike, " B"], direction: Float[ArrayLike, " T"]) -> Interval:
    """The α at which each image is classified correctly by the model at θ₀ + α Σ_t d_t τ_t.

    Dividing by the norm changes no prediction, so class k loses to the label y where p_k + α q_k > 0, with
    p_k = (φ_0 W)_y − (φ_0 W)_k and q_k the same difference along Σ_t d_t φ_t: one half-line of α for each class, one
    interval for each image.

    Args:
        rows: from `affine_logits`.
        labels: y, in [0, num_classes).
        direction: d; ones for the sum of the task vectors.

    Returns:
        The intervals. At their ends two classes tie.

    Raises:
        ValueError: `direction` does not have one number for each task vector.

    Example:
        >>> rows = AffineLogits(jnp.array([[[3.0, 1.0], [-1.0, 1.0]]]), jnp.ones((1, 2, 2)), jnp.int32(2))
        >>> correct_intervals(rows, jnp.array([0]), jnp.ones(1)).upper  # 3 − α = 1 + α
        Array([1.], dtype=float32)
    """
    _check_coefs("direction", direction, rows)
    classes, label = jnp.arange(rows.scores.shape[-1])[None], jnp.asarray(labels)[:, None]
    origin = rows.scores[:, 0]
    slope = jnp.sum(rows.scores[:, 1:] * jnp.asarray(direction).astype(origin.dtype)[None, :, None], axis=1)

    def margins(scores: Float[Array, "B K"]) -> Float[Array, "B K"]:
        return jnp.take_along_axis(scores, label, axis=-1) - scores

    p, q = margins(origin), margins(slope)
    rival = _classes(rows) & (classes != label)
    # Where α makes no difference: of equal logits the first class is predicted.
    never = rival & (q == 0) & ((p < 0) | ((p == 0) & (classes < label)))
    never |= rival & (jnp.isnan(p) | jnp.isnan(q))
    crossing = -p / jnp.where(q == 0, 1, q)
    lower = jnp.max(jnp.where(rival & (q > 0), crossing, -jnp.inf), axis=-1)
    upper = jnp.min(jnp.where(rival & (q < 0), crossing, jnp.inf), axis=-1)
    return Interval(jnp.where(never.any(axis=-1), jnp.inf, lower), upper)


def _check_coefs(what: str, coefs: ArrayLike, rows: AffineLogits, *, many: bool = False) -> None:
    taus, shape = rows.scores.shape[1] - 1, np.shape(coefs)  # one number would broadcast over all task vectors
    if shape[-1:] != (taus,) or len(shape) != 1 + many:
        want = f"[G, {taus}], a row for each choice" if many else f"[{taus}]"
        raise ValueError(f"{what} has shape {shape}, want {want}: a number for each of the {taus} task vectors")


def _classes(rows: AffineLogits) -> Bool[Array, "1 K"]:
    return jnp.arange(rows.scores.shape[-1])[None] < rows.num_classes

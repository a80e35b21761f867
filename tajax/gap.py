"""How far a model is from its linearisation along a task vector: the kernel behaviour of fine-tuning.

Source: Jin et al. 2024, §4, who compare accuracies; the gap between the features is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from tajax import metrics, trees
from tajax.linearization import linear_responses
from tajax.task_vectors import apply_task_vector
from tajax.types import ApplyFn, Batch, Params


class GapSums(NamedTuple):
    """Sums of squares over examples, for each of A coefficients; those of several batches add up."""

    residual: Float[Array, " A"]
    """Σ_x ‖f(x; θ₀+ατ) − f(x; θ₀) − αJ(x)τ‖²."""
    movement: Float[Array, " A"]
    """Σ_x ‖f(x; θ₀+ατ) − f(x; θ₀)‖²."""
    origin: Float[Array, ""]
    """Σ_x ‖f(x; θ₀)‖²."""


def gap_sums(
    moved: Float[Array, "A B E"],
    origin: Float[Array, "B E"],
    response: Float[Array, "B E"],
    coefs: Float[Array, " A"],
    mask: Bool[ArrayLike, " B"],
) -> GapSums:
    """The sums over one batch. Rows with a False mask count for nothing.

    Args:
        moved: f(x; θ₀+ατ) for each α.
        origin: f(x; θ₀).
        response: J(x)τ.
        coefs: the α.
        mask: which of the B rows are examples.
    """
    dtype = jnp.promote_types(response.dtype, jnp.float32)
    moved, origin, response = (features.astype(dtype) for features in (moved, origin, response))
    coefs = jnp.asarray(coefs).astype(dtype)[:, None, None]
    # Zero by definition at α = 0, where two programs for the same features would leave a ratio of their roundings.
    movement = jnp.where(coefs == 0, 0, moved - origin[None])

    def total(differences: Array) -> Array:
        squares = jnp.sum(differences**2, axis=-1)
        return jnp.sum(jnp.where(jnp.broadcast_to(mask, squares.shape), squares, 0), axis=-1)

    return GapSums(total(movement - coefs * response[None]), total(movement), total(origin))


def relative_gap(sums: GapSums) -> Float[np.ndarray, " A"]:
    """√(Σ residual / Σ movement): the part of what happens to the features that the first order does not explain.

    0 where the features do not move, as at α = 0, whose limit it is.

    Example:
        >>> relative_gap(GapSums(np.array([0.0, 1.0]), np.array([0.0, 4.0]), np.array(1.0)))
        array([0. , 0.5])
    """
    residual, movement = (np.asarray(leaf, np.float64) for leaf in (sums.residual, sums.movement))
    return np.sqrt(np.divide(residual, movement, out=np.zeros_like(residual), where=movement != 0))


def relative_feature_gap(
    apply_fn: ApplyFn,
    params0: Params,
    tau: Params,
    batches: Iterable[Batch | Array],
    *,
    coefs: Sequence[float] | Float[np.ndarray, " A"],
) -> Float[np.ndarray, " A"]:
    """How much of a model's movement its linearisation misses, as a function of the coefficient.

        gap(α) = ‖f(θ₀+ατ) − f_lin(θ₀+ατ)‖ / ‖f(θ₀+ατ) − f(θ₀)‖,   f_lin(θ₀+ατ) = f(θ₀) + αJτ

    with ‖·‖² summed over all inputs. 0 for a model that is affine along τ; it vanishes like α for any smooth one, and
    fine-tuning stays in the kernel regime as far as it is small at α = 1. It can exceed 1.

    Args:
        apply_fn: f, from parameters and inputs to outputs [B, E], such as features before a head.
        params0: θ₀.
        tau: τ, a tree with the paths and shapes of `params0`.
        batches: inputs, arrays [B, ...] or batches, whose padding counts for nothing.
        coefs: the A values of α.

    Returns:
        The gap [A], float64. Each batch costs A forward passes and one linearisation.

    Raises:
        ValueError: the task vector does not fit, `coefs` is not a list of finite numbers, or there is no input.

    Example:
        >>> square = lambda params, x: x * params["w"] ** 2  # (1 + α)² − 1 = 2α + α², of which 2α is linear
        >>> params = tau = {"w": jnp.array(1.0)}
        >>> relative_feature_gap(square, params, tau, [jnp.ones((1, 1))], coefs=[0.0, 1.0, 2.0])
        array([0.        , 0.33333333, 0.5       ])
    """
    trees.check_taus([tau], params0, what="params0")
    grid = np.asarray(coefs, np.float64)
    if grid.ndim != 1 or not grid.size or not np.isfinite(grid).all():
        raise ValueError(f"coefs must be a list of finite numbers, got shape {grid.shape}: {grid.tolist()}")
    seen = ((b.inputs, b.mask) if isinstance(b, Batch) else (b, np.ones(len(b), bool)) for b in batches)
    return relative_gap(metrics.total(_sums(apply_fn, params0, tau, inputs, grid, mask) for inputs, mask in seen))


# Compiled once for a model and shapes, whatever the parameters and coefficients.
@partial(jax.jit, static_argnums=0)
def _sums(apply_fn: ApplyFn, params0: Params, tau: Params, inputs: Array, coefs: Array, mask: Array) -> GapSums:
    origin, responses = linear_responses(apply_fn, params0, [tau], inputs)
    moved = jax.lax.map(lambda alpha: apply_fn(apply_task_vector(params0, tau, alpha), inputs), coefs)
    return gap_sums(moved, origin, responses[0], coefs, mask)

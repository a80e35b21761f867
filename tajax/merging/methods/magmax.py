"""MagMax: entry by entry the task that changed most."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import Params


def magmax(pretrained: Params, taus: Sequence[Params], *, scaling_coef: ArrayLike = 1.0) -> Params:
    """The entries of largest magnitude, θ₀ + λ τ_{t*} with t* = argmax_t abs(τ_t), entry by entry.

    Where two are largest with opposite signs θ₀ stays, so that the order of tasks does not matter. The paper leaves
    that open; its code takes the last of them.

    Args:
        pretrained: θ₀.
        taus: the task vectors, trees with the paths and shapes of `pretrained`.
        scaling_coef: λ, chosen on validation data; 0.5 in the paper.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: there are no vectors, one differs from `pretrained`, or `scaling_coef` is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Marczak et al. 2024, "MagMax: Leveraging Model Merging for Seamless Continual Learning", §4.

    Example:
        >>> taus = [{"w": jnp.array([4.0, 2.0, 1.0])}, {"w": jnp.array([2.0, -3.0, -1.0])}]
        >>> magmax({"w": jnp.zeros(3)}, taus)
        {'w': Array([ 4., -3.,  0.], dtype=float32)}
    """
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")

    def largest(*entries: ArrayLike) -> Array:
        stacked = jnp.stack([jnp.asarray(entry) for entry in entries])
        highest, lowest = jnp.max(stacked, axis=0), jnp.min(stacked, axis=0)
        # Of one sign the larger of the two moves is the one away from zero.
        either = jnp.where(highest > -lowest, highest, lowest)
        return jnp.where(highest == -lowest, 0, either)

    return apply_task_vector(pretrained, trees.map_leaves(largest, *taus), scaling_coef)

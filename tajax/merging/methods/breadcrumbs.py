"""Model Breadcrumbs: drop the outliers and the small changes of each tensor, then add."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.matrices import map_tensors
from tajax.merging.order import kth_largest
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar, combine
from tajax.types import Params


def breadcrumbs(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    stacked: str | None = STACKED,
    smallest: float = 0.85,
    largest: float = 0.007,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """The sum of what is neither large nor small, θ₀ + λ Σ_t m_t ⊙ τ_t, with one mask m_t a tensor.

    Of the n entries of a tensor the ⌊`smallest` · n⌋ of least magnitude are dropped and the ⌊`largest` · n⌋ of most;
    entries that tie with one that stays do, too. A tensor is a leaf, or one layer of a leaf that stacks them (the
    paper ranks in each layer, its code in each row of a matrix).

    Args:
        pretrained: θ₀.
        taus: the task vectors, trees with the paths and shapes of `pretrained`.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        smallest: share of small entries to drop, the paper's β, in [0, 1). Python numbers, known when compiling.
        largest: share of large entries to drop, one minus the paper's γ, in [0, 1). Both together are below 1.
        scaling_coef: λ, chosen on validation data.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: the shares are out of range, there are no vectors, one differs from `pretrained`, or `scaling_coef`
            is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Davari and Belilovsky 2023, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", §3.

    Example:
        >>> tau = {"w": jnp.array([9.0, -3.0, 0.1, 2.0])}
        >>> breadcrumbs({"w": jnp.zeros(4)}, [tau], smallest=0.25, largest=0.25)
        {'w': Array([ 0., -3.,  0.,  2.], dtype=float32)}
    """
    trees.check_taus(taus, pretrained)
    check_breadcrumbs(len(taus), smallest=smallest, largest=largest)
    check_scalar(scaling_coef, "scaling_coef")

    def middle(alone: Array) -> Array:
        (tensor,) = alone
        magnitudes = jnp.abs(tensor)
        low = kth_largest([magnitudes], tensor.size - math.floor(smallest * tensor.size))
        high = kth_largest([magnitudes], 1 + math.floor(largest * tensor.size))
        return jnp.where((magnitudes >= low) & (magnitudes <= high), tensor, 0)

    kept = [map_tensors(middle, [tau], stacked=stacked) for tau in taus]
    return apply_task_vector(pretrained, combine(kept), scaling_coef)


def check_breadcrumbs(count: int, *, smallest: float, largest: float) -> None:
    """Raises unless both are shares that leave something.

    Raises:
        ValueError: one is not in [0, 1), or both together are not.
    """
    if not (smallest >= 0 and largest >= 0 and smallest + largest < 1):
        raise ValueError(
            f"smallest and largest are shares of entries to drop, 0 or above and together below 1; got {smallest} and "
            f"{largest}"
        )

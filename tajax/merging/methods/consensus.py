"""Consensus merging: the sum of the task vectors, where several tasks want it."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.task_vectors import apply_task_vector, check_scalar, combine
from tajax.types import Params


def consensus(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    tasks: int = 2,
    threshold: float = 0.4,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """The sum of the task vectors where at least k tasks want it, θ₀ + λ τ ⊙ 1(Σ_t m_t ≥ k) with τ = Σ_t τ_t.

    Task t wants an entry if the sum is nearer to its own than nothing is, m_t = 1(abs(τ_t) > ϑ abs(τ − τ_t)). Entries
    that no task wants, or one alone, are dropped.

    Args:
        pretrained: θ₀.
        taus: the task vectors, trees with the paths and shapes of `pretrained`.
        tasks: k, from 0, where every entry stays, to the number of tasks. A Python number, known when compiling.
        threshold: ϑ, above 0: the larger, the fewer entries a task wants. The paper chooses it of 0.2, 0.3, …, 0.6 for
            each task by its accuracy on validation data; here one serves all.
        scaling_coef: λ, chosen on validation data.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `tasks` or `threshold` is out of range, there are no vectors, one differs from `pretrained`, or
            `scaling_coef` is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Wang et al. 2024, "Localizing Task Information for Improved Model Merging and Compression", §4 and §5.2.

    Example:
        >>> taus = [{"w": jnp.array([4.0, 2.0, 1.0])}, {"w": jnp.array([2.0, -3.0, 0.0])}]
        >>> consensus({"w": jnp.zeros(3)}, taus)
        {'w': Array([ 6., -1.,  0.], dtype=float32)}
    """
    trees.check_taus(taus, pretrained)
    check_consensus(len(taus), tasks=tasks, threshold=threshold)
    check_scalar(scaling_coef, "scaling_coef")
    total = combine(taus)
    masks = [wanted(tau, total, threshold) for tau in taus]

    def agreed(entry: Array, *votes: Array) -> Array:
        return jnp.where(sum(vote.astype(jnp.int32) for vote in votes) >= tasks, entry, 0)

    return apply_task_vector(pretrained, trees.map_leaves(agreed, total, *masks), scaling_coef)


def wanted(tau: Params, total: Params, threshold: float) -> Params:
    """The TALL mask of a task, 1(abs(τ_t) > ϑ abs(τ − τ_t)): a tree of bool.

    Example:
        >>> wanted({"w": jnp.array([4.0, 1.0])}, {"w": jnp.array([6.0, 9.0])}, 0.4)
        {'w': Array([ True, False], dtype=bool)}
    """
    return trees.map_leaves(lambda own, all_: jnp.abs(own) > threshold * jnp.abs(all_ - own), tau, total)


def check_consensus(count: int, *, tasks: int, threshold: float) -> None:
    """Raises unless as many tasks can want an entry, of `count`, and the threshold is positive.

    Raises:
        ValueError: `tasks` is negative or more than there are, or `threshold` is not above 0.
    """
    if not 0 <= tasks <= count:
        raise ValueError(f"tasks is how many must want an entry, from 0 to the {count} there are; got {tasks}")
    check_threshold(threshold)


def check_threshold(threshold: float) -> None:
    """Raises `ValueError` unless it is above 0."""
    if not threshold > 0:
        raise ValueError(f"threshold is a number above 0; got {threshold}")

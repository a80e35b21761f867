"""Localize-and-Stitch without data: the few largest entries of each task vector, overlaps averaged."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from tajax import trees
from tajax.merging.methods.ties import keep_largest
from tajax.task_vectors import apply_task_vector
from tajax.types import Params


def localize_and_stitch(pretrained: Params, taus: Sequence[Params], *, density: float = 0.1) -> Params:
    """θ₀ + Σ_t m_t ⊙ τ_t / Σ_t m_t, where m_t marks the largest entries of τ_t by magnitude; θ₀ where none is marked.

    Of several marks on an entry the mean is taken, without an election as in TIES. This is the paper's form without
    data; with data it learns each m_t so that the task survives in it (`localize_few_shot`).

    Args:
        pretrained: θ₀.
        taus: the task vectors, trees with the paths and shapes of `pretrained`.
        density: k, the share of the entries of each vector that m_t marks, in (0, 1], ranked over all leaves together.
            A Python number, known when compiling.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `density` is out of range, there are no vectors, or one differs from `pretrained`.

    Source:
        He et al. 2024, "Localize-and-Stitch: Efficient Model Merging via Sparse Task Arithmetic", §3, the dataless
        variant. That k is a share of the whole vector, and not of each tensor, is our reading.

    Example:
        >>> taus = [{"w": jnp.array([4.0, 2.0, 0.1, 1.0])}, {"w": jnp.array([2.0, -1.0, 0.1, 3.0])}]
        >>> localize_and_stitch({"w": jnp.zeros(4)}, taus, density=0.5)
        {'w': Array([3., 2., 0., 3.], dtype=float32)}
    """
    trees.check_taus(taus, pretrained)
    return apply_task_vector(pretrained, stitch([keep_largest(tau, density) for tau in taus]))


def stitch(taus: Sequence[Params]) -> Params:
    """Entry by entry the mean of those that are not zero, and zero where all are.

    Example:
        >>> stitch([{"w": jnp.array([4.0, 2.0, 0.0])}, {"w": jnp.array([2.0, 0.0, 0.0])}])
        {'w': Array([3., 2., 0.], dtype=float32)}
    """

    def stitched(*entries: Array) -> Array:
        stacked = jnp.stack(entries)
        return jnp.sum(stacked, axis=0) / jnp.maximum(jnp.sum(stacked != 0, axis=0), 1)

    return trees.map_leaves(stitched, *taus)

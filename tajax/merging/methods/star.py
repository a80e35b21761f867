"""STAR: spectral truncation and rescale."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.matrices import map_matrices
from tajax.merging.svd import add_up, svd
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import Params


def star(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    share: float = 0.4,
    stacked: str | None = STACKED,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """The mean of task vectors whose matrices keep the start of their spectra, as large as the whole, θ₀ + λ mean{τ̂_t}.

    Of a matrix D = Σ σ_i u_i v_iᵀ the fewest triplets stay that have the share η of its nuclear norm:

        D̂ = (Σ_i σ_i / Σ_{i ≤ r} σ_i) Σ_{i ≤ r} σ_i u_i v_iᵀ,   r = min{r : Σ_{i ≤ r} σ_i ≥ η Σ_i σ_i}

    What is no matrix is averaged: the paper merges matrices alone, the products of LoRA.

    Args:
        pretrained: θ₀.
        taus: the task vectors, trees with the paths and shapes of `pretrained`.
        share: η in (0, 1], 1 for the plain mean. A Python number, known when compiling.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        scaling_coef: λ, 1 in the paper.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `share` is out of range, there are no vectors, one differs from `pretrained`, or `scaling_coef` is
            several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Lee et al. 2025, "STAR: Spectral Truncation and Rescale for Model Merging", §3.

    Example:
        >>> tau = {"kernel": jnp.diag(jnp.array([6.0, 2.0, 1.0, 1.0]))}
        >>> star({"kernel": jnp.zeros((4, 4))}, [tau], share=0.7)["kernel"].diagonal().round(4)
        Array([7.5, 2.5, 0. , 0. ], dtype=float32)
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is the share of the nuclear norm to keep, in (0, 1]; got {share}")
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")

    def matrix(kernels: Array) -> Array:  # [T, in, out]
        left, values, right = svd(kernels)
        whole = jnp.sum(values, axis=-1, keepdims=True)
        kept = jnp.where(jnp.cumsum(values, axis=-1) - values < share * whole, values, 0)
        rescaled = kept * whole / jnp.maximum(jnp.sum(kept, axis=-1, keepdims=True), jnp.finfo(values.dtype).tiny)
        return add_up(left, rescaled, right) / len(taus)

    return apply_task_vector(
        pretrained, map_matrices(matrix, partial(jnp.mean, axis=0), taus, stacked=stacked), scaling_coef
    )

"""CART: the mean model, and low-rank parts of what each task differs from it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.matrices import map_matrices
from tajax.merging.svd import Algorithm, add_up, check_algorithm, leading
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import Params


def cart(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    rank: float = 0.08,
    svd: Algorithm = "exact",
    fused: bool = False,
    stacked: str | None = STACKED,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """The mean model moved along low-rank task vectors that begin at it, θ̄ + λ Σ_t [θ_t − θ̄]_k for each matrix.

    θ̄ is the mean of the models θ_t = θ₀ + τ_t, and [·]_k the nearest matrix of rank k. Whatever λ is, the mean itself
    stays: the model is θ₀ + τ̄ + λ Σ_t [τ_t − τ̄]_k, which is no multiple of one vector. With all ranks it is the mean,
    because the differences sum to zero; so it is for what is no matrix.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        rank: k / min(in, out), in (0, 1]; k is rounded, and at least 1. A Python number, known when compiling.
        svd: how the low-rank matrices are found: `"exact"`, or `"randomized"`, much faster on large matrices and
            nearly as good; `tajax.merging.svd.leading` says how nearly. A string, known when compiling.
        fused: whether query, key and value of one module are one matrix, as open_clip keeps them. By default they are
            three, as Hugging Face and we keep them.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        scaling_coef: λ, chosen on validation data.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `rank` or `svd` is out of range or no such choice, there are no vectors, one differs from
            `pretrained`, or `scaling_coef` is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Choi et al. 2024, "Revisiting Weight Averaging for Model Merging", §4.

    Example:
        >>> taus = [{"kernel": jnp.diag(jnp.array(d))} for d in ([4.0, 2.0], [0.0, 1.0])]
        >>> cart({"kernel": jnp.zeros((2, 2))}, taus, rank=0.5)["kernel"].diagonal().round(4)
        Array([2. , 1.5], dtype=float32)
    """
    if not 0 < rank <= 1:
        raise ValueError(f"rank is the share of singular values to keep, in (0, 1]; got {rank}")
    check_algorithm(svd)
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")

    def matrix(kernels: Array) -> Array:  # [T, in, out]
        mean = jnp.mean(kernels, axis=0)
        left, values, right = leading(kernels - mean[None], max(1, round(rank * min(mean.shape))), svd)
        return mean + jnp.asarray(scaling_coef, mean.dtype) * add_up(left, values, right)

    return apply_task_vector(
        pretrained, map_matrices(matrix, partial(jnp.mean, axis=0), taus, stacked=stacked, fused=fused)
    )

"""Iso-C: the sum of the task vectors with an isotropic spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.matrices import TEXT_PROJECTION, map_matrices
from tajax.merging.svd import compose, nonzero, svd
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import Params


def iso_c(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    fused: bool = False,
    exclude: str = TEXT_PROJECTION,
    stacked: str | None = STACKED,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """The sum of the task vectors with all singular values set to their mean, θ₀ + λ σ̄ U Vᵀ for each matrix.

    U Σ Vᵀ = Σ_t τ_t, and σ̄ is the mean of its values. What is no matrix is averaged over the tasks.

    The vectors of LoRA sum to matrices of low rank. The mean is then that of the values that are not zero, and so are
    the directions that get it: the others are no vectors of the tasks, but whatever the algorithm filled up with. The
    paper's matrices have full rank, where that is the same.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        fused: whether query, key and value of one module are one matrix, as in the original code, which works on
            open_clip's models. By default they are three, as in fusion_bench's runs on those of Hugging Face.
        exclude: pattern of paths whose matrices are averaged too: by default the text tower's projection, as in the
            original code.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        scaling_coef: λ, chosen on validation data: around 1.5 for eight tasks.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `exclude` is no pattern, there are no vectors, one differs from `pretrained`, or `scaling_coef` is
            several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Marczak et al. 2025, "No Task Left Behind", §4.1, Algorithm 1.

    Example:
        >>> taus = [{"kernel": jnp.diag(jnp.array(d))} for d in ([3.0, 1.0], [2.0, 0.0])]
        >>> iso_c({"kernel": jnp.zeros((2, 2))}, taus)["kernel"].diagonal().round(4)
        Array([3., 3.], dtype=float32)
    """
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")

    def matrix(kernels: Array) -> Array:  # [T, in, out]
        left, values, right = svd(jnp.sum(kernels, axis=0))
        return compose(left, isotropic(values, kernels.shape), right)

    return apply_task_vector(
        pretrained,
        map_matrices(matrix, partial(jnp.mean, axis=0), taus, stacked=stacked, fused=fused, exclude=exclude),
        scaling_coef,
    )


def isotropic(values: Array, shape: tuple[int, ...]) -> Array:
    """The mean of the singular values [r] that are not zero in the place of each of them, and zeros elsewhere.

    Example:
        >>> isotropic(jnp.array([4.0, 2.0, 0.0]), (3, 3))
        Array([3., 3., 0.], dtype=float32)
    """
    there = nonzero(values, shape)
    mean = jnp.sum(jnp.where(there, values, 0)) / jnp.maximum(jnp.sum(there), 1)
    return jnp.where(there, mean, 0)

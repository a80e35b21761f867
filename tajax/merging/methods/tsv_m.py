"""TSV-M: the leading singular vectors of all tasks, made orthogonal to one another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.matrices import TEXT_PROJECTION, map_matrices
from tajax.merging.svd import Algorithm, check_algorithm, compose, leading, nonzero, orthogonal_factor
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import Params


def tsv_m(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    svd: Algorithm = "exact",
    fused: bool = False,
    exclude: str = TEXT_PROJECTION,
    stacked: str | None = STACKED,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """The sum of low-rank matrices in directions that do not interfere, θ₀ + λ U⊥ Σ V⊥ᵀ for each matrix.

    U, Σ and V have, side by side, the leading r = ⌊min(in, out) / T⌋ singular triplets of each task's matrix. U⊥ and V⊥
    are the nearest matrices with orthonormal columns (Procrustes). What is no matrix is averaged.

    Tasks are more than rows or columns: the original code then keeps nothing of a matrix; here each keeps one triplet.
    Triplets of value zero, which the vectors of LoRA have, are left out of U and V, whatever their vectors are.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        svd: how the triplets of each task are found: `"exact"`, or `"randomized"`, much faster on large matrices and
            nearly as good; `tajax.merging.svd.leading` says how nearly. A string, known when compiling.
        fused: whether query, key and value of one module are one matrix, as in the original code, which works on
            open_clip's models. By default they are three, as in fusion_bench's runs on those of Hugging Face.
        exclude: pattern of paths whose matrices are averaged too: by default the text tower's projection, as in the
            original code. The image tower's is a matrix like any other.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        scaling_coef: λ, 1 in the paper.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `svd` or `exclude` is no such choice or pattern, there are no vectors, one differs from
            `pretrained`, or `scaling_coef` is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Gargiulo et al. 2025, "Task Singular Vectors: Reducing Task Interference in Model Merging", §4.2, Algorithm 1.

    Example:
        >>> taus = [{"kernel": jnp.diag(jnp.array(d))} for d in ([3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0])]
        >>> tsv_m({"kernel": jnp.zeros((4, 4))}, taus)["kernel"].diagonal().round(4)
        Array([3., 1., 1., 2.], dtype=float32)
    """
    check_algorithm(svd)
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")

    def matrix(kernels: Array) -> Array:  # [T, in, out]
        tasks, rows, columns = kernels.shape
        left, values, right = leading(kernels, max(1, min(rows, columns) // tasks), svd)
        there = nonzero(values, kernels.shape)
        inputs = jnp.moveaxis(left * there[:, None, :], 0, 1).reshape(rows, -1)
        outputs = (right * there[:, :, None]).reshape(-1, columns)
        return compose(orthogonal_factor(inputs), values.reshape(-1), orthogonal_factor(outputs))

    return apply_task_vector(
        pretrained,
        map_matrices(matrix, partial(jnp.mean, axis=0), taus, stacked=stacked, fused=fused, exclude=exclude),
        scaling_coef,
    )

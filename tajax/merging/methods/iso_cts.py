"""Iso-CTS: common and task-specific directions with an isotropic spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.matrices import TEXT_PROJECTION, map_matrices
from tajax.merging.methods.iso_c import isotropic
from tajax.merging.svd import Algorithm, check_algorithm, compose, leading, orthogonal_factor
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import Params


def iso_cts(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    common: float = 0.8,
    svd: Algorithm = "exact",
    fused: bool = False,
    exclude: str = TEXT_PROJECTION,
    stacked: str | None = STACKED,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """Directions that the tasks share and those of each alone, all of one length, θ₀ + λ σ̄ U⊥ V⊥ᵀ for each matrix.

    U and V have the leading k singular vectors of the sum Σ_t τ_t and, of each task, the s leading ones of what is left
    of τ_t without the outputs of those k, τ_t (1 − V_k V_kᵀ) of a kernel [in, out]: k + sT = min(in, out) in all.
    U⊥ and V⊥ are the nearest matrices with orthonormal columns, and σ̄ is the mean of the k + sT values. What is no
    matrix is averaged over the tasks.

    As in `iso_c`, directions whose value is zero beside the largest of the k + sT are left out, and out of the mean.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        common: about k / min(in, out), in [0, 1]: s is (min(in, out) − ⌊common · min(in, out)⌋) / T, rounded but for
            what is there, and k is what remains. A Python number, known when compiling.
        svd: how the directions of each task are found: `"exact"`, or `"randomized"`, much faster on large matrices and
            nearly as good; `tajax.merging.svd.leading` says how nearly. Those of the sum are exact. A string, known
            when compiling.
        fused: whether query, key and value of one module are one matrix, as in the original code, which works on
            open_clip's models. By default they are three, as in fusion_bench's runs on those of Hugging Face.
        exclude: pattern of paths whose matrices are averaged too: by default the text tower's projection, as in the
            original code.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        scaling_coef: λ, chosen on validation data: around 1.5 for eight tasks.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `common`, `svd` or `exclude` is out of range, no such choice or no pattern, there are no vectors,
            one differs from `pretrained`, or `scaling_coef` is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Marczak et al. 2025, "No Task Left Behind", §4.2, Algorithm 2.

    Example:
        >>> taus = [{"kernel": jnp.diag(jnp.array(d))} for d in ([3.0, 1.0, 0.0], [3.0, 0.0, 2.0])]
        >>> iso_cts({"kernel": jnp.zeros((3, 3))}, taus, common=0.4)["kernel"].diagonal().round(4)
        Array([3., 3., 3.], dtype=float32)
    """
    if not 0 <= common <= 1:
        raise ValueError(f"common is the share of directions that the tasks have in common, in [0, 1]; got {common}")
    check_algorithm(svd)
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")

    def matrix(kernels: Array) -> Array:  # [T, in, out]
        tasks, rows, columns = kernels.shape
        size = min(rows, columns)
        own = min(round((size - int(common * size)) / tasks), size // tasks)
        shared = leading(jnp.sum(kernels, axis=0), size - own * tasks)
        flat = kernels.reshape(-1, columns)
        rest = flat - (flat @ shared.right.T) @ shared.right
        alone = leading(rest.reshape(kernels.shape), own, svd)
        values = isotropic(jnp.concatenate([shared.values, alone.values.reshape(-1)]), kernels.shape)
        inputs = jnp.concatenate([shared.left, jnp.moveaxis(alone.left, 0, 1).reshape(rows, -1)], axis=1)
        outputs = jnp.concatenate([shared.right, alone.right.reshape(-1, columns)])
        there = values > 0
        return compose(orthogonal_factor(inputs * there[None, :]), values, orthogonal_factor(outputs * there[:, None]))

    return apply_task_vector(
        pretrained,
        map_matrices(matrix, partial(jnp.mean, axis=0), taus, stacked=stacked, fused=fused, exclude=exclude),
        scaling_coef,
    )

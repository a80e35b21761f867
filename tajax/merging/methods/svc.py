"""SVC: another method, whose singular values are calibrated to what each task has in the same direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.matrices import map_matrices
from tajax.merging.svd import compose, svd
from tajax.merging.wrapped import Wrapped, around_zero, check_wrapped
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar, task_vector
from tajax.types import MergeFn, Params


def svc(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    merge: Wrapped | MergeFn = "task_arithmetic",
    floor: float = 0.0,
    fused: bool = False,
    stacked: str | None = STACKED,
    scaling_coef: ArrayLike = 1.0,
    **options: Any,  # those of `merge`
) -> Params:
    """Another method's vector without what it counts several times, θ₀ + λ Σ_r γ_r σ_r u_r v_rᵀ for each matrix.

    Σ_r σ_r u_r v_rᵀ is the SVD of D, a matrix [in, out] of what `merge` makes of the tasks' matrices D_t. Where many
    tasks agree on an output v_r, a sum has it too often. The share of task t in it is s_rt, and γ_r makes them 1 on
    average:

        γ_r = T / Σ_t max(α, s_rt),   s_rt = ⟨D v_r, D_t v_r⟩ / ‖D_t v_r‖²

    A task that has nothing in a direction, D_t v_r = 0 but for rounding, counts as α. What is no matrix stays as
    `merge` has it.

    Where singular values of D are equal, its singular vectors are not determined, and no more is γ. `iso_c` and
    `iso_cts` make all of them equal: their calibrated models depend on what vectors the platform's SVD gives, here as
    in the authors' code. In large matrices that is about one factor for all directions.

    `merge` has its λ at 1: but where α decides, γ takes any factor out again. The λ of this method comes after. The
    authors' code has another γ, 1/max(α, mean_t s_rt), or 1 where some s_rt is negative; this is the paper's.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        merge: the method, by its name, or any function with the signature of one. Of a function, what it changes in
            `pretrained` is calibrated; bind what it needs, such as a PRNG key, or give it as `options`.
        floor: α, the least that a task counts; 0 for the paper's, 1/T, and 1 for `"tsv_m"`, whose tasks do not share
            directions. A Python number, known when compiling.
        fused: whether query, key and value of one module are one matrix, as in the authors' code, which works on
            open_clip's models; for the method of that name too. By default they are three.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        scaling_coef: λ, 1 in the paper.
        **options: those of `merge`.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `merge` is no such name, `floor` is negative, there are no vectors, one differs from `pretrained`,
            or `scaling_coef` is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Li et al. 2026, "When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging", §4.

    Example:
        >>> taus = [{"kernel": jnp.diag(jnp.array(d))} for d in ([3.0, 1.0], [3.0, 2.0])]
        >>> svc({"kernel": jnp.zeros((2, 2))}, taus)["kernel"].diagonal().round(4)
        Array([3.    , 1.3333], dtype=float32)
    """
    check_wrapped(merge)
    if not floor >= 0:
        raise ValueError(f"floor is the least that a task counts, α, not negative, 0 for 1/T; got {floor}")
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")
    least = floor or (1.0 if merge == "tsv_m" else 1 / len(taus))

    def matrix(kernels: Array) -> Array:  # [1 + T, in, out], the merged one first
        merged, each = kernels[0], kernels[1:]
        left, values, right = svd(merged)
        ours = merged @ right.T  # [in, R]
        theirs = (each.reshape(-1, merged.shape[1]) @ right.T).reshape(*each.shape[:2], -1)  # [T, in, R]
        square = jnp.sum(theirs**2, axis=1)  # [T, R]
        there = square > (max(merged.shape) * jnp.finfo(values.dtype).eps) ** 2 * jnp.sum(square, axis=1, keepdims=True)
        shares = jnp.where(there, jnp.sum(ours[None] * theirs, axis=1) / jnp.where(there, square, 1), 0)
        return compose(left, values * len(taus) / jnp.sum(jnp.maximum(shares, least), axis=0), right)

    if isinstance(merge, str):
        merged = around_zero(merge, taus, {"stacked": stacked, "fused": fused}, options)
    else:
        wide = jax.tree.map(_widen, pretrained)
        merged = task_vector(wide, merge(wide, taus, **options))
    calibrated = map_matrices(matrix, lambda leaf: leaf[0], [merged, *taus], stacked=stacked, fused=fused)
    return apply_task_vector(pretrained, calibrated, scaling_coef)


def _widen(leaf: ArrayLike) -> ArrayLike:
    return jnp.asarray(leaf, jnp.result_type(leaf, jnp.float32)) if trees.is_float(leaf) else leaf

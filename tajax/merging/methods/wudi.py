"""WUDI: the vector that disturbs each task least on its own inputs, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.matrices import map_matrices
from tajax.merging.svd import nonzero, svd
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import Params

Weights = Literal["norm", "one"]


def wudi(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    weights: Weights = "norm",
    ridge: float = 1.0,
    fused: bool = False,
    stacked: str | None = STACKED,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """The vector that disturbs each task least on its own inputs, and stays near the sum where that says little.

    θ₀ + λ argmin_D Σ_t w_t ‖D_tᵀ(D − D_t)‖² + ρ ‖D − S‖² for each matrix, where S = Σ_t D_t. D_t is the kernel
    [in, out] of τ_t: its columns are combinations of the inputs that the task's training saw, and stand in for them.
    There is one minimum,

        D = S + (G + ρ)⁻¹ Σ_t w_t D_t D_tᵀ(D_t − S),   G = Σ_t w_t D_t D_tᵀ,   ρ = ridge · tr G / in

    found from one SVD of the √w_t D_t side by side, without the condition of their squares. What is no matrix is
    averaged, as in fusion_bench; the authors' code leaves all but attention and MLP where θ₀ has it.

    ρ is ours. The authors take 300 steps of Adam from S, which do not reach the minimum of their loss, and that is as
    well: as ρ vanishes D becomes the shortest such minimum, several times as long as S. In directions in which G is
    small it is no average of the D_t, because the errors of one task are divided by what little others have there. It
    is worst where equations are as many as unknowns, T · out = in, as for four tasks in the second layer of an MLP that
    widens fourfold.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        weights: w_t: `"norm"`, 1/‖D_t‖², for WUDI, or `"one"` for ACTMat, in which long vectors count for more. A
            string, known when compiling.
        ridge: what ρ is, in units of the mean eigenvalue of G. 0 for the least-norm minimum, and the larger the nearer
            to the sum. A Python number, known when compiling.
        fused: whether query, key and value of one module are one matrix, as in the authors' code, which works on
            open_clip's models. By default they are three, as in fusion_bench's runs on those of Hugging Face.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        scaling_coef: λ, 1 in the papers.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `weights` is neither, `ridge` is negative or not finite, there are no vectors, one differs from
            `pretrained`, or `scaling_coef` is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Cheng et al. 2025, "Whoever Started the Interference Should End It", §4; Hameed et al. 2026, "Model Merging via
        Data-Free Covariance Estimation", §3.

    Example:
        >>> taus = [{"kernel": jnp.diag(jnp.array(d))} for d in ([3.0, 0.0], [1.0, 2.0])]
        >>> wudi({"kernel": jnp.zeros((2, 2))}, taus, ridge=0.4)["kernel"].diagonal().round(4)
        Array([3., 2.], dtype=float32)
        >>> wudi({"kernel": jnp.zeros((2, 2))}, taus, ridge=0)["kernel"].diagonal().round(4)
        Array([2.6667, 2.    ], dtype=float32)
        >>> wudi({"kernel": jnp.zeros((2, 2))}, taus, ridge=0, weights="one")["kernel"].diagonal().round(4)
        Array([2.8, 2. ], dtype=float32)
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights is {weights!r}, want one of {', '.join(map(repr, get_args(Weights)))}")
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge is how strongly the sum of the vectors holds, a finite number, 0 or more; got {ridge}")
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")

    def matrix(kernels: Array) -> Array:  # [T, in, out]
        tasks, rows, columns = kernels.shape
        total = jnp.sum(kernels, axis=0)
        maps = jnp.swapaxes(kernels, 1, 2)
        if weights == "norm":
            lengths = jnp.linalg.norm(maps, axis=(1, 2), keepdims=True)
            maps = maps / jnp.where(lengths > 0, lengths, 1)
        left, values, right = svd(maps.reshape(-1, rows))

        def add(found: Array, task: tuple[Array, Array, Array]) -> tuple[Array, None]:
            left, mapped, kernel = task
            return found + left.T @ (mapped @ (kernel - total)), None

        nothing = jnp.zeros((len(values), columns), values.dtype)
        disturbed, _ = jax.lax.scan(add, nothing, (left.reshape(tasks, columns, -1), maps, kernels))
        there = nonzero(values, kernels.shape)
        squares = values**2 + ridge * jnp.sum(values**2) / rows
        return total + right.T @ (disturbed * jnp.where(there, values / jnp.where(there, squares, 1), 0)[:, None])

    return apply_task_vector(
        pretrained, map_matrices(matrix, partial(jnp.mean, axis=0), taus, stacked=stacked, fused=fused), scaling_coef
    )

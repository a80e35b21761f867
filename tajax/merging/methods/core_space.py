"""Core Space: another method, applied to the small matrices that the tasks' low-rank ones are in bases they share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from tajax import trees
from tajax.merging.matrices import each_layer, in_layers, is_matrix, stack
from tajax.merging.svd import leading, nonzero, singular_values, svd
from tajax.merging.wrapped import Wrapped, around_zero, check_wrapped
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import MergeFn, Params

LOST = 1e-3
"""The share of a matrix's Frobenius norm that bases may leave out: more is refused."""

ROUNDINGS = 1000
"""What is shorter than so many roundings of a matrix is not counted to its rank: θ₀ + τ was rounded, and taken away."""


def core_space(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    merge: Wrapped | MergeFn = "ties",
    rank: int = 0,
    stacked: str | None = STACKED,
    scaling_coef: ArrayLike = 1.0,
    **options: Any,  # those of `merge`
) -> Params:
    """Another method on the cores of low-rank matrices, θ₀ + λ U merge(M_1, …, M_T) Vᵀ for each matrix.

    τ_t = A_t B_t is a task's matrix [in, out], of rank r at most. U has the left singular vectors of A_1, …, A_T side
    by side, [in, K] with K = min(T r, in), and V those of the B_tᵀ, [out, K'] with K' = min(T r, out). Nothing of a
    task lies outside of them:

        M_t = Uᵀ τ_t V,   τ_t = U M_t Vᵀ

    `merge` sees a tree with M_t [K, K'] in place of each matrix, and what is no matrix as it is.

    Factors are those of the SVD, A_t = P √Σ and B_t = √Σ Qᵀ. Singular vectors of A_1, …, A_T are then the eigenvectors
    of Σ_t (τ_t τ_tᵀ)^½, the leading directions of all tasks first. A method that sees entries, such as `ties`, depends
    on that basis. The authors' code has the factors that were trained, whose lengths are other ones: U and V span the
    same there, unless a factor has directions that the product has not, but are turned within it, and `ties` keeps
    other entries. It also keeps a share of each matrix, where ours ranks all leaves together. Where singular values of
    all factors are equal, the basis is what the platform's SVD gives, there and here.

    A method that sees matrices through products alone does not see the basis: `task_arithmetic`, `weight_average`,
    `star`, `tsv_m` and `iso_c` make the model that they make without it. Of `iso_c` that is so because ours takes the
    mean of the singular values that are not zero. The paper's is of all min(in, out) of them, and in the cores of T r,
    where it is larger. `iso_cts` shares out K directions in place of min(in, out), and the ridge of `wudi` is of K
    rows, so that those two differ.

    Where T r is no less than a side, its basis is complete, and the method works on what is the whole side, turned.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        merge: the method, by its name, or any function with the signature of one whose model is θ₀ + λg with one g: it
            gets zeros for θ₀. Bind what else it needs, or give it as `options`.
        rank: r, that of the adapters, or of each matrix its shorter side if that is less. 0 takes of each leaf the
            largest rank of a task, and of a layer where they are stacked; what is below 1000 roundings of a matrix is
            not counted. That is read from the vectors' values, which are not known under `jit`. A larger rank than the
            vectors' has cores with zeros around them, which a method that keeps a share of the entries counts. A Python
            number, known when compiling.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        scaling_coef: λ, after `merge`, which has its own at 1.
        **options: those of `merge`; not `fused`, because each of query, key and value has a basis of its own.

    Returns:
        A tree with the dtypes of `pretrained`. Under `jit` a matrix of which `rank` loses more than is refused
        otherwise is NaN.

    Raises:
        ValueError: `merge` is no such name, `rank` is negative, 0 under `jit`, or so small that more than a thousandth
            of a matrix's norm is lost, `fused` is given, there are no vectors, one differs from `pretrained`, or
            `scaling_coef` is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Panariello et al. 2025, "Accurate and Efficient Low-Rank Model Merging in Core Space", §4.

    Example:
        >>> taus = [{"kernel": jnp.outer(jnp.array(a), jnp.ones(4))} for a in ([3.0, 0.0, 0.0], [1.0, 2.0, 0.0])]
        >>> core_space({"kernel": jnp.zeros((3, 4))}, taus, merge="task_arithmetic")["kernel"][:, 0].round(4) + 0.0
        Array([4., 2., 0.], dtype=float32)
    """
    check_wrapped(merge)
    if rank < 0:
        raise ValueError(f"rank is that of the tasks' matrices, 1 or more, or 0, which finds it; got {rank}")
    if options.get("fused"):
        raise ValueError(
            "fused makes one matrix of query, key and value, but here each has a basis of its own. Leave it out."
        )
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")
    flats = [trees.flatten_paths(tau) for tau in taus]
    paths = [p for p, leaf in flats[0].items() if np.size(leaf) and is_matrix(p, leaf, stacked=stacked)]
    traced = [path for path in paths if any(isinstance(flat[path], jax.core.Tracer) for flat in flats)]
    if traced and not rank:
        raise ValueError(
            f"rank is 0, which reads it from the values of the vectors, and under `jit` {traced[0]} has none. Give "
            "rank=16, say, what the adapters were trained with, or call core_space outside `jit`."
        )
    cores = {}
    with jax.default_matmul_precision("highest"):
        for path in paths:
            layered = in_layers(path, stacked)
            # Vectors that are known are looked at now, even where a caller's λ is being traced: ranks are shapes.
            with contextlib.nullcontext() if traced else jax.ensure_compile_time_eval():
                kernels = stack([flat[path] for flat in flats])
                depth = _depth(kernels, rank or _rank_of(kernels, layered=layered))
                cores[path] = _cores(kernels, depth=depth, layered=layered)
                if not traced:
                    _check_lost(path, cores[path], kernels, rank, layered=layered)
        small = [_with_cores(tau, cores, task) for task, tau in enumerate(taus)]
        merged = trees.flatten_paths(around_zero(merge, small, {"stacked": stacked}, options))
        whole = merged | {path: _whole(core, merged[path]) for path, core in cores.items()}
    moved = jax.tree.unflatten(jax.tree.structure(taus[0]), [whole[path] for path in flats[0]])
    return apply_task_vector(pretrained, moved, scaling_coef)


class _Cores(NamedTuple):
    """A leaf in its bases, of stacked layers [L] each its own."""

    inputs: Float[Array, "*L m k"]
    """U; columns that no task has are zero."""
    outputs: Float[Array, "*L n l"]
    """V, likewise."""
    tasks: Float[Array, "*L T k l"]
    """M_t."""
    lost: Float[Array, "*L T"]
    """‖τ_t − U M_t Vᵀ‖ / ‖τ_t‖."""


@functools.partial(jax.jit, static_argnames=("depth", "layered"))  # leaves of one shape share a program
def _cores(kernels: Float[Array, "T *L m n"], *, depth: int, layered: bool) -> _Cores:
    of_matrix = functools.partial(_of_matrix, depth=depth)
    return each_layer(of_matrix)(kernels) if layered else of_matrix(kernels)


def _of_matrix(kernels: Float[Array, "T m n"], *, depth: int) -> _Cores:
    left, values, right = leading(kernels, depth)
    roots = jnp.sqrt(jnp.where(nonzero(values, kernels.shape), values, 0))
    inputs = _basis(left * roots[:, None, :])
    outputs = _basis(jnp.swapaxes(right * roots[:, :, None], 1, 2))
    tasks = jnp.einsum("mk,tmn,nl->tkl", inputs, kernels, outputs)
    rest = kernels - jnp.einsum("mk,tkl,nl->tmn", inputs, tasks, outputs)
    lengths = jnp.linalg.norm(kernels, axis=(1, 2))
    return _Cores(inputs, outputs, tasks, jnp.linalg.norm(rest, axis=(1, 2)) / jnp.where(lengths > 0, lengths, 1))


def _basis(factors: Float[Array, "T m r"]) -> Float[Array, "m k"]:
    """Left singular vectors of all factors side by side, zeros for those that belong to zeros."""
    side_by_side = jnp.moveaxis(factors, 0, 1).reshape(factors.shape[1], -1)
    left, values, _ = svd(side_by_side)
    return left * nonzero(values, side_by_side.shape)[None, :]


def _depth(kernels: Float[Array, "T *L m n"], rank: int) -> int:
    """How many triplets of each task make up the bases: no core has a side of 1, which would be no matrix any more."""
    return min(max(rank, 2 if len(kernels) == 1 else 1), *kernels.shape[-2:])


def _rank_of(kernels: Float[Array, "T *L m n"], *, layered: bool) -> int:
    """The largest rank of a task's matrix, and of a layer."""
    return int(jnp.max(_ranks(kernels, layered=layered)))


@functools.partial(jax.jit, static_argnames="layered")
def _ranks(kernels: Float[Array, "T *L m n"], *, layered: bool) -> Array:
    def of_matrix(matrices: Array) -> Array:
        values = singular_values(matrices)
        rest = jnp.sqrt(jnp.cumsum(values[:, ::-1] ** 2, axis=1))[:, ::-1]  # of the values from each on
        return jnp.sum(rest > ROUNDINGS * jnp.finfo(values.dtype).eps * rest[:, :1], axis=1)

    return each_layer(of_matrix)(kernels) if layered else of_matrix(kernels)


def _check_lost(path: str, cores: _Cores, kernels: Array, rank: int, *, layered: bool) -> None:
    lost = np.asarray(cores.lost)
    if not np.any(lost > LOST):
        return
    *layer, task = np.unravel_index(np.argmax(lost), lost.shape)
    where = f"{path}, layer {layer[0]}," if layered else path
    raise ValueError(
        f"rank is {rank}, and bases of that rank leave out {lost.max():.2g} of the norm of {where} in task vector "
        f"{task}. Matrices of {path} have rank {_rank_of(kernels, layered=layered)}. Give rank=0, which finds it."
    )


def _with_cores(tau: Params, cores: Mapping[str, _Cores], task: int) -> Params:
    """A task's vector with M_t in place of its matrices."""
    leaves = [
        cores[path].tasks[..., task, :, :] if path in cores else leaf for path, leaf in trees.flatten_paths(tau).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(tau), leaves)


@jax.jit
def _whole(cores: _Cores, merged: ArrayLike) -> Array:
    """U M Vᵀ, and NaN for a matrix that the bases do not hold."""
    held = jnp.max(cores.lost, axis=-1) <= LOST
    whole = jnp.einsum("...mk,...kl,...nl->...mn", cores.inputs, merged, cores.outputs)
    return jnp.where(held[..., None, None], whole, jnp.nan)

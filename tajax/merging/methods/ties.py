"""TIES: trim, elect a sign, average or add those who agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.order import count_entries, kth_largest
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import Params

Agreement = Literal["mean", "sum"]


def ties(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    density: float = 0.2,
    merge: Agreement = "mean",
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """The mean of the large entries that agree in sign, θ₀ + λ mean{τ̂_t : sign τ̂_t = γ}, entry by entry.

    τ̂_t keeps the entries of τ_t of largest magnitude, and γ = sign(Σ_t τ̂_t) is the sign that carries more mass. The
    mean is over the tasks that kept the entry and agree with γ; where none does, or masses balance, θ₀ stays.

    Args:
        pretrained: θ₀.
        taus: the task vectors, trees with the paths and shapes of `pretrained`.
        density: share of the entries of each vector to keep, in (0, 1], ranked over all leaves together. A Python
            number, known when compiling.
        merge: `"mean"` of the entries that agree, as in the paper, or their `"sum"`, fusion_bench's default. A string,
            known when compiling.
        scaling_coef: λ, chosen on validation data: around 1 for the mean, around 0.3 for the sum of eight tasks.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `density` or `merge` is out of range, there are no vectors, one differs from `pretrained`, or
            `scaling_coef` is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Yadav et al. 2023, "TIES-Merging", §4, Algorithm 1.

    Example:
        >>> taus = [{"w": jnp.array([4.0, 2.0, 0.1, 1.0])}, {"w": jnp.array([2.0, -3.0, 0.1, 1.0])}]
        >>> ties({"w": jnp.zeros(4)}, taus, density=0.5)
        {'w': Array([ 3., -3.,  0.,  0.], dtype=float32)}
        >>> ties({"w": jnp.zeros(4)}, taus, density=0.5, merge="sum")
        {'w': Array([ 6., -3.,  0.,  0.], dtype=float32)}
    """
    if merge not in get_args(Agreement):
        raise ValueError(f"merge is {merge!r}, want one of {', '.join(map(repr, get_args(Agreement)))}")
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")
    trimmed = [keep_largest(tau, density) for tau in taus]
    return apply_task_vector(pretrained, elect(trimmed, merge), scaling_coef)


def elect(taus: Sequence[Params], merge: Agreement) -> Params:
    """Entry by entry the mean or sum of those whose sign is that of Σ τ_t, and zero where masses balance.

    Example:
        >>> elect([{"w": jnp.array([4.0, 2.0, 1.0])}, {"w": jnp.array([2.0, -3.0, -1.0])}], "mean")
        {'w': Array([ 3., -3.,  0.], dtype=float32)}
    """

    def elected(*entries: Array) -> Array:
        stacked = jnp.stack(entries)
        sign = jnp.sign(jnp.sum(stacked, axis=0))
        agree = (jnp.sign(stacked) == sign[None]) & (stacked != 0)
        total = jnp.sum(jnp.where(agree, stacked, 0), axis=0)
        return total / jnp.maximum(jnp.sum(agree, axis=0), 1) if merge == "mean" else total

    return trees.map_leaves(elected, *taus)


def trim_first(tau: Params, *, density: float = 0.2, **rest: Any) -> tuple[Params, dict[str, Any]]:
    """What TIES does to each vector alone, and the options that are left: the election goes entry by entry."""
    return keep_largest(tau, density), {"density": 1.0, **rest}


def keep_largest(tau: Params, density: float) -> Params:
    """The entries of largest magnitude over all leaves together, and zeros elsewhere; float32 or wider.

    Of n entries round(`density` · n) are kept, at least one; entries that tie with the smallest of them stay too.
    Exact, without sorting or copying into one vector. Of NumPy's arrays, which may be memory maps of files, there is no
    copy but the result.

    Raises:
        ValueError: `density` is not in (0, 1].

    Example:
        >>> keep_largest({"a": jnp.array([1.0, -5.0]), "b": jnp.array([3.0, 0.0])}, density=0.5)
        {'a': Array([ 0., -5.], dtype=float32), 'b': Array([3., 0.], dtype=float32)}
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is the share of entries to keep, in (0, 1]; got {density}")
    leaves = jax.tree.leaves(tau)
    dtype = jnp.result_type(jnp.float32, *leaves)
    leaves = [leaf if getattr(leaf, "dtype", None) == dtype else jnp.asarray(leaf, dtype) for leaf in leaves]
    threshold = kth_largest(leaves, max(1, round(density * count_entries(leaves))), magnitudes=True)
    return jax.tree.unflatten(jax.tree.structure(tau), [_from(leaf, threshold) for leaf in leaves])


@jax.jit  # one pass over a leaf
def _from(leaf: ArrayLike, threshold: Array) -> Array:
    return jnp.where(jnp.abs(leaf) < threshold, 0, leaf)

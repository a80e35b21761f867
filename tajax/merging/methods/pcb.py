"""PCB-merging: entries compete, within their task by magnitude and between tasks by agreement, for a weighted mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.order import count_entries, kth_largest
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import Params


def pcb(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    ratio: float = 0.1,
    outliers: float = 1e-4,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """A mean of the task vectors with a weight for each entry, θ₀ + λ Σ_t w_t ⊙ τ_t / Σ_t w_t.

    An entry's score is s_t = exp(T · N(abs τ_t)²) · tanh(τ_t Σ_u τ_u): N maps the magnitudes of a task onto [0, 1], and
    the second factor is positive where the task agrees with the sum. Its weight is w_t = max(0, s_t − q_t) / (max s_t −
    q_t), with a quantile q_t over which a share `ratio` of the task's scores lie. Where no task has a weight, θ₀ stays.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        ratio: share of the entries of each vector that have a weight, in (0, 1], over all leaves together. Python
            numbers, known when compiling.
        outliers: share of the largest magnitudes of each vector that are limited to the next one, in [0, 1). The paper
            does not mention it, its code does it: without it one outlier makes all other magnitudes small.
        scaling_coef: λ, chosen on validation data; around 1.2 in the paper.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `ratio` or `outliers` is out of range, there are no vectors, one differs from `pretrained`, or
            `scaling_coef` is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Du et al. 2024, "Parameter Competition Balancing for Model Merging", §3, with the activations of its code.

    Example:
        >>> taus = [{"w": jnp.array([4.0, 0.1, -0.2, 0.3])}, {"w": jnp.array([2.0, 3.0, 0.1, -0.2])}]
        >>> pcb({"w": jnp.zeros(4)}, taus, ratio=0.25)["w"]
        Array([4., 3., 0., 0.], dtype=float32)
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is the share of entries that have a weight, in (0, 1]; got {ratio}")
    if not 0 <= outliers < 1:
        raise ValueError(f"outliers is the share of magnitudes that are limited, in [0, 1); got {outliers}")
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")
    each = [[jnp.asarray(leaf) for leaf in trees.flatten_paths(tau).values()] for tau in taus]
    dtype = jnp.result_type(jnp.float32, *(leaf for leaves in each for leaf in leaves))
    each = [[leaf.astype(dtype) for leaf in leaves] for leaves in each]
    total = [sum(leaves[1:], start=leaves[0]) for leaves in zip(*each, strict=True)]
    entries, limits = [], []
    for leaves in each:
        limited, unit = _limited(leaves, outliers)
        scores = [jnp.exp(len(taus) * n**2) * jnp.tanh(x * s) for n, x, s in zip(unit, leaves, total, strict=True)]
        entries.append(_weights(scores, ratio))
        limits.append(limited)

    def mean(weights: Sequence[Array], leaves: Sequence[Array]) -> Array:
        shared = sum(weights)
        return sum(w * x for w, x in zip(weights, leaves, strict=True)) / jnp.where(shared > 0, shared, 1)

    merged = [mean(w, x) for w, x in zip(zip(*entries, strict=True), zip(*limits, strict=True), strict=True)]
    tau = jax.tree.unflatten(jax.tree.structure(taus[0]), merged)
    return apply_task_vector(pretrained, tau, scaling_coef)


def _limited(leaves: Sequence[Array], outliers: float) -> tuple[list[Array], list[Array]]:
    """A vector without outliers, and where its magnitudes lie between the least, 0, and the largest, 1."""
    magnitudes = [jnp.abs(leaf) for leaf in leaves]
    count = count_entries(leaves)
    top, least = kth_largest(magnitudes, 1 + math.floor(outliers * count)), kth_largest(magnitudes, count)
    limited = [jnp.clip(leaf, -top, top) for leaf in leaves]
    return limited, [(jnp.abs(leaf) - least) / jnp.where(top > least, top - least, 1) for leaf in limited]


def _weights(scores: Sequence[Array], ratio: float) -> list[Array]:
    count = count_entries(scores)
    best, threshold = kth_largest(scores, 1), kth_largest(scores, min(count, 1 + max(1, round(ratio * count))))
    return [jnp.maximum(score - threshold, 0) / jnp.where(best > threshold, best - threshold, 1) for score in scores]

"""DARE: drop entries of the task vectors at random and rescale the rest, then merge in any way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax import Array

from tajax import trees
from tajax.merging.methods.task_arithmetic import task_arithmetic
from tajax.merging.preparation import drop, thin
from tajax.types import MergeFn, Params


def dare(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    key: Array,
    drop_rate: float = 0.5,
    merge: MergeFn = task_arithmetic,
    **options: Any,  # those of `merge`
) -> Params:
    """Another method on thinned vectors, τ̃_t = τ_t ⊙ m / (1 − p) with m ~ Bernoulli(1 − p): τ̃_t is τ_t on average.

    Args:
        pretrained: θ₀.
        taus: the task vectors, trees with the paths and shapes of `pretrained`. Each is thinned by its own draw.
        key: PRNG key; the same key gives the same model.
        drop_rate: p in [0, 1), the share of entries dropped. A Python number, known when compiling.
        merge: the method that merges the thinned vectors.
        **options: its options, such as `scaling_coef`.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `drop_rate` is out of range, there are no vectors, or one differs from `pretrained`.

    Source:
        Yu et al. 2024, "Language Models are Super Mario", §3.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> dare({"w": jnp.zeros(6)}, [{"w": jnp.ones(6)}], key=jax.random.key(0), scaling_coef=0.5)
        {'w': Array([1., 0., 1., 0., 1., 1.], dtype=float32)}
    """
    trees.check_taus(taus, pretrained)
    return merge(pretrained, drop(taus, key=key, drop_rate=drop_rate), **options)


def thin_first(tau: Params, *, key: Array, drop_rate: float = 0.5, **rest: Any) -> tuple[Params, dict[str, Any]]:
    """What DARE does to each vector alone, with a key of its own, and the options that are left."""
    return thin(key, tau, drop_rate), {"drop_rate": 0.0, **rest}

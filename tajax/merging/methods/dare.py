"""DARE: drop entries of the task vectors at random and rescale the rest, then merge in any way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.methods.task_arithmetic import task_arithmetic
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
        >>> dare({"w": jnp.zeros(6)}, [{"w": jnp.ones(6)}], key=jax.random.key(0), scaling_coef=0.5)
        {'w': Array([1., 0., 1., 0., 1., 1.], dtype=float32)}
    """
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate is the share of entries to drop, in [0, 1); got {drop_rate}")
    trees.check_taus(taus, pretrained)
    return merge(
        pretrained, [_thin(k, tau, drop_rate) for k, tau in zip(_keys(key, taus), taus, strict=True)], **options
    )


def thin_first(tau: Params, *, key: Array, drop_rate: float = 0.5, **rest: Any) -> tuple[Params, dict[str, Any]]:
    """What DARE does to each vector alone, with a key of its own, and the options that are left."""
    return _thin(key, tau, drop_rate), {"drop_rate": 0.0, **rest}


def _thin(key: Array, tau: Params, drop_rate: float) -> Params:
    leaves, structure = jax.tree.flatten(tau)

    def thin(key: Array, leaf: ArrayLike) -> Array:
        keep = jax.random.bernoulli(key, 1 - drop_rate, jnp.shape(leaf))
        return jnp.where(keep, leaf / (1 - drop_rate), 0)

    return jax.tree.unflatten(structure, list(map(thin, _keys(key, leaves), leaves)))


def _keys(key: Array, items: Sequence[object]) -> list[Array]:
    return list(jax.random.split(key, len(items)))

"""DELLA: drop entries of the task vectors at random, small ones more often, then elect a sign as TIES does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.matrices import map_tensors
from tajax.merging.methods.ties import elect
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import Params


def della(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    stacked: str | None = STACKED,
    key: Array,
    drop_rate: float = 0.3,
    window: float = 0.14,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """The mean of the entries that agree in sign, of vectors thinned by magnitude, θ₀ + λ mean{τ̂_t : sign τ̂_t = γ}.

    τ̂_t = τ_t ⊙ m / (1 − p) with m ~ Bernoulli(1 − p), so that τ̂_t is τ_t on average, and p = `drop_rate` +
    `window` (1/2 − r/(n − 1)) falls with the rank r = 0, …, n − 1 of a magnitude among the n of its tensor. A tensor is
    a leaf, or one layer of a leaf that stacks them (the paper ranks in each row of a matrix; its code can do both).
    γ = sign(Σ_t τ̂_t), and the mean is over those that agree, as in `ties`.

    Args:
        pretrained: θ₀.
        taus: the task vectors, trees with the paths and shapes of `pretrained`. Each is thinned by its own draw.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        key: PRNG key; the same key gives the same model.
        drop_rate: the mean share of entries dropped. Python numbers, known when compiling.
        window: the paper's ε, by how much more often the smallest entry of a tensor is dropped than the largest; with
            `drop_rate` such that all rates are in [0, 1). At 0 all are dropped alike, as by `dare`.
        scaling_coef: λ, chosen on validation data; 1.1 in the paper's example.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: a rate is out of range, there are no vectors, one differs from `pretrained`, or `scaling_coef` is
            several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Deep et al. 2024, "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling", §3.

    Example:
        >>> tau = {"w": jnp.array([4.0, 1.0, 2.0, 3.0])}
        >>> della({"w": jnp.zeros(4)}, [tau], key=jax.random.key(0), drop_rate=0.5, window=0.6)["w"].round(2)
        Array([5., 0., 0., 5.], dtype=float32)
    """
    trees.check_taus(taus, pretrained)
    check_della(len(taus), drop_rate=drop_rate, window=window)
    check_scalar(scaling_coef, "scaling_coef")

    keys = jax.random.split(key, len(taus))
    pruned = [_prune(k, tau, drop_rate, window, stacked) for k, tau in zip(keys, taus, strict=True)]
    return apply_task_vector(pretrained, elect(pruned, "mean"), scaling_coef)


def prune_first(
    tau: Params,
    *,
    key: Array,
    stacked: str | None = STACKED,
    drop_rate: float = 0.3,
    window: float = 0.14,
    **rest: Any,  # the options that are left
) -> tuple[Params, dict[str, Any]]:
    """What DELLA does to each vector alone, with a key of its own, and the options that are left: the election."""
    return _prune(key, tau, drop_rate, window, stacked), {"drop_rate": 0.0, "window": 0.0, **rest}


def check_della(count: int, *, drop_rate: float, window: float) -> None:
    """Raises unless every entry is dropped at a rate in [0, 1).

    Raises:
        ValueError: the smallest or the largest entry of a tensor would not be, or `window` is negative.
    """
    if not (window >= 0 and drop_rate - window / 2 >= 0 and drop_rate + window / 2 < 1):
        raise ValueError(
            f"entries are dropped at rates of drop_rate ± window / 2, which are shares below 1; got drop_rate "
            f"{drop_rate} and window {window}"
        )


def _prune(key: Array, tau: Params, drop_rate: float, window: float, stacked: str | None) -> Params:
    def thin(pair: Array) -> Array:
        tensor, draws = pair
        places = jnp.argsort(jnp.abs(tensor).ravel())
        ranks = jnp.zeros_like(places).at[places].set(jnp.arange(tensor.size), unique_indices=True)
        share = ranks.reshape(tensor.shape).astype(tensor.dtype) / (tensor.size - 1) if tensor.size > 1 else 0.5
        rate = drop_rate + window * (0.5 - share)
        return jnp.where(draws >= rate, tensor / (1 - rate), 0)

    return map_tensors(thin, [tau, _uniform(key, tau)], stacked=stacked)


def _uniform(key: Array, tau: Params) -> Params:
    leaves, structure = jax.tree.flatten(tau)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [jax.random.uniform(k, jnp.shape(x)) for k, x in zip(keys, leaves, strict=True)]
    )

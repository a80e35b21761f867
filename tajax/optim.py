"""The optimiser of the protocol, and the same for whole trees of which a mask names what is trained."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from tajax.layers import put_layers, take_layers
from tajax.types import LeafMask, Mask, Params


def make_schedule(*, learning_rate: float, num_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to 0 at `num_steps` (the protocol of Ilharco et al. 2023).

    Args:
        learning_rate: the peak, reached after `warmup_steps`.
        num_steps: optimiser steps in all, at least 1.
        warmup_steps: steps of linear warm-up, fewer than `num_steps`.

    Returns:
        A function of the step count, traceable by JAX.

    Raises:
        ValueError: the warm-up would not end before the training does.

    Example:
        >>> schedule = make_schedule(learning_rate=1.0, num_steps=10, warmup_steps=2)
        >>> [round(float(schedule(step)), 3) for step in (0, 1, 2, 10)]
        [0.0, 0.5, 1.0, 0.0]
    """
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps} but the run has {num_steps} steps: the warm-up must be shorter. "
            "Give fewer of them, or train for more steps."
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0, peak_value=learning_rate, warmup_steps=warmup_steps, decay_steps=num_steps
    )


def adamw(
    learning_rate: float | optax.Schedule, *, weight_decay: float = 0.1, clip_norm: float | None = 1.0
) -> optax.GradientTransformation:
    """AdamW after clipping of the global gradient norm, for trees of which every leaf is trained.

    Args:
        learning_rate: a number or an optax schedule.
        weight_decay: decoupled decay, applied to every leaf as in the papers' code.
        clip_norm: largest global gradient norm; None does not clip.
    """
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, optax.adamw(learning_rate, weight_decay=weight_decay))


def make_optimizer(
    mask: Mask,
    *,
    learning_rate: float | optax.Schedule,
    weight_decay: float = 0.1,
    clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """AdamW on what `mask` trains; a zero update for the rest.

    Clipping, weight decay and moments see the trained leaves and layers alone. `optax.masked` would not do:
    it passes raw gradients through where the mask is False. `tajax.finetune` takes the same steps by `adamw` on the
    trained part alone (`tajax.parametrization.masked`).

    Args:
        mask: like the parameters, from `tajax.param_mask`.
        learning_rate: a number or an optax schedule.
        weight_decay: as in `adamw`, of the trained leaves.
        clip_norm: as in `adamw`, of the norm over the trained leaves.

    Returns:
        A transformation whose state holds no moments for frozen leaves, nor for the frozen layers of others.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"a": jnp.ones(3), "b": jnp.ones(2)}
        >>> tx = make_optimizer({"a": True, "b": False}, learning_rate=0.1)
        >>> updates, _ = tx.update(params, tx.init(params), params)
        >>> updates["b"]
        Array([0., 0.], dtype=float32)
    """
    train = adamw(learning_rate, weight_decay=weight_decay, clip_norm=clip_norm)
    labels = jax.tree.map(lambda trained: "train" if np.any(trained) else "freeze", mask)
    inner = optax.partition({"train": train, "freeze": optax.set_to_zero()}, labels)

    def taken(tree: Params) -> Params:
        return _where_trained(take_layers, mask, tree)

    def init(params: Params) -> optax.OptState:
        return inner.init(taken(params))

    def update(updates: Params, state: optax.OptState, params: Params | None = None) -> tuple[Params, optax.OptState]:
        found, state = inner.update(taken(updates), state, params if params is None else taken(params))
        return jax.tree.map(lambda u, *part: put_layers(jnp.zeros_like(u), *part), updates, mask, found), state

    return optax.GradientTransformation(init, update)


def apply_updates(params: Params, updates: Params, mask: Mask) -> Params:
    """Parameters after one update; frozen leaves are the same arrays, not copies plus zero.

    Adding 0 is not the identity: −0 + 0 is +0. Of a leaf that is trained in some layers, the others keep their bits.

    Args:
        params: the parameters before.
        updates: a tree like `params`, added where `mask` says so.
        mask: like `params`.

    Returns:
        A new tree with the dtypes of `params`.
    """

    def moved(p: Array, trained: LeafMask, u: Array) -> Array:
        part = take_layers(p, trained) + take_layers(u, trained)
        return put_layers(p, trained, part.astype(p.dtype))

    return _where_trained(moved, mask, params, updates)


def _where_trained(fn: Callable[..., Array], mask: Mask, tree: Params, *rest: Params) -> Params:
    """`fn(leaf, its mask, leaves of the rest)` where any of a leaf is trained, the leaf of `tree` elsewhere."""
    return jax.tree.map(
        lambda leaf, trained, *others: fn(leaf, trained, *others) if np.any(trained) else leaf, tree, mask, *rest
    )

"""Optimisers that train the leaves of a mask and leave all others bit-identical."""

from __future__ import annotations

import jax
import optax

from tajax.types import Params


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
            "Lower config.finetune.warmup_steps or train for more steps."
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0, peak_value=learning_rate, warmup_steps=warmup_steps, decay_steps=num_steps
    )


def make_optimizer(
    mask: Params,
    *,
    learning_rate: float | optax.Schedule,
    weight_decay: float = 0.1,
    clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """AdamW on the True leaves of `mask`; a zero update for the others.

    Clipping, weight decay and moments see the trained leaves alone. `optax.masked` would not do:
    it passes raw gradients through where the mask is False.

    Args:
        mask: pytree of bool like the parameters, from `tajax.param_mask`.
        learning_rate: a number or an optax schedule.
        weight_decay: decoupled decay, applied to every trained leaf as in the papers' code.
        clip_norm: largest global gradient norm over the trained leaves; None does not clip.

    Returns:
        A transformation whose state holds no moments for frozen leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"a": jnp.ones(3), "b": jnp.ones(2)}
        >>> tx = make_optimizer({"a": True, "b": False}, learning_rate=0.1)
        >>> updates, _ = tx.update(params, tx.init(params), params)
        >>> updates["b"]
        Array([0., 0.], dtype=float32)
    """
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    adamw = optax.chain(clip, optax.adamw(learning_rate, weight_decay=weight_decay))
    labels = jax.tree.map(lambda trained: "train" if trained else "freeze", mask)
    return optax.partition({"train": adamw, "freeze": optax.set_to_zero()}, labels)


def apply_updates(params: Params, updates: Params, mask: Params) -> Params:
    """Parameters after one update; frozen leaves are the same arrays, not copies plus zero.

    Adding 0 is not the identity: −0 + 0 is +0.

    Args:
        params: the parameters before.
        updates: a tree like `params`, added where `mask` is True.
        mask: pytree of bool like `params`.

    Returns:
        A new tree with the dtypes of `params`.
    """
    return jax.tree.map(lambda p, u, trained: (p + u).astype(p.dtype) if trained else p, params, updates, mask)

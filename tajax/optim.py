"""The optimiser of the protocol, Muon in its place, and AdamW for whole trees of which a mask names what is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax import Array

from tajax import trees
from tajax.layers import put_layers, take_layers
from tajax.types import LeafMask, Mask, Params


def make_schedule(*, learning_rate: float, num_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """Linear warm-up, then a cosine to 0 (Ilharco et al. 2023), at the steps of the papers' released code.

    Step k of W warm-up steps is taken at λ(k + 1)/W, so that none is lost at a rate of 0, and step k of n behind them
    at λ(1 + cos π(k − W)/(n − W))/2: the first of these is at λ again.

    Args:
        learning_rate: λ, the peak, reached at the last step of the warm-up.
        num_steps: n, optimiser steps in all, at least 1.
        warmup_steps: W, steps of linear warm-up, fewer than `num_steps`.

    Returns:
        A function of the step count, traceable by JAX.

    Raises:
        ValueError: the warm-up would not end before the training does.

    Example:
        >>> schedule = make_schedule(learning_rate=1.0, num_steps=10, warmup_steps=2)
        >>> [round(float(schedule(step)), 3) for step in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps} but the run has {num_steps} steps: the warm-up must be shorter. "
            "Give fewer of them, or train for more steps."
        )
    cosine = optax.cosine_decay_schedule(learning_rate, num_steps - warmup_steps)
    if not warmup_steps:
        return cosine
    first = learning_rate / warmup_steps
    warmup = optax.linear_schedule(first, learning_rate + first, warmup_steps)
    return optax.join_schedules([warmup, cosine], [warmup_steps])


def adamw(
    learning_rate: float | optax.Schedule, *, weight_decay: float = 0.1, clip_norm: float | None = 1.0
) -> optax.GradientTransformation:
    """AdamW after clipping of the global gradient norm, for trees of which every leaf is trained.

    Args:
        learning_rate: a number or an optax schedule.
        weight_decay: decoupled decay, applied to every leaf as in the papers' code.
        clip_norm: largest global gradient norm; None does not clip.
    """
    return optax.chain(_clip(clip_norm), optax.adamw(learning_rate, weight_decay=weight_decay))


def muon(
    learning_rate: float | optax.Schedule, *, weight_decay: float = 0.1, clip_norm: float | None = 1.0
) -> optax.GradientTransformation:
    """Muon for matrices and AdamW for the rest, after clipping of the global gradient norm over both.

    Matrices are leaves called `kernel` of shape [in, out], or [L, in, out], of which each of the L layers is
    orthogonalised on its own. Embeddings, convolutions, norms and biases take the steps of `adamw`.

    A matrix moves by −η(0.2 √max(in, out) O + wd W): O is the Nesterov momentum of its gradients (0.95) with singular
    values brought near 1 by five Newton-Schulz iterations, between about 0.7 and 1.2. The factor gives the entries of a
    square or wide update the size that those of AdamW have, so that learning rate and weight decay mean the same for
    both. A matrix has one moment, where AdamW keeps two.

    Args:
        learning_rate: η, a number or an optax schedule, of both.
        weight_decay: wd, decoupled, applied to every leaf.
        clip_norm: largest global gradient norm; None does not clip. Muon's steps do not depend on the scale that all
            gradients have, only on how it changes from step to step.

    Returns:
        A transformation whose `init` raises ValueError where none of the leaves is a matrix.

    Source:
        Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the factor: Liu et al. 2025, arXiv 2502.16982.
    """
    matrices = optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=_in_and_out),
        optax.stateless(lambda updates, params: jax.tree.map(_as_large_as_adamws, updates)),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    rest = optax.adamw(learning_rate, weight_decay=weight_decay)
    return optax.chain(_clip(clip_norm), optax.partition({"muon": matrices, "adamw": rest}, _by_muon))


class MakeOptimizer(Protocol):
    """A row of `OPTIMIZERS`, for trees of which every leaf is trained."""

    def __call__(
        self, learning_rate: float | optax.Schedule, *, weight_decay: float = 0.1, clip_norm: float | None = 1.0
    ) -> optax.GradientTransformation:
        """The transformation."""


OPTIMIZERS: Mapping[str, MakeOptimizer] = {"adamw": adamw, "muon": muon}
"""Optimisers by name, the values of `config.finetune.optimizer`."""


def _clip(clip_norm: float | None) -> optax.GradientTransformation:
    return optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)


def _by_muon(params: Params) -> Params:
    """Which optimiser takes each leaf."""
    flat = trees.flatten_paths(params)
    chosen = {path: path.split("/")[-1] == "kernel" and np.ndim(leaf) in (2, 3) for path, leaf in flat.items()}
    if not any(chosen.values()):
        some = ", ".join([*flat][:3]) + (", …" if len(flat) > 3 else "")
        raise ValueError(
            f"Muon is for matrices, and none of the {len(flat)} leaves that are trained is one ({some}): no "
            "`kernel` of shape [in, out] or [layers, in, out]. Choose the optimizer 'adamw', or train others."
        )
    labels = ["muon" if matrix else "adamw" for matrix in chosen.values()]
    return jax.tree.unflatten(jax.tree.structure(params), labels)


def _as_large_as_adamws(update: Array) -> Array:
    return 0.2 * math.sqrt(max(update.shape[-2:])) * update


def _in_and_out(matrices: Params) -> Params:
    return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(-2, -1), matrices)


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

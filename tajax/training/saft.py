"""Sharpness-aware fine-tuning, SAFT (arXiv 2504.14662): minima around which the loss of the task stays low.

The gradient of a step is taken at t + ρ g/‖g‖, g the gradient where training stands, t; then the optimiser steps from t
with it (Foret et al. 2021, arXiv 2010.01412). ‖g‖ is the norm over all that is trained, of the gradient on this step's
whole batch. A step costs two gradients. The radius ρ = 0.05 is that of Foret et al.; tune it on validation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tajax.finetune import Perturb
from tajax.training import Options, TrainingMethod
from tajax.types import Trained

__all__ = ["METHOD", "uphill"]

_SHORTEST = 1e-12
"""Of a gradient, a sum over the rows of a batch, that still has a direction."""


def uphill(radius: float) -> Perturb:
    """From t and the gradient g there to t + ρ g/‖g‖, whatever the scale of g.

    Args:
        radius: ρ, 0 or more. 0 gives t itself.

    Returns:
        A function of two trees of floating-point leaves, which returns one with the dtypes of the first. Where ‖g‖ is
        below 1e-12 the way is shorter than ρ, and where g = 0 it gives t.

    Example:
        >>> uphill(0.5)({"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([0.0, -8.0])})
        {'w': Array([1. , 0.5], dtype=float32)}
    """

    def perturb(trained: Trained, grads: Trained) -> Trained:
        if radius == 0:
            return trained  # t + 0 would turn −0 into +0
        squares = [
            jnp.sum(jnp.square(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))))
            for leaf in jax.tree.leaves(grads)
        ]
        scale = radius / jnp.maximum(jnp.sqrt(sum(squares, jnp.zeros(()))), _SHORTEST)
        return jax.tree.map(lambda t, g: (t + scale * g).astype(t.dtype), trained, grads)

    return perturb


def _perturb(options: Options) -> Perturb:
    return uphill(options["radius"])


METHOD = TrainingMethod(perturb=_perturb)

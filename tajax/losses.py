"""Losses, per example: reductions belong to whoever knows the mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


def cross_entropy(logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """Cross-entropy of each example, logsumexp(z) − z_label.

    Args:
        logits: z, any float dtype. Padded classes may be −inf: they take no probability and no gradient.
        labels: class indices in [0, K).

    Returns:
        Losses [B], float32 (float64 for float64 logits).

    Example:
        >>> cross_entropy(jnp.array([[0.0, 0.0, -jnp.inf]]), jnp.array([1]))
        Array([0.6931472], dtype=float32)
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    picked = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked

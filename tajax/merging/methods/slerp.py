"""SLERP: between two task vectors, along an arc."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.matrices import map_tensors
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import Params

PARALLEL = 0.9995
"""Cosine beyond which two vectors have no arc between them to speak of: the line is taken, as in mergekit."""


def slerp(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    stacked: str | None = STACKED,
    share: float = 0.5,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """A vector on the arc between two, tensor by tensor, θ₀ + λ (sin((1 − s)φ) τ₁ + sin(sφ) τ₂) / sin φ.

    φ is the angle between them in a tensor, a leaf or one layer of a leaf that stacks them. Vectors of one length keep
    it, where the average of two that are orthogonal is shorter by √2. Where they are parallel or opposite (abs(cos φ)
    > 0.9995), or one is zero, the mean (1 − s) τ₁ + s τ₂ is taken.

    It is the task vectors that are interpolated, as in mergekit's `nuslerp` with a base, not the models: the weights of
    models that were fine-tuned from one base are so nearly parallel that `slerp` of those is their average.

    Args:
        pretrained: θ₀.
        taus: two task vectors, trees with the paths and shapes of `pretrained`.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        share: s in [0, 1], how far from the first to the second. A Python number, known when compiling.
        scaling_coef: λ, chosen on validation data.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `share` is out of range, there are not two vectors, one differs from `pretrained`, or `scaling_coef`
            is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Shoemake 1985, "Animating Rotation with Quaternion Curves", §3.3; of models, mergekit (Goddard et al. 2024).

    Example:
        >>> taus = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}]
        >>> slerp({"w": jnp.zeros(2)}, taus)["w"]
        Array([0.70710677, 0.70710677], dtype=float32)
    """
    trees.check_taus(taus, pretrained)
    check_slerp(len(taus), share=share)
    check_scalar(scaling_coef, "scaling_coef")

    def on_the_arc(pair: Array) -> Array:
        first, second = pair
        lengths = jnp.sqrt(jnp.sum(first**2)) * jnp.sqrt(jnp.sum(second**2))
        cosine = jnp.sum(first * second) / jnp.where(lengths > 0, lengths, 1)
        straight = (lengths == 0) | (jnp.abs(cosine) > PARALLEL)
        angle = jnp.where(straight, 1, jnp.arccos(jnp.clip(cosine, -PARALLEL, PARALLEL)))
        here, there = jnp.sin((1 - share) * angle) / jnp.sin(angle), jnp.sin(share * angle) / jnp.sin(angle)
        return jnp.where(straight, 1 - share, here) * first + jnp.where(straight, share, there) * second

    return apply_task_vector(pretrained, map_tensors(on_the_arc, taus, stacked=stacked), scaling_coef)


def check_slerp(count: int, *, share: float) -> None:
    """Raises unless there are two vectors, and the share is one.

    Raises:
        ValueError: there are more or fewer, or `share` is not in [0, 1].
    """
    if count != 2:
        raise ValueError(f"slerp goes from one task vector to another and takes two; got {count}. karcher takes more")
    if not 0 <= share <= 1:
        raise ValueError(f"share is how far to go from the first vector to the second, in [0, 1]; got {share}")

"""Karcher mean: the direction in the middle of the task vectors' directions, and their mean length."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.matrices import map_tensors
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar
from tajax.types import Params


def karcher(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    stacked: str | None = STACKED,
    iterations: int = 10,
    tolerance: float = 1e-5,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """A vector in the mean direction and of the mean length, tensor by tensor, θ₀ + λ (1/T) Σ_t ‖τ_t‖ · μ.

    μ = argmin Σ_t φ(μ, τ_t)² is the Riemannian mean on the unit sphere of the directions τ_t / ‖τ_t‖, φ the angle. It
    is found from their normalised average by steps along the mean tangent (1/T) Σ_t log_μ(τ_t / ‖τ_t‖). A tensor is a
    leaf, or one layer of a leaf that stacks them. Of two vectors of one length it is the midpoint of `slerp`.

    Vectors that are zero in a tensor have no direction there, and count in its length alone. Where the directions
    cancel, which leaves no mean to be found, θ₀ stays. As with `slerp` it is the task vectors that are averaged;
    mergekit takes the models, whose directions hardly differ.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        iterations: steps at most, 1 or more. Python numbers, known when compiling.
        tolerance: length of a step after which there is none, and below which a mean of directions cancels; above 0.
        scaling_coef: λ, chosen on validation data.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `iterations` or `tolerance` is out of range, there are no vectors, one differs from `pretrained`, or
            `scaling_coef` is several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Karcher 1977, "Riemannian center of mass and mollifier smoothing"; of models, mergekit's `karcher`.

    Example:
        >>> taus = [{"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([0.0, 4.0])}]
        >>> karcher({"w": jnp.zeros(2)}, taus)["w"].round(3)  # 3 / √2
        Array([2.121, 2.121], dtype=float32)
    """
    if not iterations >= 1:
        raise ValueError(f"iterations is a number of steps, 1 or more; got {iterations}")
    if not tolerance > 0:
        raise ValueError(f"tolerance is a length above 0; got {tolerance}")
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")

    def mean(vectors: Array) -> Array:
        rows = vectors.reshape(len(taus), -1)
        lengths = _lengths(rows)
        units = rows / jnp.where(lengths > 0, lengths, 1)
        directed = jnp.maximum(jnp.sum(lengths > 0), 1)
        average = jnp.sum(units, axis=0, keepdims=True) / directed
        cancels = _lengths(average) < tolerance

        def step(_: ArrayLike, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            mu, done = carry
            cosines = jnp.sum(units * mu, axis=1, keepdims=True)
            tangents = units - cosines * mu  # as long as the sine of the angle
            sines = _lengths(tangents)
            angles = jnp.arctan2(sines, cosines)  # exact for small ones, as an arccos is not
            # To the opposite point all ways are as long, and none is taken.
            logs = jnp.where((sines > tolerance) & (lengths > 0), angles / jnp.where(sines > 0, sines, 1) * tangents, 0)
            move = jnp.sum(logs, axis=0, keepdims=True) / directed
            length = _lengths(move)
            done = done | (length < tolerance)
            moved = jnp.cos(length) * mu + jnp.sin(length) * move / jnp.where(length > 0, length, 1)
            return jnp.where(done, mu, moved / _lengths(moved)), done

        start = average / jnp.where(cancels, 1, _lengths(average))
        mu, _ = jax.lax.fori_loop(0, iterations, step, (start, cancels))
        return jnp.where(cancels, 0, jnp.mean(lengths) * mu).reshape(vectors.shape[1:])

    return apply_task_vector(pretrained, map_tensors(mean, taus, stacked=stacked), scaling_coef)


def _lengths(rows: Array) -> Array:
    return jnp.sqrt(jnp.sum(rows**2, axis=-1, keepdims=True))

"""Model Stock: how far to go from the pre-trained model to the average, by the angle between the task vectors."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import Precision

from tajax import trees
from tajax.merging.matrices import map_tensors
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector
from tajax.types import Params


def model_stock(pretrained: Params, taus: Sequence[Params], *, stacked: str | None = STACKED) -> Params:
    """A share of the average, tensor by tensor, θ₀ + t (1/T) Σ_t τ_t with t = T cos φ / ((T − 1) cos φ + 1).

    φ is the angle between the vectors of a tensor, a leaf or one layer of a leaf that stacks them: the average is taken
    whole where they point the same way, and the smaller the cosine, the less of it. Nothing to choose.

    The paper has equal angles between all pairs; cos φ is the mean over pairs, as in others' code. Where it is not
    positive, θ₀ stays.

    Args:
        pretrained: θ₀.
        taus: T ≥ 2 task vectors, trees with the paths and shapes of `pretrained`.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: there are fewer than two vectors, or one differs from `pretrained` in a path or shape.

    Source:
        Jang et al. 2024, "Model Stock: All we need is just a few fine-tuned models", §4.

    Example:
        >>> taus = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.6, 0.8])}]
        >>> model_stock({"w": jnp.zeros(2)}, taus)["w"].round(3)  # cos φ = 0.6, t = 0.75
        Array([0.6, 0.3], dtype=float32)
    """
    trees.check_taus(taus, pretrained)
    check_model_stock(len(taus))
    pairs = np.triu_indices(len(taus), k=1)

    def share_of_mean(vectors: Array) -> Array:
        rows = vectors.reshape(len(taus), -1)
        lengths = jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))
        units = rows / jnp.where(lengths > 0, lengths, 1)
        cosines = jnp.matmul(units, units.T, precision=Precision.HIGHEST)[pairs]
        cosine = jnp.clip(jnp.mean(cosines), 0, 1)
        return len(taus) * cosine / ((len(taus) - 1) * cosine + 1) * jnp.mean(vectors, axis=0)

    return apply_task_vector(pretrained, map_tensors(share_of_mean, taus, stacked=stacked))


def check_model_stock(count: int) -> None:
    """Raises unless there are vectors to have an angle.

    Raises:
        ValueError: there are fewer than two.
    """
    if count < 2:
        raise ValueError(f"model_stock goes by the angle between task vectors and needs two or more; got {count}")

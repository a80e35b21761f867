"""LiNeS: the deeper the layer, the more of the task vectors."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, check_scalar, combine
from tajax.types import Params


def lines(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    stacked: str | None = STACKED,
    shallow: float = 1.0,
    scaling_coef: ArrayLike = 1.0,
) -> Params:
    """A sum of the task vectors whose share grows with depth, θ₀ + (a + λ l/(L − 1)) Σ_t τ_t in layer l of L.

    a = `shallow` / T keeps the first layers, which hold what all tasks share, near the average of the models; λ is what
    the last layer has beyond that. What lies outside the layers, before or after them, is scaled by a, as in the
    paper's code.

    Not θ₀ + λg with one g: at λ = 0 the whole model is θ₀ + a Σ_t τ_t.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        stacked: the node below which leaves have the layers along their leading axis. Without such leaves there is no
            depth, and λ has no effect.
        shallow: a · T, 0 or more. At 1, the paper's value, a is 1 / T.
        scaling_coef: λ, the paper's β, chosen on validation data.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `shallow` is negative, there are no vectors, one differs from `pretrained`, or `scaling_coef` is
            several numbers.
        TypeError: `scaling_coef` is not a real number.

    Source:
        Wang et al. 2024, "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging", §4. Of a
        merged vector that is not the sum, the paper multiplies a by ‖Σ τ_t‖₁ over its length; here it is the sum.

    Example:
        >>> tau = {"blocks": {"scale": jnp.ones((3, 1))}, "projection": jnp.ones(1)}
        >>> merged = lines(tau, [tau, tau], scaling_coef=0.5)
        >>> merged["blocks"]["scale"].ravel(), merged["projection"]
        (Array([2. , 2.5, 3. ], dtype=float32), Array([2.], dtype=float32))
    """
    if not shallow >= 0:
        raise ValueError(
            f"shallow is the first layers' coefficient times the number of tasks, 0 or more; got {shallow}"
        )
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")
    total = combine(taus)

    def scaled(path: str, leaf: Array) -> Array:
        if stacked is None or stacked not in path.split("/"):
            return leaf * (shallow / len(taus))
        depths = np.linspace(0, 1, leaf.shape[0]).reshape(-1, *[1] * (leaf.ndim - 1))
        coefs = shallow / len(taus) + jnp.asarray(scaling_coef).astype(leaf.dtype) * depths.astype(leaf.dtype)
        return leaf * coefs

    moves = [scaled(path, jnp.asarray(leaf)) for path, leaf in trees.flatten_paths(total).items()]
    return apply_task_vector(pretrained, jax.tree.unflatten(jax.tree.structure(total), moves))

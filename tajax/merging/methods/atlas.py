"""aTLAS: anisotropic scaling of the task vectors, a coefficient for each parameter block, learned with labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tajax.losses import cross_entropy
from tajax.merging.coefficients import Coefs, Granularity, learn, move
from tajax.rules import STACKED
from tajax.types import ApplyFn, Batch, Head, Params


def atlas(pretrained: Params, taus: Sequence[Params], *, coefs: Coefs, stacked: str | None = STACKED) -> Params:
    """θ₀ + Σ_t Λ_t τ_t, in which Λ_t multiplies each parameter block of τ_t by a number of its own, of any sign.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        coefs: Λ from `fit_atlas`: by path [T], or [T, L] where a leaf stacks layers; or [T].
        stacked: the node below which leaves have the layers along their leading axis; None if there is none.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: there are no vectors, one differs from `pretrained`, or `coefs` does not fit them.

    Source:
        Zhang et al. 2024, "Knowledge Composition using Task Vectors with Learned Anisotropic Scaling", §3 and §4.2.

    Example:
        >>> import jax.numpy as jnp
        >>> coefs = {"b": jnp.array([-1.0]), "w": jnp.array([0.5])}
        >>> atlas({"b": jnp.zeros(1), "w": jnp.zeros(1)}, [{"b": jnp.ones(1), "w": jnp.ones(1)}], coefs=coefs)
        {'b': Array([-1.], dtype=float32), 'w': Array([0.5], dtype=float32)}
    """
    return move(pretrained, taus, coefs, stacked=stacked)


def fit_atlas(
    encode: ApplyFn,
    pretrained: Params,
    taus: Mapping[str, Params],
    batches: Mapping[str, Iterable[Batch]],
    heads: Mapping[str, Head],
    *,
    granularity: Granularity = "layer",
    steps: int = 320,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    stacked: str | None = STACKED,
) -> dict[str, Coefs]:
    """The Λ that minimise Σ_t E cross-entropy of the merged model on labelled examples, from 0 by AdamW.

    Gradients are clipped to length 1. What is returned is where the last step ends; the released code keeps the epoch
    that is best on the same validation images, and takes 20 of them: 320 steps are as many passes over 256 images in
    batches of 16.

    Args:
        encode: the forward pass of the models.
        pretrained: θ₀.
        taus: the task vector of each task.
        batches: of each task, with labels.
        heads: of each task.
        granularity: `"layer"` for a coefficient of each task and each layer of each leaf, `"task"` for one a task.
        steps: of AdamW, at least 1.
        learning_rate: of AdamW.
        weight_decay: of AdamW, decoupled.
        stacked: as in `atlas`.

    Returns:
        `coefs` for `atlas`.

    Raises:
        ValueError: as `tajax.merging.coefficients.learn`.
    """
    return {
        "coefs": learn(
            cross_entropy,
            encode,
            pretrained,
            taus,
            batches,
            heads,
            granularity=granularity,
            initial=0.0,
            steps=steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clip_norm=1.0,
            stacked=stacked,
        )
    }

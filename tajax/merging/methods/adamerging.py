"""AdaMerging: coefficients at which the merged model is most certain of what it predicts, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tajax.losses import entropy
from tajax.merging.coefficients import Coefs, Granularity, learn, move
from tajax.rules import STACKED
from tajax.types import ApplyFn, Batch, Head, Params


def adamerging(pretrained: Params, taus: Sequence[Params], *, coefs: Coefs, stacked: str | None = STACKED) -> Params:
    """θ₀ + Σ_t λ_t τ_t with a coefficient for each task, or λ_t^l for each task and each layer of each leaf.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        coefs: λ from `fit_adamerging`: [T], or by path [T], [T, L] where a leaf stacks layers.
        stacked: the node below which leaves have the layers along their leading axis; None if there is none.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: there are no vectors, one differs from `pretrained`, or `coefs` does not fit them.

    Source:
        Yang et al. 2024, "AdaMerging: Adaptive Model Merging for Multi-Task Learning", §3.

    Example:
        >>> import jax.numpy as jnp
        >>> adamerging({"w": jnp.zeros(1)}, [{"w": jnp.ones(1)}, {"w": jnp.full(1, 4.0)}], coefs=jnp.array([1.0, 0.5]))
        {'w': Array([3.], dtype=float32)}
    """
    return move(pretrained, taus, coefs, stacked=stacked)


def fit_adamerging(
    encode: ApplyFn,
    pretrained: Params,
    taus: Mapping[str, Params],
    batches: Mapping[str, Iterable[Batch]],
    heads: Mapping[str, Head],
    *,
    granularity: Granularity = "layer",
    steps: int = 500,
    learning_rate: float = 1e-3,
    initial: float = 0.3,
    stacked: str | None = STACKED,
) -> dict[str, Coefs]:
    """The λ in [0, 1] that minimise the entropy of the merged model's predictions, Σ_t E_x H(p(x; θ(λ))), by Adam.

    The paper adapts to the unlabelled *test* images, all of them; any will do. A step sees one batch of each task, in
    the order in which `batches` has them, and costs a forward and a backward pass on each. With one coefficient a task
    and a linearised `encode` every image goes through the encoder once, whatever the number of steps.

    Args:
        encode: the forward pass of the models.
        pretrained: θ₀.
        taus: the task vector of each task.
        batches: of each task, of 16 in the paper; no label is read.
        heads: of each task.
        granularity: `"task"` for one coefficient a task, `"layer"` for one of each task and each layer of each leaf.
        steps: of Adam, at least 1.
        learning_rate: of Adam.
        initial: where all coefficients begin.
        stacked: as in `adamerging`.

    Returns:
        `coefs` for `adamerging`.

    Raises:
        ValueError: as `tajax.merging.coefficients.learn`.
    """
    return {
        "coefs": learn(
            lambda logits, labels: entropy(logits),
            encode,
            pretrained,
            taus,
            batches,
            heads,
            granularity=granularity,
            initial=initial,
            steps=steps,
            learning_rate=learning_rate,
            bounds=(0.0, 1.0),
            stacked=stacked,
        )
    }

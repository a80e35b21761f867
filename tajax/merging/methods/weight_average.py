"""Weight averaging: the mean of the fine-tuned models."""

from __future__ import annotations

from collections.abc import Sequence

from tajax import trees
from tajax.task_vectors import apply_task_vector, combine
from tajax.types import Params


def weight_average(pretrained: Params, taus: Sequence[Params]) -> Params:
    """The mean of the fine-tuned models, θ₀ + (1/T) Σ_t τ_t. Nothing to choose.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: there are no vectors, or one differs from `pretrained` in a path or shape.

    Source:
        Wortsman et al. 2022, "Model Soups", §2.

    Example:
        >>> weight_average({"w": 1.0}, [{"w": 2.0}, {"w": -5.0}])
        {'w': Array(-0.5, dtype=float32)}
    """
    trees.check_taus(taus, pretrained)
    return apply_task_vector(pretrained, combine(taus), 1 / len(taus))

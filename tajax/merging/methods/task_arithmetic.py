"""Task arithmetic: the sum of the task vectors."""

from __future__ import annotations

from collections.abc import Sequence

from jax.typing import ArrayLike

from tajax import trees
from tajax.task_vectors import apply_task_vector, combine
from tajax.types import Params


def task_arithmetic(pretrained: Params, taus: Sequence[Params], *, scaling_coef: ArrayLike = 1.0) -> Params:
    """The pre-trained model moved along the sum of all task vectors, θ₀ + λ Σ_t τ_t.

    Args:
        pretrained: θ₀.
        taus: the task vectors, trees with the paths and shapes of `pretrained`.
        scaling_coef: λ, one for all tasks; chosen on validation data, usually well below 1.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: there are no vectors, or one differs from `pretrained` in a path or shape.

    Source:
        Ilharco et al. 2023, "Editing Models with Task Arithmetic", §4.

    Example:
        >>> task_arithmetic({"w": 1.0}, [{"w": 2.0}, {"w": -5.0}], scaling_coef=0.5)
        {'w': Array(-0.5, dtype=float32)}
    """
    trees.check_taus(taus, pretrained)
    return apply_task_vector(pretrained, combine(taus), scaling_coef)

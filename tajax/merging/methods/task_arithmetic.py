"""Task arithmetic: the sum of the task vectors."""

from __future__ import annotations

from collections.abc import Sequence

from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from tajax import trees
from tajax.task_vectors import apply_task_vector, check_scalar, combine
from tajax.types import Params


def task_arithmetic(
    pretrained: Params,
    taus: Sequence[Params],
    *,
    scaling_coef: ArrayLike = 1.0,
    coefs: Sequence[ArrayLike] | Float[Array, " T"] | None = None,
) -> Params:
    """The pre-trained model moved along a sum of the task vectors, θ₀ + λ Σ_t c_t τ_t.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        scaling_coef: λ, one for all tasks; chosen on validation data, usually well below 1.
        coefs: c [T], one for each task beside λ; all ones by default.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: there are no vectors, one differs from `pretrained` in a path or shape, there are not as many
            `coefs` as vectors, or `scaling_coef` is several numbers.
        TypeError: a coefficient is not a real number.

    Source:
        Ilharco et al. 2023, "Editing Models with Task Arithmetic", §4.

    Example:
        >>> task_arithmetic({"w": 1.0}, [{"w": 2.0}, {"w": -5.0}], scaling_coef=0.5)
        {'w': Array(-0.5, dtype=float32)}
        >>> task_arithmetic({"w": 1.0}, [{"w": 2.0}, {"w": -5.0}], coefs=[0.5, 0.2])
        {'w': Array(1., dtype=float32)}
    """
    trees.check_taus(taus, pretrained)
    check_scalar(scaling_coef, "scaling_coef")
    return apply_task_vector(pretrained, combine(taus, coefs), scaling_coef)

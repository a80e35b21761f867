"""Merging methods: many task vectors, one model. Each is `(pretrained, taus, *, ...) -> params`, pure and jittable."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from tajax.merging.methods.dare import dare
from tajax.merging.methods.task_arithmetic import task_arithmetic
from tajax.merging.methods.ties import ties
from tajax.merging.methods.weight_average import weight_average
from tajax.types import MergeFn

__all__ = ["AFFINE", "METHODS", "UNSCALED", "compiled", "dare", "task_arithmetic", "ties", "weight_average"]

METHODS: Mapping[str, MergeFn] = {
    "dare": dare,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "weight_average": weight_average,
}
"""Every method by the name that configs and records use."""

AFFINE = frozenset({"dare", "task_arithmetic", "ties", "weight_average"})
"""The methods whose model is θ₀ + λ g(τ₁, …, τ_T) with one vector g for every θ₀ and λ, their model around zero.

A run measures all λ along that vector, and refuses the methods that have none."""

UNSCALED = frozenset({"weight_average"})
"""The methods without a λ: a run tunes none and measures θ₀ + g."""


def compiled(method: MergeFn, *, donate: bool = False, **options: Any) -> MergeFn:
    """A method under `jax.jit`: one fused pass over the parameters, without a copy of any vector.

    Args:
        method: one of `METHODS`, or any function with their signature.
        donate: let the result take the memory of `pretrained`, which is gone afterwards. For the last merge of a run.
        **options: options that are known when compiling, such as the `density` of TIES.

    Returns:
        `(pretrained, taus, **options) -> params`. Options given to it, such as `scaling_coef`, are arguments of the
        program: one compilation serves all their values.

    Raises:
        ValueError, TypeError: on the call, what the method raises for trees that differ. Nothing is compiled then, and
            nothing donated.

    Example:
        >>> import jax.numpy as jnp
        >>> merge = compiled(ties, density=0.5)
        >>> tau = {"w": jnp.array([4.0, 2.0])}
        >>> [merge({"w": jnp.zeros(2)}, [tau], scaling_coef=c)["w"].tolist() for c in (1.0, 0.5)]
        [[4.0, 0.0], [2.0, 0.0]]
    """
    return jax.jit(partial(method, **options), donate_argnums=(0,) if donate else ())

"""Merging methods: many task vectors, one model. Each is `(pretrained, taus, *, ...) -> params`, pure and jittable."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, get_args

import jax

from tajax.merging.method import FitFn, Method
from tajax.merging.methods.dare import dare, thin_first
from tajax.merging.methods.task_arithmetic import task_arithmetic
from tajax.merging.methods.ties import Agreement, ties, trim_first
from tajax.merging.methods.weight_average import weight_average
from tajax.options import Option
from tajax.types import MergeFn

__all__ = [
    "METHODS",
    "FitFn",
    "Method",
    "Option",
    "compiled",
    "dare",
    "task_arithmetic",
    "ties",
    "weight_average",
]

METHODS: Mapping[str, Method] = {
    "dare": Method(
        dare,
        options={
            "drop_rate": Option(0.5, "share of entries that DARE drops", lambda v: 0 <= v < 1, "a share below 1"),
        },
        affine=True,
        random=True,
        by_leaf=True,
        alone=thin_first,
        usual_coef=0.3,
    ),
    "task_arithmetic": Method(task_arithmetic, affine=True, by_leaf=True, usual_coef=0.3),
    "ties": Method(
        ties,
        options={
            "density": Option(
                0.2, "share of entries that TIES keeps", lambda v: 0 < v <= 1, "a share above 0, at most 1"
            ),
            "merge": Option(
                "mean",
                "what TIES makes of entries that agree, the paper's mean or fusion_bench's sum",
                choices=get_args(Agreement),
            ),
        },
        affine=True,
        by_leaf=True,
        alone=trim_first,
    ),
    "weight_average": Method(weight_average, affine=True, by_leaf=True, scaled=False),
}
"""Every method by the name that configs and records use: a row has all that a run needs to know of it."""


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

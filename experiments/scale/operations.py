"""Floating-point operations of a program, counted in the jaxpr: XLA counts the body of a scan once."""

from __future__ import annotations

import math
from typing import Any

from jax.extend import core as jex

__all__ = ["count"]

_PRODUCTS_NOT_COUNTED = frozenset({"ragged_dot_general", "ragged_dot", "scaled_dot", "pallas_call", "ffi_call"})


def count(jaxpr: Any) -> int:
    """2·M·N·K of every matrix product and convolution, on all devices together.

    The body of a scan counts as often as it runs, of the branches of a condition the one with the most. What is
    elementwise, a reduction or a movement of data counts nothing.

    Args:
        jaxpr: a `Jaxpr` or `ClosedJaxpr`, as `jax.stages.Traced.jaxpr`.

    Raises:
        ValueError: a while loop with products in it, whose length nobody knows, or a product of a kind that is not
            counted here.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> square = lambda a: jax.lax.scan(lambda b, _: (b @ b, None), a, length=5)[0]
        >>> count(jax.make_jaxpr(square)(jnp.ones((10, 10))))
        10000
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jaxpr
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, features = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // kernel[features]
    if name in _PRODUCTS_NOT_COUNTED:
        raise ValueError(f"{name} is not counted: its operations do not stand in the shapes alone")
    if name == "cond":
        return max(map(count, params["branches"]))
    inside = sum(map(count, _programs(params)))
    if name == "scan":
        return params["length"] * inside
    if name == "while" and inside:
        raise ValueError("a while loop with matrix products in it: how often it runs does not stand in the jaxpr")
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"]) * inside
    return inside


def _programs(params: dict[str, Any]) -> list[Any]:
    """The programs among the parameters of an operation; rules of custom derivatives are functions, no programs."""
    kinds = (jex.Jaxpr, jex.ClosedJaxpr)
    return [value for value in params.values() if isinstance(value, kinds)]

"""Methods within methods: what another may be wrapped around, by name, and the vector that it then makes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax.merging.methods.iso_c import iso_c
from tajax.merging.methods.iso_cts import iso_cts
from tajax.merging.methods.star import star
from tajax.merging.methods.task_arithmetic import task_arithmetic
from tajax.merging.methods.ties import ties
from tajax.merging.methods.tsv_m import tsv_m
from tajax.merging.methods.weight_average import weight_average
from tajax.merging.methods.wudi import wudi
from tajax.types import MergeFn, Params

Wrapped = Literal["iso_c", "iso_cts", "star", "task_arithmetic", "ties", "tsv_m", "weight_average", "wudi"]

_METHODS: Mapping[str, MergeFn] = MappingProxyType(
    {
        "iso_c": iso_c,
        "iso_cts": iso_cts,
        "star": star,
        "task_arithmetic": task_arithmetic,
        "ties": ties,
        "tsv_m": tsv_m,
        "weight_average": weight_average,
        "wudi": wudi,
    }
)
"""Methods that need no data, do not draw, and move θ₀ along one vector."""


def check_wrapped(merge: str | MergeFn) -> None:
    """Raises `ValueError` unless it is a function or one of `Wrapped`."""
    if isinstance(merge, str) and merge not in _METHODS:
        raise ValueError(f"merge is {merge!r}, want a function or one of {', '.join(map(repr, get_args(Wrapped)))}")


def around_zero(
    merge: str | MergeFn,
    taus: Sequence[Params],
    shared: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Params:
    """The model that a method makes around zero: its vector at λ = 1, which θ₀ would round.

    Args:
        merge: one of `Wrapped`, or a function.
        taus: T task vectors.
        shared: options of whatever is wrapped around it, of which a method that has a name gets those that it takes.
        options: its own.

    Returns:
        A tree like the first vector, in float32 or wider.
    """
    if not isinstance(merge, str):
        return merge(jax.tree.map(_zeros, taus[0]), taus, **options)
    method = _METHODS[merge]
    taken = inspect.signature(method).parameters
    named = {keyword: value for keyword, value in shared.items() if keyword in taken}
    return method(jax.tree.map(_zeros, taus[0]), taus, **named, **options)


def _zeros(leaf: ArrayLike) -> Array:
    return jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf, jnp.float32))

"""One operation of a program that JAX has traced, done again on other values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def operate(eqn: Any, arrays: Sequence[Any]) -> list[Any]:
    """The outputs of an equation of a jaxpr on these inputs, literals among them.

    Example:
        >>> import jax
        >>> (eqn,) = jax.make_jaxpr(lambda x, y: x - y)(1.0, 1.0).eqns
        >>> float(operate(eqn, [5.0, 3.0])[0])
        2.0
    """
    bound = eqn.primitive.get_bind_params(eqn.params)
    subfuns, params = bound if isinstance(bound, tuple) else ((), bound)  # JAX 0.10.1 and before, and since
    with eqn.ctx.manager:  # in what precision, for example
        found = eqn.primitive.bind(*subfuns, *arrays, **params)
    return list(found) if eqn.primitive.multiple_results else [found]

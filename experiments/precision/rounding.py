"""A CPU that rounds the factors of float32 products as an accelerator does, for a whole process.

What a GPU or a TPU does to a product of float32 matrices that nobody asked to be more exact: the mantissas of both
factors are cut to 10 bits (TF32) or 7 (bfloat16), the products are added up in float32. It happens where XLA meets the
product, behind all differentiation, so that products of gradients and tangents are rounded as well, and those that ask
for `Precision.HIGHEST` are not. Here both factors are rounded to the nearest, ties to even.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax._src.lax import lax as internal  # the lowering that JAX has for a CPU has no public name
from jax.interpreters import mlir

MANTISSA_BITS = {"tf32": 10, "bf16_products": 7}
"""Of the factors, by the kind of rounding."""

_EXACTLY = functools.partial(internal._dot_general_lower, platform="cpu")
_EXPONENT_BITS = 8  # as of float32, in TF32 and bfloat16 alike


def round_products(mantissa_bits: int) -> None:
    """From now on every float32 product that this process compiles for a CPU has factors of so many bits.

    To be called before anything is compiled: what is compiled already stays as it is.
    """

    def rounded(lhs: jax.Array, rhs: jax.Array, **how: object) -> jax.Array:
        pair = (jax.lax.reduce_precision(x, _EXPONENT_BITS, mantissa_bits) for x in (lhs, rhs))
        return jax.lax.dot_general_p.bind(*pair, **how | {"precision": (jax.lax.Precision.HIGHEST,) * 2})

    lower = mlir.lower_fun(rounded, multiple_results=False)

    def rule(ctx, lhs, rhs, **how):
        asked = how["precision"]
        exact = asked is not None and asked != (jax.lax.Precision.DEFAULT,) * 2
        if exact or {value.dtype for value in ctx.avals_in} != {jnp.dtype(jnp.float32)}:
            return _EXACTLY(ctx, lhs, rhs, **how)
        return lower(ctx, lhs, rhs, **how)

    mlir.register_lowering(jax.lax.dot_general_p, rule, platform="cpu")

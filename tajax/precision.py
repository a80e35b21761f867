"""How exactly an encoder computes, as a property of its function: whoever differentiates it gets the same products.

What goes into a product of float32, and what everything else is computed in:

| precision | on a CPU | on NVIDIA cards since Ampere | on a TPU |
|---|---|---|---|
| `highest` | float32 | float32 | float32 |
| `default` | float32 | TF32, 10 bits of mantissa | bfloat16, 7 bits |
| `bf16` | bfloat16 throughout | bfloat16 throughout | bfloat16 throughout |

With `bf16` an encoder computes in bfloat16 and nothing is kept in it: θ, θ₀, task vectors, gradients and moments are
float32 and cast where they are used; the statistics of layer norms, the softmax, the features and their derivatives are
float32, too. On every device and in every precision these are float32: heads and their products with features, the
sums over vectors of linearised models, products of the NTK, factors of curvature, what merging decomposes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from tajax.types import ApplyFn, Precision

DTYPES: Mapping[Precision, DTypeLike] = {"highest": jnp.float32, "default": jnp.float32, "bf16": jnp.bfloat16}
"""What an encoder is to compute in."""

DEFAULT_PRODUCTS: Mapping[str, str] = {
    "cpu": "float32",
    "gpu": "float32, TF32 on cards that have it",
    "tpu": "bfloat16",
}
"""The factors of a product of float32 by JAX's name of a platform, if nobody asks for more."""


def products(precision: Precision, platform: str) -> str:
    """What the factors of an encoder's products are rounded to on a platform, in words.

    Example:
        >>> products("default", "tpu"), products("bf16", "cpu"), products("highest", "gpu")
        ('bfloat16', 'bfloat16', 'float32')
    """
    if precision == "default":
        return DEFAULT_PRODUCTS.get(platform, "what the device makes of float32")
    return jnp.dtype(DTYPES[precision]).name


def in_float32(apply: ApplyFn) -> ApplyFn:
    """The same function with float32 in its products on every device, and in those of its derivatives.

    A product says in a program how exact it is to be, and hands that on to what is derived from it.

    Example:
        >>> exact = in_float32(lambda params, x: x @ params)
        >>> "HIGHEST" in str(jax.make_jaxpr(exact)(jnp.ones((3, 2)), jnp.ones((4, 3))))
        True
    """

    def exact(params: Any, /, *inputs: Any, **options: Any) -> Array:
        with jax.default_matmul_precision("highest"):
            return apply(params, *inputs, **options)

    return exact

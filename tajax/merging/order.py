"""Order statistics over all leaves of a tree, exact, without sorting or copying them into one vector."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float


def kth_largest(leaves: Sequence[Array], k: int) -> Float[Array, ""]:
    """The number of which k − 1 others are larger, or as large, among the entries of all leaves together.

    It is found bit by bit: as many counts over the leaves as a float has bits.

    Args:
        leaves: arrays of one dtype, any signs, no NaN.
        k: from 1, the largest, to the number of entries, the smallest. A Python number, known when compiling.

    Example:
        >>> leaves = [jnp.array([1.0, -5.0]), jnp.array([3.0, 0.0])]
        >>> [float(kth_largest(leaves, k)) for k in (1, 2, 3, 4)]
        [3.0, 1.0, 0.0, -5.0]
    """
    bits = 8 * leaves[0].dtype.itemsize
    word = np.dtype(f"uint{bits}").type
    sign, all_ones = word(1 << (bits - 1)), word(~word(0))

    def to_rank(leaf: Array) -> Array:
        """Bits whose order as integers is that of the floats: of negative ones they run the other way."""
        raw = jax.lax.bitcast_convert_type(leaf, word)
        return raw ^ jnp.where(raw >= sign, all_ones, sign)

    ranks = [to_rank(leaf) for leaf in leaves]

    def refine(i: Array, threshold: Array) -> Array:
        higher = threshold | (word(1) << (word(bits - 1) - i.astype(word)))
        enough = sum(jnp.sum(rank >= higher, dtype=jnp.uint32) for rank in ranks) >= jnp.uint32(k)
        return jnp.where(enough, higher, threshold)

    rank = jax.lax.fori_loop(0, bits, refine, jnp.zeros((), word))
    return jax.lax.bitcast_convert_type(rank ^ jnp.where(rank >= sign, sign, all_ones), leaves[0].dtype)


def count_entries(leaves: Sequence[Array]) -> int:
    """How many entries all leaves have together."""
    return sum(math.prod(leaf.shape) for leaf in leaves)

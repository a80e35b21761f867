"""Order statistics over all leaves of a tree, exact, without sorting or copying them into one vector."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from tajax import trees


def kth_largest(leaves: Sequence[ArrayLike], k: int, *, magnitudes: bool = False) -> Float[Array, ""]:
    """The number of which k − 1 others are larger, or as large, among the entries of all leaves together.

    It is found bit by bit: as many counts over the leaves as a float has bits. Where leaves are there, and not traced,
    each count is a program of its own, and no leaf is copied: XLA copies what a loop in a program goes through.

    Args:
        leaves: arrays of one dtype, any signs, no NaN. NumPy's may be memory maps of files.
        k: from 1, the largest, to the number of entries, the smallest. A Python number, known when compiling.
        magnitudes: whether it is found among the absolute values.

    Example:
        >>> leaves = [jnp.array([1.0, -5.0]), jnp.array([3.0, 0.0])]
        >>> [float(kth_largest(leaves, k)) for k in (1, 2, 3, 4)]
        [3.0, 1.0, 0.0, -5.0]
    """
    dtype = trees.dtype_of(leaves[0])
    word, sign, all_ones = _words(dtype)
    bits = 8 * np.dtype(word).itemsize

    def refine(i: ArrayLike, threshold: Array) -> Array:
        higher = threshold | (word(1) << (word(bits - 1) - jnp.asarray(i, word)))
        enough = sum(_count_from(leaf, higher, magnitudes=magnitudes) for leaf in leaves) >= jnp.uint32(k)
        return jnp.where(enough, higher, threshold)

    rank = jnp.zeros((), word)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        rank = jax.lax.fori_loop(0, bits, refine, rank)
    else:
        for i in range(bits):
            rank = refine(i, rank)
    return jax.lax.bitcast_convert_type(rank ^ jnp.where(rank >= sign, sign, all_ones), dtype)


@functools.partial(jax.jit, static_argnames="magnitudes")
def _count_from(leaf: ArrayLike, rank: Array, *, magnitudes: bool) -> Array:
    """How many entries have a rank or a higher one.

    Ranks are bits whose order as integers is that of the floats: of negative ones they run the other way.
    """
    entries = jnp.abs(leaf) if magnitudes else jnp.asarray(leaf)
    word, sign, all_ones = _words(entries.dtype)
    raw = jax.lax.bitcast_convert_type(entries, word)
    return jnp.sum((raw ^ jnp.where(raw >= sign, all_ones, sign)) >= rank, dtype=jnp.uint32)


def _words(dtype: DTypeLike) -> tuple[type[np.unsignedinteger], np.unsignedinteger, np.unsignedinteger]:
    """The integers of a float's size, that of its sign, and that of all bits."""
    bits = 8 * jnp.dtype(dtype).itemsize
    word = np.dtype(f"uint{bits}").type
    return word, word(1 << (bits - 1)), word(~word(0))


def count_entries(leaves: Sequence[ArrayLike]) -> int:
    """How many entries all leaves have together."""
    return sum(math.prod(np.shape(leaf)) for leaf in leaves)

"""Trees on the host: NumPy arrays, in which a leaf of zeros takes no memory.

This is where a run keeps its task vectors: what a stage needs of them it puts on the devices, and lets go afterwards.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from tajax.types import Tree

__all__ = ["distinct", "fetch", "moves", "zeros"]


def fetch(tree: Tree) -> Tree:
    """The tree in NumPy, its leaves of zeros as views of a single zero, which take no memory and cannot be written to.

    Values and dtypes are kept to the bit, but for the sign of zeros in such a leaf. Waits for the device; not for use
    under `jit`. Of what is sharded over the devices of several processes give `Placement.host` of it.

    Example:
        >>> fetch({"w": jax.numpy.ones(2), "frozen": jax.numpy.zeros((1000, 1000))})["frozen"].base.nbytes
        4
    """

    def fetched(leaf: ArrayLike) -> np.ndarray:
        array = np.asarray(leaf)
        if not moves(array):
            return zeros(array.shape, array.dtype)
        # On a CPU that is a view, which would keep the copies on all devices.
        return array if array is leaf else array.copy()

    return jax.tree.map(fetched, tree)


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Zeros that take the memory of one: a view, which cannot be written to."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def distinct(leaf: np.ndarray) -> np.ndarray:
    """The leaf; of a view that repeats one entry, as that of `zeros`, this entry alone.

    Example:
        >>> distinct(zeros((2, 3), "float32")), distinct(np.arange(2))
        (array([0.], dtype=float32), array([0, 1]))
    """
    return leaf.reshape(-1)[:1] if leaf.size and not any(leaf.strides) else leaf


def moves(leaf: np.ndarray) -> bool:
    """Whether any entry is not zero, NaN among them.

    Example:
        >>> moves(zeros((2, 3), "float32")), moves(np.array([0.0, np.nan]))
        (False, True)
    """
    return bool(np.any(distinct(leaf)))

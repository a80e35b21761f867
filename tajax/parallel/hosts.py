"""What the processes of a run tell each other, as arrays on the host."""

from __future__ import annotations

from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Tree = TypeVar("Tree")


def rows_of_all(tree: Tree) -> Tree:
    """Arrays on the host with the rows of every process, in order; `tree` has those of this one."""
    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else tree


def from_first(tree: Tree) -> Tree:
    """The tree as the first process has it, bit for bit; the others give one with the same shapes and dtypes."""
    if jax.process_count() == 1:
        return tree
    as_bytes = jax.tree.map(lambda leaf: np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), tree)  # sums lose −0.0
    sent = multihost_utils.broadcast_one_to_all(as_bytes)
    return jax.tree.map(lambda leaf, sent: sent.view(np.asarray(leaf).dtype).reshape(np.shape(leaf)), tree, sent)

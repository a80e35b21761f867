"""Where the arrays of a training step live: from a mesh and the shapes of its arguments to shapes with shardings.

A new way of placing arrays is one function and one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tajax.finetune import TrainState
from tajax.parallel.devices import AXIS
from tajax.types import Batch, Head, Params

Tree = TypeVar("Tree")


class Arguments(NamedTuple):
    """What a training step is called with, in shapes."""

    state: TrainState
    pretrained: Params
    head: Head
    batch: Batch


def replicated(mesh: Mesh, given: Arguments) -> Arguments:
    """As `tajax.parallel.Replicated`: everything whole on every device, and the rows of the batch divided."""
    constants = whole(mesh, given[:3])
    return Arguments(*constants, placed(given.batch, NamedSharding(mesh, PartitionSpec(AXIS))))


PLACEMENTS: Mapping[str, Callable[[Mesh, Arguments], Arguments]] = {"replicated": replicated}
"""Ways of placing arrays by name, the names of `tajax.parallel.PLACEMENTS`."""


def whole(mesh: Mesh, tree: Tree) -> Tree:
    """The shapes of a tree, each leaf whole on every device."""
    return placed(tree, NamedSharding(mesh, PartitionSpec()))


def placed(tree: Tree, sharding: NamedSharding) -> Tree:
    """The shapes of a tree, all with one sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

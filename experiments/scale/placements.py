"""Where the arrays of a training step live: from devices and the shapes of its arguments to shapes with shardings.

A new way of placing arrays is one function and one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from tajax.finetune import TrainState
from tajax.parallel.devices import AXIS, mesh
from tajax.types import Batch, Head, Params

Tree = TypeVar("Tree")


class Arguments(NamedTuple):
    """What a training step is called with, in shapes."""

    state: TrainState
    pretrained: Params
    head: Head
    batch: Batch


class Placed(NamedTuple):
    """A training step of a placement."""

    arguments: Arguments
    """In shapes with shardings."""
    options: Mapping[str, Any]
    """What `tajax.finetune.make_train_step` is told of the placement."""


def replicated(devices: Sequence[jax.Device], given: Arguments) -> Placed:
    """As `tajax.parallel.Replicated`: everything whole on every device, and the rows of the batch divided."""
    rows = NamedSharding(mesh(devices), PartitionSpec(AXIS))
    return Placed(Arguments(*whole(devices, given[:3]), placed(given.batch, rows)), {})


PLACEMENTS: Mapping[str, Callable[[Sequence[jax.Device], Arguments], Placed]] = {"replicated": replicated}
"""Ways of placing arrays by name, the names of `tajax.parallel.PLACEMENTS`."""


def whole(devices: Sequence[jax.Device], tree: Tree) -> Tree:
    """The shapes of a tree, each leaf whole on every device."""
    return placed(tree, NamedSharding(mesh(devices), PartitionSpec()))


def placed(tree: Tree, sharding: NamedSharding) -> Tree:
    """The shapes of a tree, all with one sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

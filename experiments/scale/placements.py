"""Where the arrays of a training step live: from devices and the shapes of its arguments to shapes with shardings.

A new way of placing arrays is one function and one row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from tajax.finetune import TrainState
from tajax.mesh import ROWS, make_mesh
from tajax.parallel import Sharded
from tajax.parallel.devices import AXIS, mesh
from tajax.rules import DIVIDED
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


def shared(what: Literal["moments", "everything"], devices: Sequence[jax.Device], given: Arguments) -> Placed:
    """As `tajax.parallel.Sharded`, all devices one group."""
    placement = Sharded(devices, rule=DIVIDED, fsdp=len(devices), what=what)
    rows = NamedSharding(make_mesh(devices, len(devices)), PartitionSpec(ROWS))

    def divided(tree: Tree, *, moments: bool = False) -> Tree:
        return jax.tree.map(placed, tree, placement.shardings(tree, moments=moments))

    moments = divided(given.state.opt_state, moments=True)
    state = TrainState(divided(given.state.step), divided(given.state.trained), moments)
    arguments = Arguments(state, divided(given.pretrained), divided(given.head), placed(given.batch, rows))
    return Placed(arguments, {"placement": placement})


PLACEMENTS: Mapping[str, Callable[[Sequence[jax.Device], Arguments], Placed]] = {
    "replicated": replicated,
    "moments": functools.partial(shared, "moments"),
    "fsdp": functools.partial(shared, "everything"),
}
"""Ways of placing arrays by name, the names of `tajax.parallel.PLACEMENTS`."""


def whole(devices: Sequence[jax.Device], tree: Tree) -> Tree:
    """The shapes of a tree, each leaf whole on every device."""
    return placed(tree, NamedSharding(mesh(devices), PartitionSpec()))


def placed(tree: Tree, sharding: NamedSharding) -> Tree:
    """The shapes of a tree, all with one sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

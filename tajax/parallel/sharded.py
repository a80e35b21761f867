"""Parameters, task vectors and moments divided among devices, which give each other the layer that is computed.

A leaf is divided along its last axis if a family's rule names it and it has two axes or more; others are whole on every
device. Every device computes its own rows of a batch: before a layer it gathers the layer's parameters, and of their
gradients it keeps the sum of its own part (Rajbhandari et al. 2020, "ZeRO", §5: with `moments` the first of its stages,
with `fsdp` the third). XLA writes the communication from the shardings that are asked for here and in `tajax.mesh`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tajax.mesh import FSDP, ROWS, make_mesh
from tajax.parallel.devices import own
from tajax.parallel.placement import Step, Tree
from tajax.parallel.rows import Axes, DividedRows
from tajax.types import Batch

What = Literal["moments", "everything"]


class Sharded(DividedRows):
    """A `Placement` by which groups of devices share one copy of the parameters, or of the moments alone.

    Args:
        devices: from `devices_of_all`; all of this process by default.
        rule: a regular expression, searched for in the paths of leaves: which are divided.
        fsdp: devices of a group; those of one process by default.
        what: what is divided. Moments are read once a step: to divide them alone takes the least communication.

    Raises:
        ValueError: `fsdp` does not divide the number of devices.
    """

    def __init__(
        self, devices: Sequence[jax.Device] | None = None, *, rule: str, fsdp: int | None = None, what: What
    ) -> None:
        devices = jax.local_devices() if devices is None else list(devices)
        self._fsdp = len(own(devices)) or len(devices) if fsdp is None else fsdp
        if self._fsdp < 1 or len(devices) % self._fsdp:
            raise ValueError(
                f"fsdp is {self._fsdp}, which does not divide {len(devices)} devices into groups of that size. "
                f"Choose {_divisors(len(devices))}."
            )
        super().__init__(devices)
        self._rule, self._what = re.compile(rule), what

    def __str__(self) -> str:
        platform, shared = self._devices[0].platform, "moments" if self._what == "moments" else "parameters"
        return f"{len(self._devices)} × {platform}, {shared} divided by {self._fsdp}"

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return make_mesh(self._devices, self._fsdp)

    def _whole_mesh(self) -> tuple[Mesh, Axes]:
        return self._mesh, ROWS

    def shardings(self, tree: Tree, *, moments: bool = False) -> Tree:
        """Where `params` puts each leaf of a tree of arrays, or of their shapes.

        Raises:
            ValueError: the last axis of a leaf that the rule names is no multiple of `fsdp`; the leaf is named.
        """
        if self._what == "moments" and not moments:
            return jax.tree.map(lambda _: self._everywhere, tree)

        def of_leaf(path: Any, leaf: Any) -> NamedSharding:
            name, shape = jax.tree_util.keystr(path, simple=True, separator="/"), np.shape(leaf)
            if len(shape) < 2 or not self._rule.search(name):
                return self._everywhere
            if shape[-1] % self._fsdp:
                choices = _divisors(math.gcd(len(self._devices), shape[-1]))
                raise ValueError(
                    f"fsdp is {self._fsdp}, and leaf {name!r} has shape {shape}, whose last axis so many devices do "
                    f"not divide. Choose {choices}."
                )
            return NamedSharding(self._mesh, PartitionSpec(*[None] * (len(shape) - 1), FSDP))

        return jax.tree_util.tree_map_with_path(of_leaf, tree)

    def params(self, tree: Tree, *, moments: bool = False) -> Tree:
        """The tree with every leaf divided as the rule says, or whole on every device.

        Raises:
            ValueError: as `shardings`.
        """
        shardings = self.shardings(tree, moments=moments)
        if not self._several_processes:
            return jax.device_put(tree, shardings)

        def placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
            array = np.asarray(leaf)
            return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

        return jax.tree.map(placed, self.host(tree), shardings)

    def keep(self, tree: Tree, *, moments: bool = False) -> Tree:
        """In a step: the tree, each leaf where `params` puts it."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree, moments=moments))

    def compiled(self, step: Step[Tree]) -> Step[Tree]:
        """`step` as one program for the mesh, its first argument donated."""
        return _InMesh(self._mesh, jax.jit(step, donate_argnums=0))

    def shares(self, batch: Batch) -> Batch:
        """The batch with its rows divided among the devices, as of `batch`."""
        return self.batch(batch)

    def sum(self, step: Step[Tree]) -> Step[Tree]:
        """`step` as one program for the mesh on the whole batch: its sums are those of all rows."""
        return self._whole(step)

    def rows(self, step: Step[Tree]) -> Step[Tree]:
        """`step` as one program for the mesh on the whole batch: its rows are all of them, in their order."""
        return self._whole(step)

    def _whole(self, step: Step[Tree]) -> Step[Tree]:
        program: Step[Tree] = _InMesh(self._mesh, jax.jit(step, out_shardings=self._everywhere))
        return lambda *args: self.host(self._ended(program(*args)))

    def host(self, tree: Tree) -> Tree:
        """The tree with whole leaves: of several processes those that are divided come to the host of each."""

        def whole(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
                return leaf
            if leaf.is_fully_replicated:
                return leaf.addressable_data(0)
            return multihost_utils.process_allgather(leaf, tiled=True)

        return jax.tree.map(whole, tree)


class _InMesh:
    """A jitted function that is called, and lowered, where its mesh is the one that models find."""

    def __init__(self, mesh: Mesh, function: Any) -> None:
        self._mesh, self._function = mesh, function

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the function gives."""
        with jax.set_mesh(self._mesh):
            return self._function(*args, **options)

    def lower(self, *args: Any, **options: Any) -> jax.stages.Lowered:
        """The program for arguments of these shapes."""
        with jax.set_mesh(self._mesh):
            lowered: jax.stages.Lowered = self._function.lower(*args, **options)
            return lowered


def _divisors(number: int) -> str:
    return " or ".join(str(count) for count in range(1, number + 1) if number % count == 0)

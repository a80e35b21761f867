"""Parameters whole on every device, rows of a batch divided among them, sums reduced across. Nothing else says pmap.

Each process makes its own rows of a batch, and its devices share them; what is summed or put together comes back to
every process, the same to the bit in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tajax.parallel.devices import AXIS, mesh
from tajax.parallel.placement import Step, Tree
from tajax.parallel.rows import Axes, DividedRows
from tajax.types import Batch


class Replicated(DividedRows):
    """A `Placement` by which every device has all parameters; steps of `sum` and `rows` are pmapped.

    Args:
        devices: from `devices_of_all`; all of this process by default.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None) -> None:
        super().__init__(jax.local_devices() if devices is None else devices)

    def _whole_mesh(self) -> tuple[Mesh, Axes]:
        return mesh(self._devices), AXIS

    def __str__(self) -> str:
        return f"{len(self._devices)} × {self._devices[0].platform}"

    def shardings(self, tree: Tree, *, moments: bool = False) -> Tree:
        """Every leaf on every device."""
        return jax.tree.map(lambda _: self._everywhere, tree)

    def params(self, tree: Tree, *, moments: bool = False) -> Tree:
        """The tree with a copy of every leaf on every device."""
        if not self._several_processes:
            return jax.device_put(tree, self._everywhere)

        def placed(leaf: jax.Array) -> jax.Array:  # `device_put` would send every leaf to every process to compare it
            copies = [copy.data for copy in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape, self._everywhere, copies)

        return jax.tree.map(placed, jax.device_put(self.host(tree), NamedSharding(mesh(self._own), PartitionSpec())))

    def keep(self, tree: Tree, *, moments: bool = False) -> Tree:
        """The tree itself: what a step makes of whole leaves is whole."""
        return tree

    def compiled(self, step: Step[Tree]) -> Step[Tree]:
        """`step` as one program for all devices, its first argument donated."""
        return jax.jit(step, donate_argnums=0)

    def shares(self, batch: Batch) -> Batch:
        """The batch on the devices; on several of them every leaf has a leading axis of devices.

        Args and errors are those of `batch`.
        """
        if len(self._devices) == 1:
            return jax.device_put(batch, self._devices[0])
        cut = (len(self._own), -1)
        return self._placed(jax.tree.map(lambda a: a.reshape(*cut, *a.shape[1:]), self.pad(batch)))

    def sum(self, step: Step[Tree]) -> Step[Tree]:
        """`step` on every device on its share of the batch, its results summed."""
        return self._on_each(step, lambda sums: jax.lax.psum(sums, AXIS), out_axes=None)

    def rows(self, step: Step[Tree]) -> Step[Tree]:
        """`step` on every device on its share of the batch, its rows put together in their order."""
        if self._several_processes:
            return self._on_each(step, lambda rows: jax.lax.all_gather(rows, AXIS, tiled=True), out_axes=None)
        mapped = self._on_each(step, lambda rows: rows, out_axes=0)
        if len(self._devices) == 1:
            return mapped
        return lambda *args: jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), mapped(*args))

    def _on_each(self, step: Step[Tree], reduced: Callable[[Tree], Tree], *, out_axes: int | None) -> Step[Tree]:
        if len(self._devices) == 1:
            return jax.jit(step)

        def share(constants: tuple[Any, ...], batch: Batch) -> Tree:
            return reduced(step(*constants, batch))

        mapped = jax.pmap(share, axis_name=AXIS, in_axes=(None, 0), out_axes=out_axes, devices=self._devices)
        return lambda *args: self.host(self._ended(mapped(args[:-1], args[-1])))

    def host(self, tree: Tree) -> Tree:
        """The tree with this process's copy of every leaf that is replicated over several processes."""

        def copy(leaf: Any) -> Any:
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                return leaf.addressable_data(0)
            return leaf

        return jax.tree.map(copy, tree)

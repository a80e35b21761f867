"""Parameters whole on every device, rows of a batch divided among them, sums reduced across. Nothing else says pmap.

Each process makes its own rows of a batch, and its devices share them; what is summed or put together comes back to
every process, the same to the bit in all of them.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tajax.parallel.devices import AXIS, mesh, own, several_processes
from tajax.parallel.placement import Step, Tree
from tajax.types import Batch

_DELAY = 2  # steps: as far as `finetune.train` lets the host run ahead of the devices


class Replicated:
    """A `Placement` by which every device has all parameters; steps of `sum` and `rows` are pmapped.

    Args:
        devices: from `devices_of_all`; all of this process by default.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None) -> None:
        self._devices = jax.local_devices() if devices is None else list(devices)
        self._own = own(self._devices)
        self._several_processes = several_processes(self._devices)

    def __str__(self) -> str:
        return f"{len(self._devices)} × {self._devices[0].platform}"

    @functools.cached_property
    def _divided(self) -> NamedSharding:
        return NamedSharding(mesh(self._devices), PartitionSpec(AXIS))

    @functools.cached_property
    def _everywhere(self) -> NamedSharding:
        return NamedSharding(mesh(self._devices), PartitionSpec())

    def params(self, tree: Tree) -> Tree:
        """The tree with a copy of every leaf on every device."""
        if not self._several_processes:
            return jax.device_put(tree, self._everywhere)

        def placed(leaf: jax.Array) -> jax.Array:  # `device_put` would send every leaf to every process to compare it
            copies = [copy.data for copy in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape, self._everywhere, copies)

        return jax.tree.map(placed, jax.device_put(self.host(tree), NamedSharding(mesh(self._own), PartitionSpec())))

    def batch(self, batch: Tree) -> Tree:
        """The batch with its rows divided among the devices.

        Args:
            batch: with several processes this one's rows (`tajax.processes.share`), as many as any other's.

        Raises:
            ValueError: rows of one of several processes that its devices do not divide.
        """
        return self._placed(self.pad(batch) if isinstance(batch, Batch) else batch)

    def shares(self, batch: Batch) -> Batch:
        """The batch on the devices; on several of them every leaf has a leading axis of devices.

        Args and errors are those of `batch`.
        """
        if len(self._devices) == 1:
            return jax.device_put(batch, self._devices[0])
        cut = (len(self._own), -1)
        return self._placed(jax.tree.map(lambda a: a.reshape(*cut, *a.shape[1:]), self.pad(batch)))

    def _placed(self, batch: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self._divided, leaf), batch)

    def pad(self, batch: Batch) -> Batch:
        """The batch as NumPy arrays whose rows the devices of this process divide."""
        if not self._several_processes:
            batch = pad_batch(batch, len(self._own))
        elif len(batch.label) % len(self._own):
            raise ValueError(
                f"a batch of {len(batch.label)} rows on {len(self._own)} devices of one of several processes"
            )
        return jax.tree.map(np.asarray, batch)

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
        # On a CPU a collective waits in a thread of a pool that all programs share: with several of them in flight,
        # none may have all its devices at the collective, and XLA ends the process after 40 seconds. So one at a time.
        cpu = self._devices[0].platform == "cpu"
        ended = jax.block_until_ready if cpu else lambda results: results
        return lambda *args: self.host(ended(mapped(args[:-1], args[-1])))

    def host(self, tree: Tree) -> Tree:
        """The tree with this process's copy of every leaf that is replicated over several processes."""

        def copy(leaf: Any) -> Any:
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                return leaf.addressable_data(0)
            return leaf

        return jax.tree.map(copy, tree)

    def largest(self) -> Callable[[int], int]:
        """A function `number -> the largest number of any process`, of two calls ago where there are several."""
        if not self._several_processes:
            return lambda number: number
        reduced = jax.jit(lambda numbers: numbers.max(), out_shardings=self._everywhere)
        on_the_way: collections.deque[jax.Array] = collections.deque()

        def exchange(number: int) -> int:
            numbers = jax.make_array_from_process_local_data(self._divided, np.full(len(self._own), number, np.int32))
            on_the_way.append(reduced(numbers))
            return int(on_the_way.popleft()) if len(on_the_way) > _DELAY else 0

        return exchange

    def check_batch_size(self, batch_size: int, *, what: str) -> None:
        """Raises ValueError if the rows of a batch cannot be divided among the devices of several processes.

        One process pads its batches instead, of any size.
        """
        count = len(self._devices)
        if self._several_processes and batch_size % count:
            below = batch_size // count * count
            choices = " or ".join(str(size) for size in (below, below + count) if size)
            processes = len({device.process_index for device in self._devices})
            raise ValueError(
                f"{what} is {batch_size}, which the {count} devices of {processes} processes do not divide. "
                f"Choose a multiple of {count}, such as {choices}."
            )


def pad_batch(batch: Batch, multiple: int) -> Batch:
    """The batch with rows of mask False added until `multiple` divides its size.

    Args:
        batch: leaves with a leading axis of B rows.
        multiple: usually the number of devices.

    Returns:
        A batch of ⌈B / multiple⌉ · multiple rows; the given one if nothing is missing.
    """
    missing = -len(batch.label) % multiple
    if not missing:
        return batch

    def longer(leaf: Any) -> np.ndarray:
        rows = np.asarray(leaf)
        return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])

    return jax.tree.map(longer, batch)

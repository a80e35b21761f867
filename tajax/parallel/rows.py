"""What placements have in common: the rows of a batch, divided among all devices, each process's own on its own."""

from __future__ import annotations

import abc
import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tajax.parallel.devices import own, several_processes
from tajax.parallel.placement import Tree
from tajax.types import Batch

Axes: TypeAlias = str | tuple[str, ...]

_DELAY = 2  # steps: as far as `finetune.train` lets the host run ahead of the devices


class DividedRows(abc.ABC):
    """Batches of a `Placement` on some devices.

    Args:
        devices: of all processes, process after process.
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self._devices = list(devices)
        self._own = own(self._devices)
        self._several_processes = several_processes(self._devices)

    @abc.abstractmethod
    def _whole_mesh(self) -> tuple[Mesh, Axes]:
        """The devices, and the axes along which they stand in their order."""

    @functools.cached_property
    def _divided(self) -> NamedSharding:
        """Of a leaf whose leading axis is divided among the devices."""
        mesh, axes = self._whole_mesh()
        return NamedSharding(mesh, PartitionSpec(axes))

    @functools.cached_property
    def _everywhere(self) -> NamedSharding:
        """Of a leaf that is whole on each."""
        return NamedSharding(self._whole_mesh()[0], PartitionSpec())

    def batch(self, batch: Tree) -> Tree:
        """The batch with its rows divided among the devices.

        Args:
            batch: with several processes this one's rows (`tajax.processes.share`), as many as any other's.

        Raises:
            ValueError: rows of one of several processes that its devices do not divide.
        """
        return self._placed(self.pad(batch) if isinstance(batch, Batch) else batch)

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

    def _ended(self, results: Tree) -> Tree:
        """The results, on a CPU when they are there.

        A collective waits there in a thread of a pool that all programs share: with several of them in flight, none
        may have all its devices at the collective, and XLA ends the process after 40 seconds. So one at a time.
        """
        return jax.block_until_ready(results) if self._devices[0].platform == "cpu" else results


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

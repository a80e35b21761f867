"""Every device of every process: batches divided among them, sums reduced across. Nothing else says pmap or meshes.

A run has one process or several (`tajax.processes`). Each process makes its own rows of a batch, and its devices share
them; what is summed or put together comes back to every process, the same to the bit in all of them.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tajax.types import Batch

Tree = TypeVar("Tree")

AXIS = "devices"
_DELAY = 2  # steps: as far as `finetune.train` lets the host run ahead of the devices


def local_devices(count: int | None = None) -> list[jax.Device]:
    """The first `count` local devices (all of them by default).

    Args:
        count: how many are wanted.

    Returns:
        The devices, in JAX's order.

    Raises:
        ValueError: more are asked for than are present, or fewer than one.
    """
    present = jax.local_devices()
    if count is None:
        return present
    if not 1 <= count <= len(present):
        raise ValueError(
            f"{count} devices asked for, but this process has {len(present)} ({present[0].platform}). "
            f"Ask for 1 to {len(present)}, or leave the number out to use all."
        )
    return present[:count]


def devices_of_all(count: int | None = None) -> list[jax.Device]:
    """The first `count` local devices of every process (all of them by default), process after process.

    Raises:
        ValueError: as `local_devices`; or the processes have different numbers of devices, whose shares of a batch
            could not be equal.
    """
    local_devices(count)
    owned: dict[int, list[jax.Device]] = {}
    for device in sorted(jax.devices(), key=lambda device: (device.process_index, device.id)):
        owned.setdefault(device.process_index, []).append(device)
    chosen = [devices[:count] for devices in owned.values()]
    if len(set(map(len, chosen))) > 1:
        counts = ", ".join(f"process {index}: {len(devices)}" for index, devices in owned.items())
        raise ValueError(
            f"the processes have different numbers of devices ({counts}). Give as many to each, or ask for "
            f"{min(map(len, owned.values()))} of each."
        )
    return [device for devices in chosen for device in devices]


def check_batch_size(batch_size: int, devices: Sequence[jax.Device], *, what: str) -> None:
    """Raises ValueError if the rows of a batch cannot be divided among the devices of several processes.

    One process pads its batches instead, of any size.
    """
    if _several_processes(devices) and batch_size % len(devices):
        below, count = batch_size // len(devices) * len(devices), len(devices)
        choices = " or ".join(str(size) for size in (below, below + count) if size)
        processes = len({device.process_index for device in devices})
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
    rows = [np.asarray(leaf) for leaf in batch]
    leaves: list[Any] = [np.concatenate([a, np.zeros((missing, *a.shape[1:]), a.dtype)]) for a in rows]
    return Batch(*leaves)


def sum_over_devices(step: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
    """`step` compiled to run on every device on its share of the batch, its results summed.

    Args:
        step: a pure function `(*constants, batch) -> sums`, where `sums` is a pytree of sums over rows.
            Rows whose mask is False must add nothing.
        devices: from `devices_of_all`; all of this process by default.

    Returns:
        A function with the signature of `step`, for batches from `share_batch` on the same devices. Integer sums do
        not depend on the number of devices or processes.
    """
    return _on_each(step, _all_or(devices), lambda sums: jax.lax.psum(sums, AXIS), out_axes=None)


def rows_over_devices(step: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
    """`step` compiled to run on every device on its share of the batch, its rows put together in their order.

    Args:
        step: a pure function `(*constants, batch) -> rows`, a pytree whose leaves have the rows of the batch first.
        devices: from `devices_of_all`; all of this process by default.

    Returns:
        A function with the signature of `step`, for batches from `share_batch` on the same devices. Rows added by its
        padding come last. With several processes each of them gets the rows of all.
    """
    devices = _all_or(devices)
    if _several_processes(devices):
        return _on_each(step, devices, lambda rows: jax.lax.all_gather(rows, AXIS, tiled=True), out_axes=None)
    mapped = _on_each(step, devices, lambda rows: rows, out_axes=0)
    if len(devices) == 1:
        return mapped
    return lambda *args: jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), mapped(*args))


def _on_each(step: Callable, devices: Sequence[jax.Device], reduced: Callable, *, out_axes: int | None) -> Callable:
    if len(devices) == 1:
        return jax.jit(step)

    def share(constants: tuple[Any, ...], batch: Batch) -> Any:
        return reduced(step(*constants, batch))

    mapped = jax.pmap(share, axis_name=AXIS, in_axes=(None, 0), out_axes=out_axes, devices=devices)
    # On a CPU a collective waits in a thread of a pool that all programs share: with several of them in flight, none
    # may have all its devices at the collective, and XLA ends the process after 40 seconds. So one runs at a time.
    ended = jax.block_until_ready if devices[0].platform == "cpu" else lambda results: results
    return lambda *args: on_this_process(ended(mapped(args[:-1], args[-1])))


def share_batch(batch: Batch, devices: Sequence[jax.Device] | None = None) -> Batch:
    """The batch on the devices for one of the functions above, to be used any number of times.

    On several devices every leaf has a leading axis of devices; rows of padding are added if need be.

    Args:
        batch: with several processes this one's rows (`tajax.processes.share`), as many as any other's.
        devices: from `devices_of_all`; all of this process by default.

    Raises:
        ValueError: rows of one of several processes that its devices do not divide.
    """
    devices = _all_or(devices)
    if len(devices) == 1:
        return jax.device_put(batch, devices[0])
    own = len(_own(devices))
    return _placed(jax.tree.map(lambda a: a.reshape(own, -1, *a.shape[1:]), _divisible(batch, devices)), devices)


def shard_batch(batch: Batch, devices: Sequence[jax.Device] | None = None) -> Batch:
    """The batch on the devices, its rows divided among them, for a compiled step that sees all of it.

    Args, errors and padding are those of `share_batch`.
    """
    devices = _all_or(devices)
    return _placed(_divisible(batch, devices), devices)


def _divisible(batch: Batch, devices: Sequence[jax.Device]) -> Batch:
    """The rows of this process as NumPy arrays whose length its devices divide."""
    own = len(_own(devices))
    if not _several_processes(devices):
        batch = pad_batch(batch, own)
    elif len(batch.label) % own:
        raise ValueError(f"a batch of {len(batch.label)} rows on {own} devices of one of several processes")
    return jax.tree.map(np.asarray, batch)


def _placed(batch: Batch, devices: Sequence[jax.Device]) -> Batch:
    sharding = NamedSharding(_mesh(devices), PartitionSpec(AXIS))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


def replicate(tree: Tree, devices: Sequence[jax.Device] | None = None) -> Tree:
    """The tree with a copy of every leaf on every device, placed once rather than at each call.

    With several processes the tree has to be the same in all of them.
    """
    devices = jax.local_devices() if devices is None else devices
    everywhere = NamedSharding(_mesh(devices), PartitionSpec())
    if not _several_processes(devices):
        return jax.device_put(tree, everywhere)

    def placed(leaf: jax.Array) -> jax.Array:  # `device_put` would send every leaf to every process to compare it
        copies = [copy.data for copy in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, everywhere, copies)

    own = NamedSharding(_mesh(_own(devices)), PartitionSpec())
    return jax.tree.map(placed, jax.device_put(on_this_process(tree), own))


def on_this_process(tree: Tree) -> Tree:
    """The tree with this process's copy of every leaf that is replicated over several processes."""

    def own(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf.addressable_data(0)
        return leaf

    return jax.tree.map(own, tree)


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


def largest_of_all(devices: Sequence[jax.Device]) -> Callable[[int], int]:
    """A function `number -> the largest number of any process` that does not wait for the devices.

    Every process has to call it as often as every other; what it returns is the same in all of them. With several
    processes the answer is about the numbers of two calls ago, 0 at first.
    """
    if not _several_processes(devices):
        return lambda number: number
    sharding = NamedSharding(_mesh(devices), PartitionSpec(AXIS))
    largest = jax.jit(lambda numbers: numbers.max(), out_shardings=NamedSharding(_mesh(devices), PartitionSpec()))
    own = len(_own(devices))
    on_the_way: collections.deque[jax.Array] = collections.deque()

    def exchange(number: int) -> int:
        numbers = jax.make_array_from_process_local_data(sharding, np.full(own, number, np.int32))
        on_the_way.append(largest(numbers))
        return int(on_the_way.popleft()) if len(on_the_way) > _DELAY else 0

    return exchange


def _all_or(devices: Sequence[jax.Device] | None) -> list[jax.Device]:
    return jax.local_devices() if devices is None else list(devices)


def _own(devices: Sequence[jax.Device]) -> list[jax.Device]:
    return [device for device in devices if device.process_index == jax.process_index()]


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))


def _several_processes(devices: Sequence[jax.Device]) -> bool:
    return len({device.process_index for device in devices}) > 1

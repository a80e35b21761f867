"""Every device of the host: batches split over them, sums reduced across them. Nothing else says `pmap`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tajax.types import Batch

AXIS = "devices"


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
    return Batch(*(np.concatenate([a, np.zeros((missing, *a.shape[1:]), a.dtype)]) for a in map(np.asarray, batch)))


def sum_over_devices(step: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
    """`step` compiled to run on every device on its share of the batch, its results summed.

    Args:
        step: a pure function `(*constants, batch) -> sums`, where `sums` is a pytree of sums over rows.
            Rows whose mask is False must add nothing.
        devices: local devices; all by default.

    Returns:
        A function with the signature of `step`, for batches from `share_batch` on the same devices. Integer sums do
        not depend on the number of devices.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    if len(devices) == 1:
        return jax.jit(step)

    def shard(constants, batch):
        return jax.lax.psum(step(*constants, batch), AXIS)

    mapped = jax.pmap(shard, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=devices)
    return lambda *args: mapped(args[:-1], args[-1])


def rows_over_devices(step: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
    """`step` compiled to run on every device on its share of the batch, its rows put together in their order.

    Args:
        step: a pure function `(*constants, batch) -> rows`, a pytree whose leaves have the rows of the batch first.
        devices: local devices; all by default.

    Returns:
        A function with the signature of `step`, for batches from `share_batch` on the same devices. Rows added by its
        padding come last.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    if len(devices) == 1:
        return jax.jit(step)
    mapped = jax.pmap(lambda constants, batch: step(*constants, batch), in_axes=(None, 0), devices=devices)
    return lambda *args: jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), mapped(args[:-1], args[-1]))


def share_batch(batch: Batch, devices: Sequence[jax.Device] | None = None) -> Batch:
    """The batch on the devices for one of the functions above, to be used any number of times.

    On several devices every leaf has a leading axis of devices; rows of padding are added if need be.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    if len(devices) == 1:
        return jax.device_put(batch, devices[0])
    padded = pad_batch(batch, len(devices))
    parts = jax.tree.map(lambda a: np.asarray(a).reshape(len(devices), -1, *a.shape[1:]), padded)
    return jax.device_put(parts, NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS)))


def replicate(tree, devices: Sequence[jax.Device] | None = None):
    """The tree with a copy of every leaf on every device, placed once rather than at each call."""
    devices = jax.local_devices() if devices is None else devices
    return jax.device_put(tree, NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec()))


def split_batch(batch: Batch, devices: Sequence[jax.Device] | None = None) -> Batch:
    """The batch on the devices, its rows divided among them; padded with masked rows if need be."""
    devices = jax.local_devices() if devices is None else devices
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))
    return jax.device_put(pad_batch(batch, len(devices)), sharding)

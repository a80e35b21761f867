"""Which devices there are, of this process and of all."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

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


def own(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those of this process."""
    return [device for device in devices if device.process_index == jax.process_index()]


def mesh(devices: Sequence[jax.Device]) -> Mesh:
    """The devices in a row, along `AXIS`."""
    return Mesh(np.array(devices), (AXIS,))


def several_processes(devices: Sequence[jax.Device]) -> bool:
    """Whether the devices belong to more than one process."""
    return len({device.process_index for device in devices}) > 1

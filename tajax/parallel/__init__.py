"""Every device of every process: one `Placement` says where arrays live and how a step runs on them.

A run has one process or several (`tajax.processes`). Loops and workflows take a placement and never see a device;
`PLACEMENTS` has a row for each way of placing arrays.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import jax

from tajax.parallel.devices import devices_of_all, local_devices
from tajax.parallel.hosts import from_first, rows_of_all
from tajax.parallel.placement import Placement
from tajax.parallel.replicated import Replicated
from tajax.parallel.rows import pad_batch
from tajax.parallel.sharded import Sharded


class MakePlacement(Protocol):
    """How a placement is made."""

    def __call__(self, devices: Sequence[jax.Device], /, *, rule: str, fsdp: int | None) -> Placement:
        """The placement on devices; `rule` and `fsdp` are those of `Sharded`."""


PLACEMENTS: Mapping[str, MakePlacement] = {
    "replicated": lambda devices, *, rule, fsdp: Replicated(devices),
    "moments": lambda devices, *, rule, fsdp: Sharded(devices, rule=rule, fsdp=fsdp, what="moments"),
    "fsdp": lambda devices, *, rule, fsdp: Sharded(devices, rule=rule, fsdp=fsdp, what="everything"),
}
"""Ways of placing arrays by the values of `config.placement`. `replicated`: all on every device. `moments`: those of
the optimiser divided among the devices of a group (ZeRO-1). `fsdp`: parameters, task vectors and moments divided."""

__all__ = [
    "PLACEMENTS",
    "MakePlacement",
    "Placement",
    "Replicated",
    "Sharded",
    "devices_of_all",
    "from_first",
    "local_devices",
    "pad_batch",
    "rows_of_all",
]

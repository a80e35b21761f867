"""Every device of every process: one `Placement` says where arrays live and how a step runs on them.

A run has one process or several (`tajax.processes`). Loops and workflows take a placement and never see a device;
`PLACEMENTS` has a row for each way of placing arrays.
"""

from collections.abc import Callable, Mapping, Sequence

import jax

from tajax.parallel.devices import devices_of_all, local_devices
from tajax.parallel.hosts import from_first, rows_of_all
from tajax.parallel.placement import Placement
from tajax.parallel.replicated import Replicated, pad_batch

PLACEMENTS: Mapping[str, Callable[[Sequence[jax.Device] | None], Placement]] = {"replicated": Replicated}
"""Ways of placing arrays: name → from devices to a placement. The names are the values of `config.placement`."""

__all__ = [
    "PLACEMENTS",
    "Placement",
    "Replicated",
    "devices_of_all",
    "from_first",
    "local_devices",
    "pad_batch",
    "rows_of_all",
]

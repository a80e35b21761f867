"""The mesh of devices that share one copy of the parameters, and where a model's rows lie on it.

A model is a pure function and knows no devices. It says of its activations that their rows stay where they are: in a
program for such a mesh that is a constraint, everywhere else nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, PartitionSpec

DATA, FSDP = "data", "fsdp"
ROWS = (DATA, FSDP)
"""Rows of a batch are divided along both axes, parameters along the second alone."""


def make_mesh(devices: Sequence[jax.Device], fsdp: int) -> Mesh:
    """Devices as data × fsdp, neighbours of the given order along fsdp.

    Axes are `Auto`: XLA finds the sharding of what no constraint names.

    Args:
        devices: all of them.
        fsdp: how many share one copy of the parameters; divides their number.
    """
    return Mesh(np.array(devices).reshape(-1, fsdp), ROWS, axis_types=(AxisType.Auto, AxisType.Auto))


def divide_rows(x: Array) -> Array:
    """The same array, of which in a program for a `make_mesh` every device has its own rows, whole.

    Without it XLA may gather the rows in place of the parameters, which are divided, too: it then computes every row
    on every device. Rows that the devices do not divide are left to it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != ROWS or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS))

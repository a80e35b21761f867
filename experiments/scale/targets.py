"""Accelerators that XLA compiles for from a description, on a machine that has none of them."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

PLUGINS = {"tpu": ("libtpu", "tpu"), "cuda": ("jax_plugins.xla_cuda12", "cuda12")}
"""The module with the compiler of a platform, and the extra of tajax that installs it."""

CUDA_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""Autotuning would time kernels on a GPU; without it Triton's products of L/14 do not compile."""


class Target(NamedTuple):
    """Devices to compile for.

    Attributes:
        title: As tables call it.
        platform: A key of `PLUGINS`.
        topology: Of the devices, as the plugin names it.
        chips: How many devices there are.
        memory: GB, 10⁹ bytes, of each: what its maker says.
        teraflops: 10¹² operations a second that each can do in the products that a float32 model gets there if nobody
            asks for another precision, dense: bfloat16 on a TPU, TF32 on an H100. What its maker says.
        options: What else the plugin needs to know.
    """

    title: str
    platform: str
    topology: str
    chips: int
    memory: int
    teraflops: float
    options: Mapping[str, str] = {}

    @property
    def maker(self) -> str:
        """One of its devices, as its maker calls the kind."""
        return self.title.partition(",")[0].rpartition("× ")[2]

    @property
    def budgets(self) -> tuple[int, ...]:
        """The sizes of memory in GB, up to its own, for which the largest batch is looked for."""
        return tuple(size for size in (16, 32, 80) if size <= self.memory)

    @property
    def compiler_options(self) -> Mapping[str, Any]:
        """For `jax.stages.Lowered.compile`."""
        return CUDA_OPTIONS if self.platform == "cuda" else {}


TARGETS: Mapping[str, Target] = {
    "v5e_2x4": Target("TPU v5e, 2×4", "tpu", "v5e:2x4", 8, 16, 197),
    "h100_x1": Target("H100", "cuda", "1x1x1", 1, 80, 495),
    "v6e_2x4": Target("TPU v6e, 2×4", "tpu", "v6e:2x4", 8, 32, 918),
    "v4_2x2x1": Target("TPU v4, 2×2×1", "tpu", "v4:2x2x1", 4, 32, 275, {"chip_config_name": "megacore"}),
    "h100_x8": Target("8 × H100", "cuda", "1x1x8", 8, 80, 495),
}
"""Rows are in the order in which jobs are done. A v4 chip has two cores, which JAX takes as one device."""


def missing(target: Target) -> str:
    """Why programs cannot be compiled for it here; empty where they can."""
    module, extra = PLUGINS[target.platform]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of the package that it is in
        found = None
    return "" if found else f"{module} is not installed (extra {extra!r})"


@functools.cache
def devices(name: str) -> tuple[jax.Device, ...]:
    """The devices of a row of `TARGETS`: programs can be compiled for them, and nothing can be run.

    Raises:
        RuntimeError: the plugin is not installed, or another process has libtpu.
    """
    target = TARGETS[name]
    if why := missing(target):
        raise RuntimeError(
            f"cannot compile for {target.title}: {why}. pip install -e '.[{PLUGINS[target.platform][1]}]'"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask the network which chips this machine has
    told = dict(target.options)
    topology = target.topology
    if target.platform == "cuda":
        told |= {"topology": topology, "target_config": (Path(__file__).parent / "h100.pbtxt").read_text()}
        topology = ""
    found = topologies.get_topology_desc(platform=target.platform, topology_name=topology, **told).devices
    if len(found) != target.chips:
        raise RuntimeError(f"{target.title} has {target.chips} chips, and the plugin gives {len(found)} devices")
    return tuple(found)


def version(target: Target) -> dict[str, str]:
    """The package with the compiler of a target, and its version."""
    package = {"tpu": "libtpu", "cuda": "jax-cuda12-pjrt"}[target.platform]
    return {package: importlib.metadata.version(package)}

"""The same evaluation on one device and on all: counts have to be equal, of a data set that no number divides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.accelerator import workloads
from tajax.evaluate import make_sweep_step, sweep
from tajax.parallel import Replicated
from tajax.types import JsonObject

COEFS = np.array([[0.0], [0.5], [1.0]], np.float32)


def measure(sizes: str, known: Mapping[str, Any]) -> Iterator[JsonObject]:
    """A row for one device and one for all; one alone where there is no other.

    Raises:
        ArithmeticError: the counts differ.
    """
    devices = jax.local_devices()
    alone = counts(sizes, devices[:1])
    yield alone
    if len(devices) == 1:
        return
    together = counts(sizes, devices)
    yield together
    if (together["correct"], together["count"]) != (alone["correct"], alone["count"]):
        raise ArithmeticError(f"counts differ: {alone['correct']} on one device, {together['correct']} on all")


def counts(sizes: str, devices: Sequence[jax.Device]) -> JsonObject:
    """How many images each point of a small sweep gets right, in full float32: rounding shall not decide."""
    chosen = workloads.SIZES[sizes]
    clip = workloads.load(sizes, chosen.first)
    placement = Replicated(devices)
    images = chosen.evaluation_batch - 1
    with jax.default_matmul_precision("highest"):
        step = make_sweep_step(workloads.encoder(clip), placement=placement)
        taus = workloads.task_vectors(clip.params["image"], 1)
        given = [workloads.batch(clip, images)]
        found = sweep(step, clip.params["image"], taus, COEFS, workloads.head(clip), given, placement=placement)
    row: JsonObject = {"model": chosen.first, "devices": len(devices), "images": images}
    return row | {"correct": np.asarray(found.correct).tolist(), "count": np.asarray(found.count).tolist()}

"""Evaluation on one device: a sweep of an ordinary model and of a linearised one, and a map of disentanglement."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.accelerator import workloads
from experiments.accelerator.timing import peak_bytes, timed
from tajax.disentanglement import disentanglement_error
from tajax.evaluate import make_sweep_step, sweep
from tajax.parallel import Replicated
from tajax.regimes import REGIMES
from tajax.types import Batch, JsonObject

COEFS = np.linspace(0, 1, 21, dtype=np.float32)[:, None]
"""The papers' grid of α."""


def measure(sizes: str, known: Mapping[str, Any]) -> Iterator[JsonObject]:
    """A row for each sweep, then one for the map. Images a second count each image once, whatever is asked of it."""
    chosen = workloads.SIZES[sizes]
    for regime in ("standard", "linear"):
        yield swept(sizes, regime) | {"points": len(COEFS), "images": chosen.evaluated}
    yield mapped(sizes) | {"points": chosen.grid**2, "images": 2 * chosen.evaluated}


def swept(sizes: str, regime: str) -> JsonObject:
    """All points of a sweep along one task vector."""
    chosen, linearized = workloads.SIZES[sizes], REGIMES[regime].evaluate_linearized
    clip = workloads.load(sizes, chosen.first)
    encode = workloads.encoder(dataclasses.replace(clip, unroll=True if linearized else 1))  # as runs have it
    placement = Replicated(jax.local_devices()[:1])
    step = make_sweep_step(encode, linearized=linearized, placement=placement)
    params, taus = placement.params((clip.params["image"], workloads.task_vectors(clip.params["image"], 1)))
    given = workloads.batches(clip, chosen.evaluated, chosen.evaluation_batch)
    heads = workloads.head(clip)
    timing = timed(lambda: sweep(step, params, taus, COEFS, heads, given, placement=placement), chosen.repeats)
    row = {"model": chosen.first, "what": "sweep", "regime": regime}
    return row | _rate(timing, chosen.evaluated)


def mapped(sizes: str) -> JsonObject:
    """A small map of an ordinary model, both tasks' images at every point."""
    chosen = workloads.SIZES[sizes]
    clip = workloads.load(sizes, chosen.first)
    encode = workloads.encoder(clip)
    params, taus = jax.device_put((clip.params["image"], workloads.task_vectors(clip.params["image"], 2)))
    sets: Sequence[list[Batch]] = [
        workloads.batches(clip, chosen.evaluated, chosen.evaluation_batch, seed=task) for task in (1, 2)
    ]
    heads = (workloads.head(clip, seed=1), workloads.head(clip, seed=2))
    coefs = np.linspace(-1, 1, chosen.grid)
    timing = timed(lambda: disentanglement_error(encode, params, *taus, *sets, coefs=coefs, heads=heads), 1)
    return {"model": chosen.first, "what": "map", "regime": "standard"} | _rate(timing, 2 * chosen.evaluated)


def _rate(timing: JsonObject, images: int) -> JsonObject:
    return timing | {"images_per_second": images / timing["seconds"], "peak_bytes": peak_bytes()}

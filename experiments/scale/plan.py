"""Which jobs are done, the most important first, and of which the largest batch is looked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from experiments.scale import targets
from experiments.scale.programs import Job
from tajax.types import Remat

__all__ = ["REGIMES", "jobs", "searches"]

REGIMES = ("standard", "attention", "linear", "linear_attention")
FIRST = ("v5e_2x4", "h100_x1")
REMATS: tuple[Remat, ...] = get_args(Remat)
MODELS = ("b32", "l14", "minilm", "l14_336", "b16")
EVALUATION_BATCH = 256
SHARING = ("v5e_2x4", "h100_x8")
"""Devices that have several, and so may share one copy of a model."""


def jobs() -> list[Job]:
    """All jobs, the most important first."""
    return list(dict.fromkeys(_jobs()))


def searches() -> list[tuple[Job, int]]:
    """Jobs of which the largest batch is looked for, and the GB of memory that it has to fit into."""
    wanted = [
        Job(device, model, "train", regime, remat=remat)
        for model, regime, remat in (
            ("l14", "linear", "none"),
            ("l14", "linear", "layers"),
            ("l14", "standard", "none"),
            ("b32", "linear", "none"),
            ("b32", "standard", "none"),
            ("l14", "standard", "layers"),
            ("l14", "linear", "dots"),
            ("l14_336", "linear", "layers"),
            ("l14_336", "linear", "none"),
            ("b16", "linear", "none"),
        )
        for device in targets.TARGETS
    ]
    wanted.sort(key=lambda job: job.device not in FIRST)
    return [(job, size) for job in wanted for size in sorted(targets.TARGETS[job.device].budgets, reverse=True)]


def _jobs() -> Iterator[Job]:
    for remat in REMATS:
        yield from (Job(device, "l14", regime="linear", remat=remat) for device in FIRST)
    for placement in ("fsdp", "moments", "replicated"):
        yield from (Job(device, "l14", regime="linear", placement=placement, remat="layers") for device in SHARING)
    yield Job("v5e_2x4", "l14", regime="linear", placement="fsdp")
    for device in ("h100_x1", "v5e_2x4"):
        yield from (Job(device, "l14", regime="linear", remat=remat, precision="bf16") for remat in REMATS)
    yield Job("h100_x1", "l14", regime="linear", remat="layers", precision="highest")
    for model in ("b32", "l14"):
        yield from (Job(device, model, "affine_8", "linear", EVALUATION_BATCH) for device in FIRST)
    for model in ("b32", "l14"):
        yield from (Job(device, model, regime=regime) for regime in REGIMES for device in FIRST)
    for device in FIRST:
        yield from (Job(device, "minilm", regime=regime) for regime in ("standard", "linear"))
        yield from (Job(device, "l14_336", regime="linear", remat=remat) for remat in ("none", "layers"))
        yield Job(device, "l14", regime="standard", remat="layers")
    for device in FIRST:
        yield Job(device, "b32", "sweep", "standard", EVALUATION_BATCH)
    for device in FIRST:
        yield from (
            Job(device, model, regime=regime) for model in ("b16", "l14_336") for regime in ("standard", "linear")
        )
    rest = [device for device in targets.TARGETS if device not in FIRST]
    for model, remat in (("l14", "none"), ("l14", "layers"), ("b32", "none"), ("b16", "none"), ("l14_336", "layers")):
        yield from (
            Job(device, model, regime=regime, remat=remat) for device in rest for regime in ("linear", "standard")
        )
    for model in MODELS:
        for regime in REGIMES:
            for remat in REMATS:
                yield from (Job(device, model, regime=regime, remat=remat) for device in targets.TARGETS)

"""A training step of each regime on one device: seconds, memory, images a second, and the share of the card's peak.

A batch that does not fit is halved until one does: what the compiler says a step needs is believed before it is run.
Steps that need less memory come first: the device tells the peak of the process alone, which only grows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from experiments.accelerator import workloads
from experiments.accelerator.timing import peak_bytes, timed
from experiments.scale import operations
from experiments.scale.targets import TARGETS
from tajax import finetune, optim, trees
from tajax.device_memory import Need, free_bytes, is_exhausted, need_of
from tajax.models import LoadedClip
from tajax.parallel import Replicated
from tajax.parametrization import masked
from tajax.regimes import REGIMES
from tajax.types import JsonObject

TRAINED = ("attention", "standard", "linear_attention", "linear")

PEAKS: Mapping[str, str] = {
    "NVIDIA H100 80GB HBM3": "h100_x1",
    "TPU v4": "v4_2x2x1",
    "TPU v5 lite": "v5e_2x4",
    "TPU v6 lite": "v6e_2x4",
}
"""Device kinds, as JAX calls them, whose peak stands in `experiments.scale.targets`. An H100 with PCIe is slower."""


class Program(NamedTuple):
    """A training step before it is compiled.

    Attributes:
        step: From `finetune.make_train_step`.
        arguments: On the device: state, θ₀, head and batch. The state is donated.
    """

    step: finetune.TrainStep
    arguments: tuple[Any, ...]

    @property
    def operations(self) -> int:
        """Of one step, 2·M·N·K of every matrix product."""
        return operations.count(jax.make_jaxpr(self.step)(*self.arguments))


def measure(sizes: str, known: Mapping[str, Any]) -> Iterator[JsonObject]:
    """A row for each tower and regime."""
    for tower in workloads.SIZES[sizes].towers:
        clip = workloads.load(sizes, tower)
        for regime in TRAINED:
            yield {"model": tower, "regime": regime} | largest_that_fits(
                clip, regime, workloads.SIZES[sizes].batches[tower], workloads.SIZES[sizes].repeats
            )


def largest_that_fits(clip: LoadedClip, regime: str, batch: int, repeats: int) -> JsonObject:
    """A step of so many images, or of half as many, and so on, until it fits; `refused` has the batches that did not.

    Returns:
        What `at` says of that batch; with none that fits `batch` None.
    """
    refused: list[int] = []
    while batch:
        try:
            return at(clip, regime, batch, repeats) | {"refused": refused}
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, MemoryError) and not is_exhausted(error):
                raise
        refused.append(batch)  # outside: the error holds the arrays of its frames
        batch //= 2
    return {"batch": None, "refused": refused}


def at(clip: LoadedClip, regime: str, batch: int, repeats: int) -> JsonObject:
    """What a step with a batch of so many images takes.

    Raises:
        MemoryError: the compiler says that it needs more than there is.
        jax.errors.JaxRuntimeError: the compiler or the device finds so.
    """
    program = make(clip, regime, batch)
    begun = time.perf_counter()
    compiled = program.step.lower(*program.arguments).compile()
    seconds = time.perf_counter() - begun
    need = need_of(compiled)
    free = free_bytes(jax.local_devices()[:1], program.arguments)
    if need is not None and free is not None and need.total > free:
        raise MemoryError(f"{need.total:,} bytes needed, {free:,} free")
    state, *constants = program.arguments
    counted = program.operations

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, *constants))

    return {"batch": batch, "compile_seconds": seconds} | cost(batch, counted, need, timed(run, repeats))


def cost(batch: int, counted: int, need: Need | None, timing: JsonObject) -> JsonObject:
    """What of a step was measured and counted, and what follows from these."""
    kind = jax.local_devices()[0].device_kind
    peak = TARGETS[PEAKS[kind]].teraflops if kind in PEAKS else None
    rate = counted / timing["seconds"]
    return timing | {
        "images_per_second": batch / timing["seconds"],
        "operations": counted,
        "teraflops": rate / 1e12,
        "peak_teraflops": peak,
        "utilisation": None if peak is None else rate / (peak * 1e12),
        "need": None if need is None else need._asdict() | {"total": need.total},
        "peak_bytes": peak_bytes(),
    }


def make(clip: LoadedClip, regime: str, batch: int) -> Program:
    """The step of a regime on the first device, with the papers' optimiser."""
    chosen, params = REGIMES[regime], clip.params["image"]
    trained = masked(trees.param_mask(params, chosen.trainable))
    tx, placement = optim.adamw(workloads.LEARNING_RATE), Replicated(jax.local_devices()[:1])
    step = finetune.make_train_step(
        workloads.encoder(clip), tx, trained, linearized=chosen.train_linearized, placement=placement
    )
    constants = placement.params((params, workloads.head(clip)))
    state = finetune.place_state(finetune.init_state(trained.init(constants[0]), tx), placement)
    return Program(step, (state, *constants, placement.batch(workloads.batch(clip, batch))))

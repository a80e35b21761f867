"""Kernel behaviour: each fine-tuned model and its linearisation side by side, along its task vector (Jin et al. 2024).

Whatever the regime, both kinds of model are evaluated at θ₀ + ατ: the encoder itself, and its first-order expansion
around θ₀. For vectors of ordinary fine-tuning the second is the post-hoc linearisation; for vectors trained in the
tangent space the second is the model as trained, and the first tells what the weights are worth without the expansion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

import tajax
from tajax import data, evaluate, metrics, progress
from tajax.gap import GapSums, gap_sums, relative_gap
from tajax.losses import head_logits
from tajax.metrics import Tally, tally
from tajax.progress import Stage
from tajax.records import KernelBehaviour, stage_of
from tajax.task_vectors import moved_leaves
from tajax.types import Batch, Head, Params
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.setup import Setup
from tajax.workflows.stages import on_vectors
from tajax.workflows.start import on_tasks
from tajax.workflows.vectors import task_vectors
from tajax.workflows.workflow import Workflow

STAGE, SPLIT = stage_of(KernelBehaviour), "test"


class _Sums(NamedTuple):
    """Sums over examples, one of each at every coefficient."""

    gap: GapSums
    model: Tally
    linearized: Tally
    agreeing: Int[Array, " A"]


def answer(setup: Setup, evaluator: Evaluator) -> None:
    """Feature gap and both accuracies of every task on its test images, over the grid of coefficients."""
    measure_kernel_behaviour(setup, evaluator.heads, task_vectors(setup, evaluator.heads))


def measure_kernel_behaviour(setup: Setup, heads: Mapping[str, Head], taus: Mapping[str, Params]) -> None:
    """Records both kinds of model at each coefficient α of each task that has no record yet."""
    grid = setup.config.evaluate.scaling_coefs
    steps = (
        evaluate.make_features_step(setup.encoder.apply, placement=setup.placement),
        evaluate.make_responses_step(setup.encoder.apply_for_responses, placement=setup.placement),
    )
    for task, missing in setup.journal.each(
        KernelBehaviour,
        setup.tasks,
        lambda task: {"task": task.name, "split": SPLIT, "scaling_coef": grid},
        units=lambda task: len(task.split(SPLIT)),
    ):
        norm = float(tajax.norm(taus[task.name]))
        sums = _measure(setup, steps, task, heads[task.name], taus[task.name])
        gaps = relative_gap(sums.gap)
        movements = np.sqrt(sums.gap.movement / sums.gap.origin)
        if not np.isfinite(gaps).all():
            coef = grid[int(np.argmin(np.isfinite(gaps)))]
            raise FloatingPointError(
                f"at coefficient {coef:g} the features of task {task.name!r} are not finite: narrow "
                "evaluate.scaling_coefs."
            )
        models, linearized = metrics.compute_each(sums.model), metrics.compute_each(sums.linearized)
        for key in missing:
            index = grid.index(key["scaling_coef"])
            setup.journal.record(
                KernelBehaviour,
                **key,
                norm=grid[index] * norm,
                relative_gap=gaps[index],
                relative_movement=movements[index],
                top1=models[index]["top1"],
                linearized_top1=linearized[index]["top1"],
                agreement=float(sums.agreeing[index]) / models[index]["count"],
                count=models[index]["count"],
            )
        progress.note({f"gap at {grid[-1]:g}": gaps[-1]})


def _measure(
    setup: Setup,
    steps: tuple[evaluate.FeaturesStep, evaluate.ResponsesStep],
    task: data.Task,
    head: Head,
    tau: Params,
) -> _Sums:
    grid, placement = np.array(setup.config.evaluate.scaling_coefs, np.float32), setup.placement
    pretrained, taus = placement.params((setup.pretrained, tuple(moved_leaves([tau]))))

    def of_batch(batch: Batch) -> _Sums:
        padded = placement.pad(batch)
        placed = placement.shares(padded)
        rows = np.asarray(steps[1](pretrained, taus, placed))
        moved = np.stack([np.asarray(steps[0](pretrained, taus, grid[k : k + 1], placed)) for k in range(len(grid))])
        return _sums(moved, rows[:, 0], rows[:, 1], grid, head, padded.label, padded.mask)

    return metrics.total(map(of_batch, setup.batches(task, SPLIT)))


@jax.jit
def _sums(
    moved: Float[Array, "A B E"],
    origin: Float[Array, "B E"],
    response: Float[Array, "B E"],
    grid: Float[Array, " A"],
    head: Head,
    labels: Int[Array, " B"],
    mask: Bool[Array, " B"],
) -> _Sums:
    def at(point: tuple[Array, Array]) -> tuple[Tally, Tally, Array]:
        features, alpha = point
        logits = head_logits(features, head), head_logits(origin + alpha * response, head)
        same = jnp.argmax(logits[0], axis=-1) == jnp.argmax(logits[1], axis=-1)
        model, linearized = (tally(some, labels, mask) for some in logits)
        return model, linearized, jnp.sum(same & mask)

    return _Sums(gap_sums(moved, origin, response, grid, mask), *jax.lax.map(at, (moved, grid)))


WORKFLOW = Workflow(on_tasks(answer), on_vectors(Stage(STAGE, images=1, each=True)))

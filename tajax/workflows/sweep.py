"""The sweep over α on validation: which coefficients of the grid are measured, and the best of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tajax import data, merging, metrics, progress, splits
from tajax.config import REGIMES
from tajax.metrics import Means
from tajax.progress import Stage
from tajax.records import ExactScalingCoef, Sweep, ZeroShot, stage_of
from tajax.results import Record
from tajax.scaling import coarse_to_fine, deciding_mean, exact_scaling_coef, select_scaling_coef
from tajax.types import Params
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.journal import Journal, means_of
from tajax.workflows.setup import Setup

PLAIN_SUM = 1.0
"""The coefficient that is always measured where it is in the grid: the vectors as they are."""

_REFINED = "around the best"

MeasureAt = Callable[[data.Task, Sequence[float]], list[Means]]
"""What the merged models at several α give on the validation split of a task."""


def best_of_grid(setup: Setup, measure: MeasureAt, single: Mapping[str, float]) -> float:
    """Records the merged model's accuracy on validation over the grid of α, and gives the best α of it.

    `config.evaluate.search` says which are measured: all of the grid, or by `coarse_to_fine` about half of them. What
    costs one pass for all α, an affine method in the linearised regimes, is measured at all of them. At α = 0 the
    model of an affine method is θ₀, whose accuracies are recorded.

    Args:
        setup: the run, with zero-shot accuracies recorded.
        measure: of one task, at α of the grid.
        single: the accuracy of each fine-tuned model on its own task.
    """
    grid, journal = setup.config.evaluate.scaling_coefs, setup.journal
    of_origin = _of_origin(setup)

    def missing(task: data.Task, coefs: Collection[float]) -> list[Any]:
        return [key["scaling_coef"] for key in journal.missing(Sweep, _key(task, tuple(coefs)))]

    def measure_missing(task: data.Task, coefs: Collection[float]) -> None:
        left = missing(task, coefs)
        found = {coef: of_origin[task.name] for coef in left if coef == 0 and of_origin}
        if others := [coef for coef in left if coef not in found]:
            found |= zip(others, measure(task, others), strict=True)
        for coef in left:
            journal.record(Sweep, **_key(task, coef), **found[coef])
        progress.note({"best top1": max(record["top1"] for record in journal.find(Sweep, task=task.name))})

    first = grid if in_full(setup.config) else coarse_to_fine(grid, {}, always=(PLAIN_SUM,))
    sizes = {task.name: len(task.split("val")) * _passes(setup.config, len(first)) for task in setup.tasks}
    after = {} if len(first) == len(grid) else {_REFINED: 2 * sum(len(task.split("val")) for task in setup.tasks)}
    done = [task.name for task in setup.tasks if not missing(task, first)]
    with progress.stage(stage_of(Sweep), sizes | after, done=done) as running:
        for task in running.each(task for task in setup.tasks if task.name not in done):
            measure_missing(task, first)
        considered = {*first}
        while asked := coarse_to_fine(grid, _values(journal, single, considered), always=(PLAIN_SUM,)):
            considered |= {*asked}
            if any(missing(task, asked) for task in setup.tasks):
                for _ in running.each([_REFINED], name=str):
                    for task in setup.tasks:
                        measure_missing(task, asked)
    coefs, recorded = [coef for coef in grid if coef in considered], _recorded(journal)
    accuracies = [[recorded[name, coef]["top1"] for coef in coefs] for name in single]
    return coefs[select_scaling_coef(coefs, np.array(accuracies), np.array([*single.values()]))]


def best_of_all(setup: Setup, evaluator: Evaluator, tau: Params, single: Mapping[str, float]) -> float:
    """Records the whole grid and the exact optimum along τ, both from one tangent pass over each task's images.

    Args:
        setup: the run, of a linearised regime.
        evaluator: of its models.
        tau: the merged vector; the models are θ₀ + ατ.
        single: the accuracy of each fine-tuned model on its own task.
    """
    grid = np.array(setup.config.evaluate.scaling_coefs)

    @functools.cache
    def seen(task: data.Task) -> splits.AffineSplit:
        return evaluator.affine_split(task, "val", [tau])

    def at(task: data.Task, coefs: Sequence[float]) -> list[Means]:
        return metrics.compute_each(splits.tally_at_coefs(seen(task), np.array(coefs)[:, None]))

    best_of_grid(setup, at, single)
    if recorded := setup.journal.find(ExactScalingCoef):
        return recorded[0]["scaling_coef"]
    best = exact_scaling_coef(
        [splits.intervals(seen(task), np.ones(1)) for task in setup.tasks],
        [single[task.name] for task in setup.tasks],
        bounds=(grid[0], grid[-1]),
    )
    setup.journal.record(ExactScalingCoef, split="val", **best._asdict())
    return best.scaling_coef


def measured_at(journal: Journal, task: data.Task, scaling_coef: float) -> Means | None:
    """What the sweep has recorded of a task at one α, if it has."""
    found = journal.find(Sweep, **_key(task, scaling_coef))
    return means_of(found[0]) if found else None


def in_full(config: ConfigDict) -> bool:
    """Whether all of the grid is measured: the config wants it, it costs no more, or the grid is short."""
    grid = config.evaluate.scaling_coefs
    return config.evaluate.search == "grid" or _one_pass(config) or len(coarse_to_fine(grid, {})) == len(grid)


def stage(config: ConfigDict) -> Stage:
    """The sweep as a stage of a run."""
    how = "" if in_full(config) else ", coarse to fine"
    return Stage(stage_of(Sweep), f"sweep of {len(config.evaluate.scaling_coefs)} coefficients{how}", images=1)


def _of_origin(setup: Setup) -> dict[str, Means]:
    """What θ₀ has on validation, where it is the run's model at α = 0 and another pass would show the same again."""
    if _one_pass(setup.config) or not merging.METHODS[setup.config.merging.method].affine:
        return {}
    return {record["task"]: means_of(record) for record in setup.journal.find(ZeroShot, split="val")}


def _one_pass(config: ConfigDict) -> bool:
    linearized = REGIMES[config.regime].evaluate_linearized
    return linearized and merging.METHODS[config.merging.method].affine


def _passes(config: ConfigDict, coefs: int) -> int:
    """Over the images, for so many coefficients."""
    return 1 if merging.METHODS[config.merging.method].affine else coefs


def _key(task: data.Task, coef: float | tuple[float, ...]) -> Record:
    return {"task": task.name, "split": "val", "scaling_coef": coef}


def _recorded(journal: Journal) -> dict[tuple[str, float], Sweep]:
    return {(r["task"], r["scaling_coef"]): r for r in journal.find(Sweep, split="val")}


def _values(journal: Journal, single: Mapping[str, float], considered: Collection[float]) -> dict[float, float]:
    """The mean normalised accuracy at each α that was asked for, which is recorded of all tasks."""
    recorded, coefs = _recorded(journal), sorted(considered)
    accuracies = np.array([[recorded[name, coef]["top1"] for coef in coefs] for name in single])
    return dict(zip(coefs, deciding_mean(accuracies, np.array([*single.values()])).tolist(), strict=True))

"""Task analogies: A is to B as C is to D, so θ₀ + α(τ_C + (τ_B − τ_A)) may know D, of which it has seen no image.

Source: Ilharco et al. 2023, §5.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from tajax import data, progress
from tajax.progress import Stage
from tajax.types import Params
from tajax.workflows import single_task
from tajax.workflows.experiment import SPLITS, Experiment, setup
from tajax.workflows.single_task import finetune_all, measure_single_task, measure_zero_shot
from tajax.workflows.workdir import write_report
from tajax.workflows.workflow import Workflow

VECTORS = {"analogy": (-1.0, 1.0, 1.0), "c_alone": (0.0, 0.0, 1.0)}
"""What is added to θ₀, as coefficients of (τ_A, τ_B, τ_C): the analogy, and the best guess without it."""


def run(config: ConfigDict, workdir: Path, *, overwrite: bool = False) -> None:
    """Fine-tuning on A, B, C and D, then the accuracy on D of what A, B and C give, beside that of τ_D.

    Args:
        config: a validated config with four tasks, in the order A, B, C, D.
        workdir: where task vectors and `results.jsonl` go. Finished parts in it are skipped.
        overwrite: replace an earlier run in it.

    Raises:
        ValueError: `config.evaluate.exact` is set.
    """
    if config.evaluate.exact:
        raise ValueError("evaluate.exact is not for task_analogy, which takes α from evaluate.scaling_coefs.")
    experiment = setup(config, workdir, overwrite=overwrite)
    measure_zero_shot(experiment)
    taus = finetune_all(experiment)
    measure_single_task(experiment, taus)
    add_analogy(experiment, tuple(taus[task.name] for task in experiment.tasks[:3]))
    write_report(workdir)


def add_analogy(experiment: Experiment, taus: tuple[Params, Params, Params]) -> dict[str, float]:
    """Records accuracy on D along each of `VECTORS`: over the grid of α on validation, at the best α on both splits.

    Args:
        experiment: its tasks are A, B, C and D.
        taus: the task vectors of A, B and C.

    Returns:
        α for each of `VECTORS`: the best on D's validation images, of equals the smallest in size.
    """
    task, grid = experiment.tasks[3], experiment.config.evaluate.scaling_coefs
    step = experiment.sweep_steps[experiment.regime.evaluate_linearized]
    sweeps = _sweeps(experiment)
    complete = all((name, coef) in sweeps for name in VECTORS for coef in grid)
    units = {task.name: len(task.split("val"))}
    with progress.stage("analogy_sweep", units, done=units if complete else ()) as running:
        for _ in running.each([] if complete else [task]):
            rows = np.concatenate([np.outer(grid, vector) for vector in VECTORS.values()])
            points = [(name, coef) for name in VECTORS for coef in grid]
            for (name, coef), values in zip(points, experiment.evaluate(step, task, "val", taus, rows), strict=True):
                if (name, coef) not in sweeps:
                    fields = {"vector": name, "task": task.name, "split": "val", "scaling_coef": coef}
                    experiment.record("analogy_sweep", **fields, **values)
    sweeps = _sweeps(experiment)
    best = {name: _best({coef: sweeps[name, coef]["top1"] for coef in grid}) for name in VECTORS}
    missing = {split: _missing(experiment, split) for split in SPLITS}
    units, done = {s: len(task.split(s)) for s in SPLITS}, [split for split in SPLITS if not missing[split]]
    with progress.stage("task_analogy", units, done=done) as running:
        for split in running.each([split for split in SPLITS if missing[split]], str):
            _record_best(experiment, task, split, taus, best, missing[split])
        (reached,) = (r["top1"] for r in experiment.find(stage="task_analogy", vector="analogy", split="test"))
        running.note(f"{task.name} test top1 {reached:.3f}")
    return best


def _best(top1: Mapping[float, float]) -> float:
    """The coefficient with the best accuracy; of several the one closest to zero."""
    return min(top1, key=lambda coef: (-top1[coef], abs(coef)))


def _missing(experiment: Experiment, split: str) -> list[str]:
    return [name for name in VECTORS if not experiment.find(stage="task_analogy", vector=name, split=split)]


def _record_best(
    experiment: Experiment,
    task: data.Task,
    split: str,
    taus: tuple[Params, ...],
    best: dict[str, float],
    missing: list[str],
) -> None:
    step = experiment.sweep_steps[experiment.regime.evaluate_linearized]
    rows = [best[name] * np.array(VECTORS[name]) for name in missing]
    for name, values in zip(missing, experiment.evaluate(step, task, split, taus, rows), strict=True):
        fields = {"vector": name, "task": task.name, "split": split, "scaling_coef": best[name]}
        experiment.record("task_analogy", **fields, **values)


def _sweeps(experiment: Experiment) -> dict[tuple[str, float], dict]:
    return {(r["vector"], r["scaling_coef"]): r for r in experiment.find(stage="analogy_sweep")}


def stages(config: ConfigDict) -> tuple[Stage, ...]:
    """What the workflow does, in order."""
    sweep = Stage("analogy_sweep", f"sweep of {len(config.evaluate.scaling_coefs)} coefficients", images=1)
    return *single_task.stages(config), sweep, Stage("task_analogy", "analogy", images=1)


WORKFLOW = Workflow(run, stages)

"""Task analogies: A is to B as C is to D, so θ₀ + α(τ_C + (τ_B − τ_A)) may know D, of which it has seen no example.

Source: Ilharco et al. 2023, §5.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from tajax.progress import Stage
from tajax.records import AnalogySweep, TaskAnalogy, stage_of
from tajax.types import Params
from tajax.workflows import single_task
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.journal import SPLITS
from tajax.workflows.setup import Setup
from tajax.workflows.single_task import measure_single_task, measure_zero_shot
from tajax.workflows.start import on_tasks
from tajax.workflows.vectors import task_vectors
from tajax.workflows.workflow import Workflow

VECTORS = {"analogy": (-1.0, 1.0, 1.0), "c_alone": (0.0, 0.0, 1.0)}
"""What is added to θ₀, as coefficients of (τ_A, τ_B, τ_C): the analogy, and the best guess without it."""


def run(config: ConfigDict, workdir: Path, *, overwrite: bool = False) -> None:
    """As that of `on_tasks`; raises `ValueError` if `config.evaluate.exact` is set."""
    if config.evaluate.exact:
        raise ValueError("evaluate.exact is not for task_analogy, which takes α from evaluate.scaling_coefs.")
    on_tasks(answer)(config, workdir, overwrite=overwrite)


def answer(setup: Setup, evaluator: Evaluator) -> None:
    """Fine-tuning on A, B, C and D, then the accuracy on D of what A, B and C give, beside that of τ_D."""
    measure_zero_shot(setup, evaluator)
    taus = task_vectors(setup, evaluator.heads)
    measure_single_task(setup, evaluator, taus)
    a, b, c = (taus[task.name] for task in setup.tasks[:3])
    add_analogy(setup, evaluator, (a, b, c))


def add_analogy(setup: Setup, evaluator: Evaluator, taus: tuple[Params, Params, Params]) -> dict[str, float]:
    """Records accuracy on D along each of `VECTORS`: over the grid of α on validation, at the best α on both splits.

    Args:
        setup: its tasks are A, B, C and D.
        evaluator: of its models.
        taus: the task vectors of A, B and C.

    Returns:
        α for each of `VECTORS`: the best on D's validation images, of equals the smallest in size.
    """
    task, grid, journal = setup.tasks[3], setup.config.evaluate.scaling_coefs, setup.journal
    for _, missing in journal.each(
        AnalogySweep,
        [task],
        lambda task: {"vector": tuple(VECTORS), "task": task.name, "split": "val", "scaling_coef": grid},
        units=lambda task: len(task.split("val")),
    ):
        rows = np.concatenate([np.outer(grid, vector) for vector in VECTORS.values()])
        measured = evaluator.evaluate(task, "val", taus, rows)
        values = dict(zip(itertools.product(VECTORS, grid), measured, strict=True))
        for key in missing:
            journal.record(AnalogySweep, **key, **values[key["vector"], key["scaling_coef"]])
    sweeps = {(r["vector"], r["scaling_coef"]): r["top1"] for r in journal.find(AnalogySweep)}
    best = {name: _best({coef: sweeps[name, coef] for coef in grid}) for name in VECTORS}

    def reached() -> str:
        (top1,) = (r["top1"] for r in journal.find(TaskAnalogy, vector="analogy", split="test"))
        return f"{task.name} test top1 {top1:.3f}"

    for split, missing in journal.each(
        TaskAnalogy,
        SPLITS,
        lambda split: {"vector": tuple(VECTORS), "task": task.name, "split": split},
        units=lambda split: len(task.split(split)),
        name=str,
        note=reached,
    ):
        moved = [best[key["vector"]] * np.array(VECTORS[key["vector"]]) for key in missing]
        for key, of_vector in zip(missing, evaluator.evaluate(task, split, taus, moved), strict=True):
            journal.record(TaskAnalogy, **key, scaling_coef=best[key["vector"]], **of_vector)
    return best


def _best(top1: Mapping[float, float]) -> float:
    """The coefficient with the best accuracy; of several the one closest to zero."""
    return min(top1, key=lambda coef: (-top1[coef], abs(coef)))


def stages(config: ConfigDict) -> tuple[Stage, ...]:
    """What the workflow does, in order."""
    sweep = Stage(stage_of(AnalogySweep), f"sweep of {len(config.evaluate.scaling_coefs)} coefficients", images=1)
    return *single_task.stages(config), sweep, Stage(stage_of(TaskAnalogy), "analogy", images=1)


WORKFLOW = Workflow(run, stages)

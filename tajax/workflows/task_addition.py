"""Task addition: one model for all tasks, θ₀ + α Σ_t τ_t, with α tuned on validation (Ilharco et al. 2023, §4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import tajax
from tajax import data, models, report
from tajax.evaluate import make_sweep_step, select_scaling_coef
from tajax.merging import METHODS
from tajax.metrics import normalized_accuracy
from tajax.types import Params
from tajax.workflows.experiment import SPLITS, Experiment, setup
from tajax.workflows.progress import Progress
from tajax.workflows.single_task import finetune_all, measure_single_task, measure_zero_shot


def run(config: ConfigDict, workdir: Path, *, overwrite: bool = False) -> None:
    """Everything from the pre-trained model to the merged one: fine-tuning, single tasks, tuned addition, tables.

    Args:
        config: a validated config.
        workdir: where task vectors, the merged model and `results.jsonl` go. Finished parts in it are skipped.
        overwrite: replace an earlier run in it.
    """
    experiment = setup(config, workdir, overwrite=overwrite)
    measure_zero_shot(experiment)
    taus = finetune_all(experiment)
    measure_single_task(experiment, taus)
    scaling_coef = add_tasks(experiment, taus)
    if config.save.merged:
        save_merged(experiment, taus, scaling_coef)
    report.write(workdir)


def add_tasks(experiment: Experiment, taus: Mapping[str, Params]) -> float:
    """Records the merged model's accuracy over the grid of α on validation, and at the best α on test.

    Args:
        experiment: with single-task accuracies recorded.
        taus: the task vector of each task.

    Returns:
        The α with the best mean normalised validation accuracy.
    """
    grid = experiment.config.evaluate.scaling_coefs
    names = [task.name for task in experiment.tasks]
    tau_sum = tajax.combine([taus[name] for name in names])
    step = make_sweep_step(experiment.encode, linearized=experiment.regime.evaluate_linearized)
    with Progress(f"sweep of {len(grid)} coefficients", total=len(names)) as progress:
        for number, task in enumerate(experiment.tasks, start=1):
            done = {r["scaling_coef"] for r in experiment.find(stage="sweep", task=task.name, split="val")}
            if not done.issuperset(grid):
                measured = experiment.evaluate(step, task, "val", (tau_sum,), [[c] for c in grid])
                for coef, values in zip(grid, measured, strict=True):
                    if coef not in done:
                        experiment.record("sweep", task=task.name, split="val", scaling_coef=coef, **values)
                progress.update(number, {f"{task.name} best top1": max(values["top1"] for values in measured)})
    single = {split: _top1(experiment, "single_task", split) for split in SPLITS}
    sweeps = {(r["task"], r["scaling_coef"]): r for r in experiment.find(stage="sweep", split="val")}
    accuracies = np.array([[sweeps[name, coef]["top1"] for coef in grid] for name in names])
    best = select_scaling_coef(grid, accuracies, np.array([single["val"][name] for name in names]))
    scaling_coef = grid[best]

    def measure(task: data.Task, split: str) -> dict[str, float]:
        if split == "val":
            values = {key: sweeps[task.name, scaling_coef][key] for key in ("top1", "loss", "count")}
        else:
            (values,) = experiment.evaluate(step, task, split, (tau_sum,), [[scaling_coef]])
        normalized = normalized_accuracy(values["top1"], single[split][task.name])
        return {"scaling_coef": scaling_coef, "normalized_top1": float(normalized), **values}

    experiment.measure("task_addition", measure)
    return scaling_coef


def save_merged(experiment: Experiment, taus: Mapping[str, Params], scaling_coef: float) -> None:
    """Writes θ₀ + α Σ_t τ_t with the untouched text tower to `workdir/merged`, in the Hugging Face format.

    In the linearised regimes these are the parameters of the expansion; a reader that evaluates them with the
    ordinary forward pass gets another function.
    """
    directory = experiment.workdir / "merged"
    if directory.exists():
        return
    merged = METHODS["task_arithmetic"](experiment.pretrained, list(taus.values()), scaling_coef=scaling_coef)
    clip = experiment.clip
    models.save_pretrained(directory, clip.config, clip.params | {"image": merged}, clip.tokenizer, clip.preprocessing)


def _top1(experiment: Experiment, stage: str, split: str) -> dict[str, float]:
    return {r["task"]: r["top1"] for r in experiment.find(stage=stage, split=split)}

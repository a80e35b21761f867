"""The control task: what an edit of the model must leave alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from tajax import data
from tajax.workflows.experiment import SPLITS, Experiment, setup


def setup_with_control(config: ConfigDict, workdir: Path, *, overwrite: bool = False) -> tuple[Experiment, data.Task]:
    """As `setup`, with the control task opened and checked before anything is trained.

    The experiment knows the control's head, so that `experiment.evaluate` takes it like any task; it is not
    one of `experiment.tasks`.

    Args:
        config: a validated config with a `control`.
        workdir: an existing directory.
        overwrite: replace an earlier run in it.

    Returns:
        The experiment and the control task.

    Raises:
        ValueError: the control cannot be read, or has the name of one of the tasks.
    """
    control = data.open_task(config.control, data_dir=config.data_dir)
    data.check_images(control)
    experiment = setup(config, workdir, overwrite=overwrite)
    if control.name in experiment.heads:
        raise ValueError(
            f"control {config.control!r} and one of the tasks are both called {control.name!r}: their results could "
            "not be told apart. Rename one of the files or folders."
        )
    heads = experiment.heads | {control.name: experiment.make_head(control)}
    return dataclasses.replace(experiment, heads=heads), control


def measure_control(experiment: Experiment, control: data.Task) -> dict[str, float]:
    """Records the pre-trained model's accuracy on the control, validation and test; returns it by split."""
    step = experiment.sweep_steps[False]
    for split in SPLITS:
        if not experiment.find(stage="control", split=split):
            (values,) = experiment.evaluate(step, control, split, (), [[]])
            experiment.record("control", task=control.name, split=split, **values)
    return {record["split"]: record["top1"] for record in experiment.find(stage="control")}

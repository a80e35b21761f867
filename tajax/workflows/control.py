"""The control task: what an edit of the model must leave alone."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from tajax import data, progress
from tajax.workflows.experiment import SPLITS, Experiment, setup
from tajax.workflows.single_task import below_chance


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
    experiment = setup(config, workdir, overwrite=overwrite, with_control=True)
    assert experiment.control is not None  # as it was asked for
    return experiment, experiment.control


def measure_control(experiment: Experiment, control: data.Task) -> dict[str, float]:
    """Records the pre-trained model's accuracy on the control, validation and test; returns it by split."""
    step = experiment.sweep_steps[False]
    units = {split: len(control.split(split)) for split in SPLITS}
    done = [split for split in SPLITS if experiment.find(stage="control", split=split)]
    with progress.stage("control", units, done=done) as running:
        for split in running.each([split for split in SPLITS if split not in done], str):
            (values,) = experiment.evaluate(step, control, split, (), [[]])
            doubts = below_chance(control, split, values["top1"])
            experiment.record("control", task=control.name, split=split, **values, **doubts)
        reached = {record["split"]: record["top1"] for record in experiment.find(stage="control")}
        running.note(f"{control.name} test top1 {reached['test']:.3f}")
    return reached

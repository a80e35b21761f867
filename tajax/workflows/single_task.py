"""Fine-tune the encoder on each task, keep the task vectors, and measure every model on its own task."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from tajax import data
from tajax.metrics import Means
from tajax.progress import Stage
from tajax.records import SingleTask, ZeroShot, stage_of
from tajax.results import Record
from tajax.types import Params
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.journal import measure_splits
from tajax.workflows.setup import Setup
from tajax.workflows.stages import ZERO_SHOT, begin, own_kind, vectors, warn
from tajax.workflows.start import on_tasks
from tajax.workflows.vectors import task_vectors
from tajax.workflows.workflow import Workflow


def answer(setup: Setup, evaluator: Evaluator) -> None:
    """Zero-shot accuracy, fine-tuning and single-task accuracy of every task of a config."""
    measure_zero_shot(setup, evaluator)
    measure_single_task(setup, evaluator, task_vectors(setup, evaluator.heads))


def measure_zero_shot(setup: Setup, evaluator: Evaluator) -> None:
    """Records the pre-trained model's accuracy on each task, validation and test."""

    def measure(task: data.Task, split: str) -> Means:
        return evaluator.evaluate(task, split)[0]

    measure_splits(setup.journal, ZeroShot, setup.tasks, measure, doubts=below_chance)


def below_chance(task: data.Task, split: str, top1: float) -> Record:
    """A warning, said and for the record, where the pre-trained model does worse on a task than guessing would."""
    chance = 1 / len(task.class_names)
    if top1 >= chance:
        return {}
    line = (
        f"{task.name}: the pre-trained model has {top1:.1%} on the {split} split, below chance ({chance:.1%} of "
        f"{len(task.class_names)} classes); look at the class names and at the order of the labels"
    )
    warn([line])
    return {"warnings": [line]}


def measure_single_task(setup: Setup, evaluator: Evaluator, taus: Mapping[str, Params]) -> None:
    """Records the accuracy of each fine-tuned model on its own task, validation and test."""

    def measure(task: data.Task, split: str) -> Means:
        return evaluator.evaluate(task, split, [taus[task.name]], [[1.0]])[0]

    measure_splits(setup.journal, SingleTask, setup.tasks, measure)


def stages(config: ConfigDict) -> tuple[Stage, ...]:
    """What the workflow does, in order; others go on from there."""
    own = Stage(stage_of(SingleTask), "single-task", kind=own_kind(config), images=1)
    return *begin(config), ZERO_SHOT, *vectors(config), own


WORKFLOW = Workflow(on_tasks(answer), stages)

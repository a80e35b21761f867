"""Fine-tune the encoder on each task, keep the task vectors, and measure every model on its own task."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

import tajax
from tajax import checkpoints, data, finetune, interrupts, optim, parallel, processes, progress, vector_files
from tajax.config import config_hash, warmup_steps
from tajax.encoders.encoder import Encoder
from tajax.parametrization import Parametrization, masked
from tajax.penalties import regularization
from tajax.progress import Stage
from tajax.types import Params
from tajax.workflows.experiment import Experiment
from tajax.workflows.imported import vector_path
from tajax.workflows.setup import on_tasks
from tajax.workflows.stages import ZERO_SHOT, begin, own_kind, vectors, warn
from tajax.workflows.workdir import read_by_first
from tajax.workflows.workflow import Workflow


def answer(experiment: Experiment) -> None:
    """Zero-shot accuracy, fine-tuning and single-task accuracy of every task of a config."""
    measure_zero_shot(experiment)
    measure_single_task(experiment, finetune_all(experiment))


def measure_zero_shot(experiment: Experiment) -> None:
    """Records the pre-trained model's accuracy on each task, validation and test."""
    step = experiment.sweep_steps[False]
    experiment.measure(
        "zero_shot",
        lambda task, split: experiment.evaluate(step, task, split, (), [[]])[0],
        doubts=below_chance,
    )


def below_chance(task: data.Task, split: str, top1: float) -> dict[str, list[str]]:
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


def finetune_all(experiment: Experiment) -> dict[str, Params]:
    """The task vector of each task, read back where it is finished, trained where not.

    With `config.task_vectors` they are another run's, with `config.checkpoints` of encoders that were fine-tuned
    elsewhere, and nothing is trained.
    """
    if experiment.imported is not None:
        return experiment.imported
    source, tasks = experiment.config.task_vectors, experiment.tasks
    if source is not None:
        run = Path(os.path.expanduser(source))
        with progress.stage("vectors", {task.name: 1 for task in tasks}) as running:
            return {task.name: _reused_vector(experiment, run, task) for task in running.each(tasks)}
    make_training = _training_factory(experiment)
    # All of them before the first is trained: a task without epochs is an error at once.
    trainings = {task.name: make_training(num_steps(experiment, task)) for task in tasks}
    units = {name: training.num_steps for name, training in trainings.items()}
    done = [task.name for task in tasks if vector_path(experiment.workdir, task.name).exists()]
    with progress.stage("finetune", units, done=done) as running:
        taus = {task.name: _task_vector(experiment, task, trainings[task.name]) for task in running.each(tasks)}
        last = {record["task"]: record["top1"] for record in experiment.find(stage="finetune")}
        running.note(f"mean train top1 {statistics.fmean(last.values()):.3f}" if last else "")
    return taus


def measure_single_task(experiment: Experiment, taus: Mapping[str, Params]) -> None:
    """Records the accuracy of each fine-tuned model on its own task, validation and test."""
    step = experiment.sweep_steps[experiment.regime.evaluate_linearized]

    def measure(task: data.Task, split: str) -> dict[str, float]:
        return experiment.evaluate(step, task, split, (taus[task.name],), [[1.0]])[0]

    experiment.measure("single_task", measure)


class _Training(NamedTuple):
    """What fine-tuning of a given number of steps consists of."""

    num_steps: int
    schedule: optax.Schedule
    parametrization: Parametrization
    tx: optax.GradientTransformation
    step: finetune.TrainStep
    data: Callable[[Encoder, Sequence[data.Task], data.Task], Any] | None
    """Of the penalty, where there is one."""


def _training_factory(experiment: Experiment) -> Callable[[int], _Training]:
    """`num_steps -> training`, the same object for the same number of steps, so that it is compiled once."""
    settings = experiment.config.finetune

    @functools.cache
    def make(num_steps: int) -> _Training:
        schedule = optim.make_schedule(
            learning_rate=settings.learning_rate,
            num_steps=num_steps,
            warmup_steps=warmup_steps(experiment.config, num_steps),
        )
        trained, regularized = masked(experiment.mask), regularization(experiment.regime.penalty)
        tx = optim.adamw(schedule, weight_decay=settings.weight_decay, clip_norm=settings.clip_norm)
        step = finetune.make_train_step(
            experiment.encoder.apply,
            tx,
            trained,
            linearized=experiment.regime.train_linearized,
            penalty=_scaled(regularized.penalty, settings.penalty_strength) if regularized else None,
            accumulation_steps=settings.accumulation_steps,
        )
        return _Training(num_steps, schedule, trained, tx, step, regularized.data if regularized else None)

    return make


def _scaled(penalty: finetune.Penalty, strength: float) -> finetune.Penalty:
    return lambda trained, seen: strength * penalty(trained, seen)


def num_steps(experiment: Experiment, task: data.Task) -> int:
    """Optimiser steps of a task: as given, or so many that the epochs of the task table are seen."""
    settings = experiment.config.finetune
    if settings.steps is not None:
        return settings.steps
    epochs = settings.epochs or task.epochs
    if epochs is None:
        raise ValueError(
            f"task {task.name!r} has no number of epochs in the task table. "
            "Give --config.finetune.steps=N or --config.finetune.epochs=N."
        )
    return max(1, epochs * len(task.split("train")) // settings.batch_size)


def _task_vector(experiment: Experiment, task: data.Task, training: _Training) -> Params:
    path = vector_path(experiment.workdir, task.name)
    kept = experiment.workdir / "checkpoints" / task.name
    if processes.broadcast_json(path.exists):
        base = experiment.encoder.identity.sha256
        blank = tajax.task_vector(experiment.pretrained, experiment.pretrained)
        tau = read_by_first(
            lambda: vector_files.load_task_vector(path, experiment.pretrained, base_sha256=base)[0], blank
        )
    else:
        with interrupts.deferred():  # what was trained is kept, whenever the process is asked to end
            state = _train(experiment, task, training, kept)
            params = training.parametrization.restore(experiment.pretrained, state.trained)
            tau = tajax.task_vector(experiment.pretrained, params)
            metadata = vector_files.vector_metadata(
                model=experiment.config.model,
                revision=experiment.encoder.identity.revision,
                base_sha256=experiment.encoder.identity.sha256,
                task=task.name,
                regime=experiment.regime.name,
                trainable=experiment.regime.trainable,
                layers=experiment.config.layers,
                linearized=experiment.regime.train_linearized,
                seed=experiment.config.seed,
                config_hash=config_hash(experiment.config),
            )
            if processes.is_first():
                vector_files.save_task_vector(path, tau, metadata, mask=experiment.mask)
    if processes.is_first():
        shutil.rmtree(kept, ignore_errors=True)
    return tau


def _train(experiment: Experiment, task: data.Task, training: _Training, kept: Path) -> finetune.TrainState:
    """The last state of a task's fine-tuning, from the checkpoint in `kept` on; each step is recorded once."""
    settings, made_by = experiment.config.finetune, config_hash(experiment.config)
    blank = finetune.init_state(training.parametrization.init(experiment.pretrained), training.tx)
    found = checkpoints.Checkpoint(blank, {})
    if processes.is_first():
        found = checkpoints.restore_latest(kept, blank, config_hash=made_by)
    state, notes = parallel.from_first(found.state), processes.broadcast_json(lambda: found.notes)
    start = int(state.step)
    batches = data.load(
        task,
        "train",
        batch_size=settings.batch_size,
        preprocessing=experiment.encoder.inputs,
        augment=settings.augment,
        seed=experiment.config.seed,
        epochs=None,
        start_batch=start,
        workers=experiment.config.data_workers,
        share=processes.share(),
    )
    recorded = {record["step"] for record in experiment.find(stage="finetune", task=task.name)}
    progress.resumed(start)
    writing = checkpoints.Writer(kept, config_hash=made_by) if processes.is_first() else contextlib.nullcontext()
    with processes.leaving_together(), writing as writer:

        def on_log(done: int, means: dict[str, float]) -> None:
            progress.update(done, means)
            if done not in recorded:  # by a process that was killed before its next checkpoint
                rate = float(training.schedule(done))
                experiment.record("finetune", task=task.name, step=done, learning_rate=rate, **means)

        def on_checkpoint(state: finetune.TrainState, unlogged: finetune.Unlogged) -> None:
            if writer:
                writer.save(state, step=int(state.step), notes={"unlogged": unlogged})

        return finetune.finetune(
            training.step,
            state,
            experiment.pretrained,
            experiment.heads[task.name],
            batches,
            data=training.data and training.data(experiment.encoder, experiment.tasks, task),
            num_steps=training.num_steps,
            log_every=settings.log_every,
            on_log=on_log,
            checkpoint_every=settings.checkpoint_every,
            checkpoint_seconds=settings.checkpoint_seconds,
            on_checkpoint=on_checkpoint,
            unlogged=notes.get("unlogged", ()),
            placement=experiment.placement,
            advice="Lower config.finetune.learning_rate, lengthen warmup_steps, or look at the data of this task.",
            describe=lambda step: f" of task {task.name!r}, learning rate {float(training.schedule(step)):.3g}",
        )


def _reused_vector(experiment: Experiment, run: Path, task: data.Task) -> Params:
    base = experiment.encoder.identity.sha256
    return vector_files.load_task_vector(vector_path(run, task.name), experiment.pretrained, base_sha256=base)[0]


def stages(config: ConfigDict) -> tuple[Stage, ...]:
    """What the workflow does, in order; others go on from there."""
    own = Stage("single_task", "single-task", kind=own_kind(config), images=1)
    return *begin(config), ZERO_SHOT, *vectors(config), own


WORKFLOW = Workflow(on_tasks(answer), stages)

"""Fine-tuning of a run: a task vector for each task, read back where it is finished, trained where not."""

from __future__ import annotations

import contextlib
import functools
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax

import tajax
from tajax import checkpoints, data, finetune, interrupts, optim, parallel, processes, progress, vector_files
from tajax.config import config_hash, warmup_steps
from tajax.encoders.encoder import Encoder
from tajax.parametrization import Parametrization, masked
from tajax.penalties import regularization
from tajax.records import Finetune, stage_of
from tajax.types import Head, Params
from tajax.workflows.journal import training_log
from tajax.workflows.setup import Setup
from tajax.workflows.workdir import read_by_first, vector_path


def finetune_all(setup: Setup, heads: Mapping[str, Head]) -> dict[str, Params]:
    """The task vector of each task, trained under its head."""
    make_training = _training_factory(setup)
    # All of them before the first is trained: a task without epochs is an error at once.
    trainings = {task.name: make_training(num_steps(setup, task)) for task in setup.tasks}
    units = {name: training.num_steps for name, training in trainings.items()}
    done = [task.name for task in setup.tasks if vector_path(setup.workdir, task.name).exists()]
    with progress.stage(stage_of(Finetune), units, done=done) as running:
        taus = {
            task.name: _task_vector(setup, task, heads[task.name], trainings[task.name])
            for task in running.each(setup.tasks)
        }
        last = {record["task"]: record["top1"] for record in setup.journal.find(Finetune)}
        running.note(f"mean train top1 {statistics.fmean(last.values()):.3f}" if last else "")
    return taus


class _Training(NamedTuple):
    """What fine-tuning of a given number of steps consists of."""

    num_steps: int
    schedule: optax.Schedule
    parametrization: Parametrization
    tx: optax.GradientTransformation
    step: finetune.TrainStep
    data: Callable[[Encoder, Sequence[data.Task], data.Task], Any] | None
    """Of the penalty, where there is one."""


def _training_factory(setup: Setup) -> Callable[[int], _Training]:
    """`num_steps -> training`, the same object for the same number of steps, so that it is compiled once."""
    settings = setup.config.finetune

    @functools.cache
    def make(num_steps: int) -> _Training:
        schedule = optim.make_schedule(
            learning_rate=settings.learning_rate,
            num_steps=num_steps,
            warmup_steps=warmup_steps(setup.config, num_steps),
        )
        trained, regularized = masked(setup.mask), regularization(setup.regime.penalty)
        tx = optim.adamw(schedule, weight_decay=settings.weight_decay, clip_norm=settings.clip_norm)
        step = finetune.make_train_step(
            setup.encoder.apply,
            tx,
            trained,
            linearized=setup.regime.train_linearized,
            penalty=_scaled(regularized.penalty, settings.penalty_strength) if regularized else None,
            accumulation_steps=settings.accumulation_steps,
        )
        return _Training(num_steps, schedule, trained, tx, step, regularized.data if regularized else None)

    return make


def _scaled(penalty: finetune.Penalty, strength: float) -> finetune.Penalty:
    return lambda trained, seen: strength * penalty(trained, seen)


def num_steps(setup: Setup, task: data.Task) -> int:
    """Optimiser steps of a task: as given, or so many that the epochs of the task table are seen."""
    settings = setup.config.finetune
    if settings.steps is not None:
        return settings.steps
    epochs = settings.epochs or task.epochs
    if epochs is None:
        raise ValueError(
            f"task {task.name!r} has no number of epochs in the task table. "
            "Give --config.finetune.steps=N or --config.finetune.epochs=N."
        )
    return max(1, epochs * len(task.split("train")) // settings.batch_size)


def _task_vector(setup: Setup, task: data.Task, head: Head, training: _Training) -> Params:
    path = vector_path(setup.workdir, task.name)
    kept = setup.workdir / "checkpoints" / task.name
    if processes.broadcast_json(path.exists):
        base = setup.encoder.identity.sha256
        blank = tajax.task_vector(setup.pretrained, setup.pretrained)
        tau = read_by_first(lambda: vector_files.load_task_vector(path, setup.pretrained, base_sha256=base)[0], blank)
    else:
        with interrupts.deferred():  # what was trained is kept, whenever the process is asked to end
            state = _train(setup, task, head, training, kept)
            params = training.parametrization.restore(setup.pretrained, state.trained)
            tau = tajax.task_vector(setup.pretrained, params)
            metadata = vector_files.vector_metadata(
                model=setup.config.model,
                revision=setup.encoder.identity.revision,
                base_sha256=setup.encoder.identity.sha256,
                task=task.name,
                regime=setup.regime.name,
                trainable=setup.regime.trainable,
                layers=setup.config.layers,
                linearized=setup.regime.train_linearized,
                seed=setup.config.seed,
                config_hash=config_hash(setup.config),
            )
            if processes.is_first():
                vector_files.save_task_vector(path, tau, metadata, mask=setup.mask)
    if processes.is_first():
        shutil.rmtree(kept, ignore_errors=True)
    return tau


def _train(setup: Setup, task: data.Task, head: Head, training: _Training, kept: Path) -> finetune.TrainState:
    """The last state of a task's fine-tuning, from the checkpoint in `kept` on; each step is recorded once."""
    settings, made_by = setup.config.finetune, config_hash(setup.config)
    blank = finetune.init_state(training.parametrization.init(setup.pretrained), training.tx)
    found = checkpoints.Checkpoint(blank, {})
    if processes.is_first():
        found = checkpoints.restore_latest(kept, blank, config_hash=made_by)
    state, notes = parallel.from_first(found.state), processes.broadcast_json(lambda: found.notes)
    start = int(state.step)
    batches = data.load(
        task,
        "train",
        batch_size=settings.batch_size,
        preprocessing=setup.encoder.inputs,
        augment=settings.augment,
        seed=setup.config.seed,
        epochs=None,
        start_batch=start,
        workers=setup.config.data_workers,
        share=processes.share(),
    )
    progress.resumed(start)
    writing = checkpoints.Writer(kept, config_hash=made_by) if processes.is_first() else contextlib.nullcontext()
    with processes.leaving_together(), writing as writer:

        def on_checkpoint(state: finetune.TrainState, unlogged: finetune.Unlogged) -> None:
            if writer:
                writer.save(state, step=int(state.step), notes={"unlogged": unlogged})

        return finetune.finetune(
            training.step,
            state,
            setup.pretrained,
            head,
            batches,
            data=training.data and training.data(setup.encoder, setup.tasks, task),
            num_steps=training.num_steps,
            log_every=settings.log_every,
            on_log=training_log(setup.journal, Finetune, training.schedule, task=task.name),
            checkpoint_every=settings.checkpoint_every,
            checkpoint_seconds=settings.checkpoint_seconds,
            on_checkpoint=on_checkpoint,
            unlogged=notes.get("unlogged", ()),
            placement=setup.placement,
            advice="Lower config.finetune.learning_rate, lengthen warmup_steps, or look at the data of this task.",
            describe=lambda step: f" of task {task.name!r}, learning rate {float(training.schedule(step)):.3g}",
        )

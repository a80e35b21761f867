"""Fine-tuning of a run: a task vector for each task, read back where it is finished, trained where not."""

from __future__ import annotations

import contextlib
import functools
import shutil
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

import tajax
from tajax import (
    checkpoints,
    data,
    finetune,
    host,
    interrupts,
    optim,
    parallel,
    processes,
    progress,
    trees,
    vector_files,
)
from tajax.config import Regime, config_hash, warmup_steps
from tajax.encoders.encoder import Encoder
from tajax.layers import frozen_layers
from tajax.parametrization import Parametrization, masked
from tajax.records import Finetune, stage_of
from tajax.training import Context, Options, TrainingMethod, training_method
from tajax.types import Head, Mask, Params, Remat
from tajax.workflows import recomputation
from tajax.workflows.journal import training_log
from tajax.workflows.setup import Setup
from tajax.workflows.workdir import adapter_path, read_by_first, vector_path

LOGS = 40
"""Points of the curves of loss and accuracy of a training, where the config names no interval."""


def finetune_all(setup: Setup, heads: Mapping[str, Head]) -> dict[str, Params]:
    """The task vector of each task, trained under its head; on the host, as of `tajax.host.fetch`."""
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
    method: TrainingMethod
    tx: optax.GradientTransformation
    parametrization: Callable[[Context], Parametrization]
    make_step: Callable[[Parametrization, Remat], finetune.TrainStep]
    """One for each parametrization, so that tasks that share one share what is compiled."""


def _training_factory(setup: Setup) -> Callable[[int], _Training]:
    """`num_steps -> training`, the same object for the same number of steps, so that it is compiled once."""
    settings, method = setup.config.finetune, training_method(setup.regime.method)
    chosen = _options(setup.config, setup.regime)
    strength = float((setup.regime.strength or 0) if settings.penalty_strength is None else settings.penalty_strength)
    of_leaves = trees.trained_layers(setup.pretrained, setup.mask)
    frozen = frozen_layers(of_leaves, stacked=setup.encoder.stacked)
    shared: list[Parametrization] = [] if method.parametrization else [masked(setup.mask)]

    def parametrization(context: Context) -> Parametrization:
        if method.parametrization and (method.per_task or not shared):
            shared[:] = [method.parametrization(context)]
        return shared[0]

    @functools.cache
    def make(num_steps: int) -> _Training:
        schedule = optim.make_schedule(
            learning_rate=settings.learning_rate,
            num_steps=num_steps,
            warmup_steps=warmup_steps(setup.config, num_steps),
        )
        make_tx = optim.OPTIMIZERS[settings.optimizer]
        tx = make_tx(schedule, weight_decay=settings.weight_decay, clip_norm=settings.clip_norm)

        @functools.lru_cache(maxsize=1)
        def make_step(parametrization: Parametrization, remat: Remat) -> finetune.TrainStep:
            return finetune.make_train_step(
                setup.encoder.for_training(remat=remat, frozen=frozen),
                tx,
                parametrization,
                linearized=setup.regime.train_linearized,
                penalty=_scaled(method.penalty(chosen), strength) if method.penalty else None,
                perturb=method.perturb(chosen) if method.perturb else None,
                accumulation_steps=settings.accumulation_steps,
                placement=setup.placement,
            )

        return _Training(num_steps, schedule, method, tx, parametrization, make_step)

    return make


def check_training(config: ConfigDict, regime: Regime, encoder: Encoder, mask: Mask, *, vectors: str) -> None:
    """Raises `ValueError` if the regime cannot train what the mask names of an encoder.

    Or, where a run takes no vectors, `vectors` is "none", if the mask's parameters are not what the regime trains: the
    run would be about others.
    """
    method = training_method(regime.method)
    if vectors == "none" and (method.count or method.entries):
        raise ValueError(
            f"workflow {config.workflow!r} is about the parameters that a rule names, and regime {regime.name!r} "
            "trains other coordinates. Choose a regime that trains the parameters, such as --config.regime=linear."
        )
    if vectors == "trained" and method.check:
        method.check(encoder, mask, _options(config, regime))
    if vectors == "trained":
        _check_optimizer(config, regime, encoder, mask)
        _check_remat(config, encoder)


def _check_optimizer(config: ConfigDict, regime: Regime, encoder: Encoder, mask: Mask) -> None:
    name = config.finetune.optimizer
    if training_method(regime.method).parametrization is None:
        parts = jax.eval_shape(lambda params: trees.split(params, mask)[0], encoder.params)
        jax.eval_shape(optim.OPTIMIZERS[name](0.1).init, parts)  # which says what it cannot take
    elif name == "muon":
        raise ValueError(
            f"finetune.optimizer 'muon' takes whole dense kernels, and regime {regime.name!r} trains others. "
            "Choose 'adamw', or a regime that trains the kernels themselves."
        )


def _check_remat(config: ConfigDict, encoder: Encoder) -> None:
    remat, known = config.finetune.remat, ("auto", *encoder.remats)
    if remat not in known:
        raise ValueError(
            f"finetune.remat is {remat!r}, but layers of the family {encoder.family!r} cannot be computed again. "
            f"Choose {' or '.join(map(repr, known))}."
        )


def count_trained(config: ConfigDict, regime: Regime, encoder: Encoder, mask: Mask) -> int | None:
    """How many numbers the regime trains, where that is not how many the mask names."""
    method = training_method(regime.method)
    return method.count(encoder.params, mask, _options(config, regime)) if method.count else None


def count_entries(config: ConfigDict, regime: Regime, encoder: Encoder, mask: Mask) -> int | None:
    """How many single entries of what the mask names the regime trains; None: all."""
    method, named = training_method(regime.method), trees.count_params(encoder.params, mask)
    return method.entries(named, _options(config, regime)) if method.entries else None


def _options(config: ConfigDict, regime: Regime) -> Options:
    return {name: config.finetune[name] for name in regime.options}


def _scaled(penalty: finetune.Penalty, strength: float) -> finetune.Penalty:
    return lambda trained, seen: strength * penalty(trained, seen)


def _context(setup: Setup, task: data.Task, head: Head, kept: Path) -> Context:
    return Context(
        encoder=setup.encoder,
        task=task,
        others=[other for other in setup.tasks if other.name != task.name],
        head=head,
        mask=setup.mask,
        options=_options(setup.config, setup.regime),
        batch_size=setup.config.finetune.batch_size,
        seed=setup.config.seed,
        kept=kept,
        workdir=setup.workdir,
        share=processes.share(),
        workers=setup.config.data_workers,
    )


def num_steps(setup: Setup, task: data.Task) -> int:
    """Optimiser steps of a task: as given, or one for each batch of so many epochs, the last of them smaller."""
    settings = setup.config.finetune
    if settings.steps is not None:
        return settings.steps
    epochs = settings.epochs or task.epochs
    if epochs is None:
        raise ValueError(
            f"task {task.name!r} has no number of epochs in the task table. "
            "Give --config.finetune.steps=N or --config.finetune.epochs=N."
        )
    return epochs * -(-len(task.split("train")) // settings.batch_size)


def _task_vector(setup: Setup, task: data.Task, head: Head, training: _Training) -> Params:
    path = vector_path(setup.workdir, task.name)
    kept = setup.workdir / "checkpoints" / task.name
    if processes.broadcast_json(path.exists):
        base = setup.encoder.identity.sha256
        shapes = jax.eval_shape(tajax.task_vector, setup.pretrained, setup.pretrained)
        blank = jax.tree.map(lambda leaf: host.zeros(leaf.shape, leaf.dtype), shapes)
        read = read_by_first(lambda: vector_files.load_task_vector(path, setup.pretrained, base_sha256=base)[0], blank)
        tau = host.fetch(read)
    else:
        with interrupts.deferred():  # what was trained is kept, whenever the process is asked to end
            context = _context(setup, task, head, kept / "method")
            parametrization = training.parametrization(context)
            state = _train(setup, context, training, parametrization, kept)
            finetuned = parametrization.finetuned(setup.pretrained, state.trained)
            tau = host.fetch(tajax.task_vector(setup.pretrained, finetuned))
            del finetuned  # a model on the devices
            expanded = setup.regime.train_linearized and setup.regime.evaluate_linearized  # delta's student is not
            metadata = vector_files.vector_metadata(
                model=setup.config.model,
                revision=setup.encoder.identity.revision,
                base_sha256=setup.encoder.identity.sha256,
                family=setup.encoder.family,
                task=task.name,
                regime=setup.regime.name,
                trainable=setup.regime.trainable,
                layers=setup.config.layers,
                linearized=expanded,
                through_norm=True if setup.config.linearize_through_norm and expanded else None,
                seed=setup.config.seed,
                config_hash=config_hash(setup.config),
                trained_parameters=count_entries(setup.config, setup.regime, setup.encoder, setup.mask),
            )
            if processes.is_first():
                if training.method.export and setup.config.initialization == "pretrained":  # else nobody has its base
                    training.method.export(context, state.trained, adapter_path(setup.workdir, task.name))
                sparse = training.method.entries is not None
                vector_files.save_task_vector(path, tau, metadata, mask=setup.mask, sparse=sparse)
    if processes.is_first():
        shutil.rmtree(kept, ignore_errors=True)
    return tau


def _train(
    setup: Setup, context: Context, training: _Training, parametrization: Parametrization, kept: Path
) -> finetune.TrainState:
    """The last state of a task's fine-tuning, from the checkpoint in `kept` on; each step is recorded once."""
    settings, made_by, task = setup.config.finetune, config_hash(setup.config), context.task
    blank = finetune.init_state(parametrization.init(setup.pretrained), training.tx)
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
    constants = setup.pretrained, context.head
    penalized = training.method.data(context)

    def arguments() -> tuple[tuple[Any, ...], dict[str, Any]]:
        size, inputs, share = settings.batch_size, setup.encoder.inputs, processes.share()
        batch = data.largest_batch(setup.tasks, "train", batch_size=size, preprocessing=inputs, share=share)
        others = training.method.stream and next(training.method.stream(context, start))
        return finetune.step_arguments(
            state, *constants, batch, data=penalized, others=others, placement=setup.placement
        )

    step_with = functools.partial(training.make_step, parametrization)
    remat = recomputation.settle(setup, step_with, arguments)
    writing = checkpoints.Writer(kept, config_hash=made_by) if processes.is_first() else contextlib.nullcontext()
    with processes.leaving_together(), writing as writer:

        def on_checkpoint(state: finetune.TrainState, unlogged: finetune.Unlogged) -> None:
            whole = setup.placement.host(state)  # of all processes, and so for any devices that go on
            if writer:
                writer.save(whole, step=int(whole.step), notes={"unlogged": unlogged})

        return finetune.finetune(
            step_with(remat),
            state,
            *constants,
            batches,
            data=penalized,
            others=training.method.stream and training.method.stream(context, start),
            num_steps=training.num_steps,
            log_every=settings.log_every or max(1, training.num_steps // LOGS),
            on_log=training_log(setup.journal, Finetune, training.schedule, task=task.name),
            checkpoint_every=settings.checkpoint_every,
            checkpoint_seconds=settings.checkpoint_seconds,
            on_checkpoint=on_checkpoint,
            unlogged=notes.get("unlogged", ()),
            placement=setup.placement,
            advice="Lower config.finetune.learning_rate, lengthen warmup_steps, or look at the data of this task.",
            describe=lambda step: f" of task {task.name!r}, learning rate {float(training.schedule(step)):.3g}",
        )

"""The heads of a run: from class names, or linear probes.

A probe is fitted once for a model and a task, and kept beside the task vectors trained under it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

from tajax import atomic, data, models, parallel, processes, progress, records
from tajax.results import Record
from tajax.types import Batch, Head, Params
from tajax.workflows import inputs
from tajax.workflows.setup import Setup

FeaturesStep = Callable[[Params, Batch], jax.Array]

FOLDER = "heads"
IMAGES, IMAGES_A_CLASS = 4000, 16  # of train that a head is fitted to: so many, or so many a class if that is more
ORDER_SEED = 0  # of the draw of these images: one head for all seeds and regimes


def make_heads(setup: Setup, step: FeaturesStep) -> dict[str, Head]:
    """The frozen head of each task and of the control; those of the tasks are padded to the same number of classes.

    Args:
        setup: the run; `config.heads` says of which kind they are. A fitted one is kept and recorded.
        step: `(parameters, batch of Placement.shares) -> features [B, E]`.

    Raises:
        ValueError: heads from class names, and a family that makes none; or as `linear_probe_head`.
        FileExistsError: as `linear_probe_head`.
    """
    every, heads = (*setup.tasks, *setup.controls), {}
    classes = {task.name: len(task.class_names) for task in setup.tasks}
    with progress.stage("heads", {task.name: 1 for task in every}) as running:
        for task in running.each(every):
            fitted = setup.config.heads == "linear_probe"
            head = linear_probe_head(setup, task, step) if fitted else _zero_shot_head(setup, task)
            head = head._replace(normalizes=not setup.config.linearize_through_norm)
            heads[task.name] = models.pad_head(head, max(classes.values())) if task.name in classes else head
    return heads


def _zero_shot_head(setup: Setup, task: data.Task) -> Head:
    if setup.encoder.zero_shot is None:
        raise ValueError(
            f"{setup.config.model} is of the family {setup.encoder.family!r}, which makes no heads from "
            "class names. Give --config.heads=linear_probe."
        )
    return setup.encoder.zero_shot.head(task.class_names, task.templates)


def linear_probe_head(setup: Setup, task: data.Task, step: FeaturesStep) -> Head:
    """The head fitted to the pre-trained features of a task's train split, with λ chosen on its validation split.

    It is read from this run or from the run of `config.task_vectors`, whose vectors were trained under it, and fitted
    where neither has it. λ and the probe's own accuracies are recorded under the stage `head`.

    Raises:
        ValueError: the file of the head is damaged or belongs to another model or other classes.
        FileExistsError: it was fitted to other images.
    """
    kept = setup.workdir / FOLDER / f"{task.name}.safetensors"
    source = setup.config.task_vectors
    theirs = [Path(os.path.expanduser(source)) / FOLDER / kept.name] if source is not None else []
    found = processes.broadcast_json(lambda: next((str(path) for path in (kept, *theirs) if path.exists()), None))
    if found is None:
        head, facts = _fit(setup, task, step)
    elif processes.is_first():
        head, facts = _read(Path(found), setup, task)
    else:
        head, facts = Head(jnp.zeros(_shape(setup, task)), jnp.int32(0)), {}
    head, facts = parallel.from_first(head), processes.broadcast_json(lambda: facts)
    if processes.is_first() and found != str(kept):
        _write(kept, head, facts)
    if not setup.journal.find(records.Head, task=task.name):
        setup.journal.record(records.Head, task=task.name, **facts)
    return head


def _fit(setup: Setup, task: data.Task, step: FeaturesStep) -> tuple[Head, Record]:
    classes, stored = len(task.class_names), len(task.split("train"))
    images = min(stored, max(IMAGES, IMAGES_A_CLASS * classes))
    train = _features(setup, step, _shuffled(setup, task), images)
    val = _features(setup, step, setup.batches(task, "val"), len(task.split("val")))
    probe = models.linear_probe(*train, *val, num_classes=classes)
    facts = {
        "kind": "linear_probe",
        "base_sha256": setup.encoder.identity.sha256,
        "made_from": _made_from(setup, task),
        "images": images,
        "regularization": probe.regularization,
        "train_top1": probe.train_top1,
        "val_top1": probe.val_top1,
        "val_loss": probe.val_loss,
        "converged": probe.converged,
    }
    progress.note({"λ": probe.regularization, "val top1": probe.val_top1})
    return probe.head, facts


def _shuffled(setup: Setup, task: data.Task) -> Iterator[Batch]:
    """Training images in an order that mixes the classes, each once before any comes again."""
    return iter(
        data.load(
            task,
            "train",
            batch_size=setup.config.evaluate.batch_size,
            preprocessing=setup.encoder.inputs,
            seed=ORDER_SEED,
            epochs=None,
            workers=setup.config.data_workers,
            share=processes.share(),
        )
    )


def _features(setup: Setup, step: FeaturesStep, batches: Iterable[Batch], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pre-trained features [count, E] of the first images, and their labels."""
    placement = setup.placement
    pretrained = placement.params(setup.pretrained)
    features, labels = [], []
    for batch in batches:
        rows = np.asarray(step(pretrained, placement.shares(batch)))
        label, mask = parallel.rows_of_all((batch.label, batch.mask))
        features.append(rows[: len(mask)][mask])
        labels.append(label[mask])
        if sum(map(len, labels)) >= count:
            break
    return np.concatenate(features)[:count], np.concatenate(labels)[:count]


def _shape(setup: Setup, task: data.Task) -> tuple[int, int]:
    return setup.encoder.feature_dim, len(task.class_names)


def _write(path: Path, head: Head, facts: Record) -> None:
    metadata = {"format": "tajax head 1", "facts": json.dumps(facts)}
    atomic.write(path, save({"weights": np.asarray(head.weights)}, metadata=metadata))


def _read(path: Path, setup: Setup, task: data.Task) -> tuple[Head, Record]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            weights = file.get_tensor("weights")
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no head of tajax ({error}). Delete it to fit it anew.") from error
    shape = _shape(setup, task)
    base = setup.encoder.identity.sha256
    if facts.get("base_sha256") != base or weights.shape != shape:
        raise ValueError(
            f"{path} is a head {list(weights.shape)} on features of the encoder {facts.get('base_sha256')}; task "
            f"{task.name!r} on {setup.config.model} wants {list(shape)} and {base}. Delete it to fit it anew."
        )
    present = _made_from(setup, task)
    earlier = facts.get("made_from", present)
    changed = [part for part, value in present.items() if inputs.known_of(earlier, part, value) != value]
    if changed:
        raise FileExistsError(
            f"{path} was fitted to other data: {', '.join(changed)} of task {task.name!r} changed since. Give them "
            "as they were, or delete the file to fit it anew; task vectors that were trained under it no longer fit."
        )
    if "made_from" not in facts and path.parent.parent != setup.workdir:
        progress.say(f"{path} does not tell what it was fitted to: whether the data are the same is not known.")
    return Head(jnp.asarray(weights), jnp.int32(shape[1])), facts


def _made_from(setup: Setup, task: data.Task) -> Record:
    """What a head is fitted to, beside the weights: digests of the images, preprocessing and geometry, as JSON."""
    encoder, parts = setup.encoder, setup.journal.facts["data"][task.name]
    model = {"preprocessing": encoder.inputs.to_json(), "encoder": encoder.identity.geometry}
    return json.loads(json.dumps({"train": parts["train"], "val": parts["val"]} | model))

"""What merging does to single examples: what the pre-trained, the single-task and the merged model predict of each."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from tajax import atomic, data, evaluate, parallel, processes, progress, records
from tajax.losses import head_logits
from tajax.results import Record
from tajax.task_vectors import apply_task_vector, moved_leaves
from tajax.types import Batch, Params
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.setup import Setup

ThreeModels = Callable[[Batch], Sequence[jax.Array]]

FOLDER = "examples"
MODELS = ("pretrained", "single", "merged")
SIDE = 128  # pixels, at most, of an example's longer side
# What became of an image, and how many of each kind are kept: right (or not) before, alone and merged.
KINDS = {
    "lost by merging": ((None, True, False), 3),
    "gained by merging": ((None, False, True), 2),
    "learned and kept": ((False, True, True), 2),
    "never right": ((False, False, False), 1),
}


class Predictions(NamedTuple):
    """A split as the three models see it.

    Attributes:
        labels: the classes.
        predicted: the classes that each of `MODELS` predicts.
        examples: `(row, kind, image or text)` of the first examples of each kind.
    """

    labels: Int[np.ndarray, " N"]
    predicted: Int[np.ndarray, "M=3 N"]
    examples: tuple[tuple[int, str, UInt8[np.ndarray, "H W 3"] | str], ...]


def record_predictions(
    setup: Setup, evaluator: Evaluator, taus: Mapping[str, Params], tau: Params, scaling_coef: float
) -> None:
    """Records for each task how the three models' predictions on test agree, and keeps examples, images or texts.

    One pass over test with three forward passes a batch; in the linearised regimes with one linearisation and two
    tangent passes. Tasks that have their record are skipped.

    Args:
        setup: the run, its merged model chosen.
        evaluator: of its models.
        taus: the task vector of each task.
        tau: the merged one.
        scaling_coef: λ; the merged model is θ₀ + λτ.
    """
    models_at = functools.cache(lambda: _models(evaluator, tau, scaling_coef))
    for task, (key,) in setup.journal.each(
        records.Predictions,
        setup.tasks,
        lambda task: {"task": task.name, "split": "test"},
        units=lambda task: len(task.split("test")),
    ):
        found = predict(evaluator, task, models_at()(taus[task.name]))
        classes = list(task.class_names)
        fields = summary(found.labels, found.predicted, len(classes))
        examples = _keep(setup, task, found)
        setup.journal.record(records.Predictions, **key, classes=classes, examples=examples, **fields)
        progress.note({"merged top1": fields["top1"]["merged"]})


def predict(evaluator: Evaluator, task: data.Task, features: ThreeModels) -> Predictions:
    """The classes that three models predict on the test split of a task.

    Args:
        evaluator: heads and placement.
        task: one of the tasks.
        features: `batch of `Placement.shares` -> features [B, E]` of each of `MODELS`.
    """
    head, placement = evaluator.heads[task.name], evaluator.placement
    labels, predicted, examples, start = [], [], [], 0
    wanted = {kind: count for kind, (_, count) in KINDS.items()}
    for batch in evaluator.batches(task, "test", by_length=False):
        rows = features(placement.shares(batch))
        batch = parallel.rows_of_all(batch)
        seen = np.stack([np.asarray(jnp.argmax(head_logits(one, head), axis=-1)) for one in rows])
        seen, truth = seen[:, : len(batch.mask)][:, batch.mask], np.asarray(batch.label)[batch.mask]
        inputs = np.asarray(batch.inputs)[batch.mask]
        for row, right in enumerate((seen == truth).T):
            kind = kind_of(right)
            if kind is not None and wanted[kind]:
                wanted[kind] -= 1
                shown = task.split("test")[start + row][0] if task.modality == "texts" else inputs[row]
                examples.append((start + row, kind, shown))
        labels.append(truth)
        predicted.append(seen)
        start += len(truth)
    examples.sort(key=lambda example: list(KINDS).index(example[1]))
    return Predictions(np.concatenate(labels), np.concatenate(predicted, axis=1), tuple(examples))


def kind_of(right: np.ndarray) -> str | None:
    """The first of `KINDS` that an image belongs to, from which of the three models is right.

    Example:
        >>> kind_of([True, True, False]), kind_of([True, True, True])
        ('lost by merging', None)
    """
    for kind, (pattern, _) in KINDS.items():
        if all(wanted is None or wanted == bool(is_right) for wanted, is_right in zip(pattern, right, strict=True)):
            return kind
    return None


def summary(labels: Int[np.ndarray, " N"], predicted: Int[np.ndarray, "M=3 N"], num_classes: int) -> Record:
    """What is recorded of a split's predictions.

    Args:
        labels: the classes.
        predicted: the classes predicted by each of `MODELS`.
        num_classes: K.

    Returns:
        Fields of `records.Predictions`.

    Example:
        >>> found = summary(np.array([0, 1, 1]), np.array([[0, 0, 0], [0, 1, 1], [0, 1, 0]]), 2)
        >>> found["correctness"], found["confusion"]
        ([[2, 1], [0, 0]], [[0, 0, 1], [1, 0, 1], [1, 1, 1]])
    """
    right = predicted == labels
    single, merged = right[MODELS.index("single")], right[MODELS.index("merged")]
    pairs = predicted[1].astype(np.int64) * num_classes + predicted[2]
    codes, counts = np.unique(pairs, return_counts=True)
    return {
        "count": len(labels),
        "top1": dict(zip(MODELS, right.mean(axis=1).tolist(), strict=True)),
        "correctness": [[int(np.sum((single == a) & (merged == b))) for b in (True, False)] for a in (True, False)],
        "confusion": [
            [int(c // num_classes), int(c % num_classes), int(n)] for c, n in zip(codes, counts, strict=True)
        ],
    }


def thumbnail(image: UInt8[np.ndarray, "H W 3"], side: int = SIDE) -> bytes:
    """The image as PNG, its longer side at most `side` pixels."""
    picture = Image.fromarray(np.asarray(image, np.uint8))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _keep(setup: Setup, task: data.Task, found: Predictions) -> list[records.Example]:
    """Writes the examples of a task, all of them or none, and gives what is recorded of each."""
    folder = setup.workdir / FOLDER / task.name
    kept = []
    with atomic.directory(folder) if processes.is_first() else contextlib.nullcontext() as partial:
        for number, (row, kind, shown) in enumerate(found.examples):
            suffix, content = ("txt", shown.encode()) if isinstance(shown, str) else ("png", thumbnail(shown))
            if partial:
                (partial / f"{number}.{suffix}").write_bytes(content)
            file, label = f"{FOLDER}/{task.name}/{number}.{suffix}", int(found.labels[row])
            pretrained, single, merged = found.predicted[:, row].tolist()
            kept.append(
                records.Example(
                    file=file, kind=kind, row=row, label=label, pretrained=pretrained, single=single, merged=merged
                )
            )
    return kept


def _models(evaluator: Evaluator, tau: Params, scaling_coef: float) -> Callable[[Params], ThreeModels]:
    """`τ_t -> features`: of θ₀, θ₀ + τ_t and θ₀ + λτ, linearised where the regime is; compiled once for all tasks."""
    placement, pretrained = evaluator.placement, evaluator.encoder.params
    origin = placement.params(pretrained)
    if evaluator.linearized:
        responses = evaluate.make_responses_step(evaluator.encoder.apply_for_responses, placement=placement)

        def tangent(own: Params) -> ThreeModels:
            vectors = placement.params(tuple(moved_leaves([own, tau])))

            def features(batch: Batch) -> list[jax.Array]:
                at, single, merged = responses(origin, vectors, batch).swapaxes(0, 1)
                return [at, at + single, at + scaling_coef * merged]

            return features

        return tangent
    step, edit = evaluator.features_step, jax.jit(apply_task_vector)
    merged = placement.params(edit(pretrained, tau, scaling_coef))

    def model(own: Params) -> ThreeModels:
        single = placement.params(edit(pretrained, own, 1.0))
        return lambda batch: [step(params, batch) for params in (origin, single, merged)]

    return model

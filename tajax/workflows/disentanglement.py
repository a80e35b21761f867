"""Weight disentanglement of the task vectors of a run: a map of ξ(α₁, α₂) for each pair of tasks.

Each map is measured through the heads and on the features side by side, from one pass over the grid
(Ortiz-Jimenez et al. 2023, §4; Jin et al. 2024).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from tajax import data, evaluate, progress
from tajax.config import one_of
from tajax.data.sources import rows_of
from tajax.disentanglement import (
    MODULES,
    AffineOutputs,
    Outputs,
    affine_sums,
    curve_sums,
    mean_distances,
    mean_over_square,
    pointwise_sums,
    relative_terms,
)
from tajax.progress import Stage
from tajax.records import Disentanglement, stage_of
from tajax.results import Record
from tajax.task_vectors import moved_leaves
from tajax.types import Batch, Head, Params
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.setup import Setup
from tajax.workflows.stages import on_vectors
from tajax.workflows.start import on_tasks
from tajax.workflows.vectors import task_vectors
from tajax.workflows.workflow import Workflow

STAGE = stage_of(Disentanglement)
DISTANCES = tuple(MODULES.values())  # D of them
DEGREES = {"prediction": 1, "symmetric_kl": 2}  # how they grow with a small displacement


OutputsOf = Callable[[str, str], Iterator[tuple[Outputs, ArrayLike]]]
"""Of a task and another one, whose vectors are added: the outputs on each batch of its images, and the mask."""


def answer(setup: Setup, evaluator: Evaluator) -> None:
    """The maps of all pairs of `config.disentanglement`, from vectors trained here or, better, by another run."""
    config = setup.config.disentanglement
    pairs = pairs_of(setup)
    mean_over_square(np.zeros((2, *2 * (len(config.coefs),))), config.coefs)
    measure_pairs(setup, evaluator.heads, task_vectors(setup, evaluator.heads), pairs)


def pairs_of(setup: Setup) -> list[tuple[str, str]]:
    """The pairs of names to measure: as given, or all of them.

    Raises:
        ValueError: a name is none of the tasks, or there is no pair.
    """
    names, given = [task.name for task in setup.tasks], setup.config.disentanglement.pairs
    if given is None:
        pairs = list(itertools.combinations(names, 2))
    else:
        pairs = [(one_of("task in disentanglement.pairs", a, names), one_of("task", b, names)) for a, b in given]
    if not pairs:
        raise ValueError(f"disentanglement is between two tasks, and there are {len(names)}: {', '.join(names)}.")
    return pairs


def measure_pairs(
    setup: Setup, heads: Mapping[str, Head], taus: Mapping[str, Params], pairs: list[tuple[str, str]]
) -> None:
    """Records the map of each pair and distance that has none yet."""
    settings, journal, linearized = setup.config.disentanglement, setup.journal, setup.regime.evaluate_linearized
    term_sums = functools.partial(affine_sums if linearized else pointwise_sums, DISTANCES, np.array(settings.coefs))
    own_sums = functools.partial(curve_sums, DISTANCES, (*settings.coefs, 1.0))

    def key_of(pair: tuple[str, str]) -> Record:
        return {"tasks": list(pair), "split": settings.split, "distance": tuple(MODULES)}

    @functools.cache
    def to_measure() -> tuple[dict[str, list[Batch]], OutputsOf]:
        """The images of all pairs that are left, and what the model gives on them."""
        left = {name for pair in pairs if journal.missing(Disentanglement, key_of(pair)) for name in pair}
        images = {task.name: _images(setup, task) for task in setup.tasks if task.name in left}
        outputs_of = _tangent_outputs if linearized else _model_outputs
        return images, outputs_of(setup, images, {name: taus[name] for name in images})

    @functools.cache
    def curve(task: str) -> np.ndarray:
        return mean_distances(own_sums, to_measure()[1](task, task), heads[task])

    for (a, b), missing in journal.each(Disentanglement, pairs, key_of, name=" and ".join):
        images, outputs = to_measure()
        first, second = (mean_distances(term_sums, outputs(t, other), heads[t]) for t, other in ((a, b), (b, a)))
        terms = np.stack([first, second.swapaxes(1, 2)], axis=1)  # [D, 2, A, A]
        own = np.stack([curve(a), curve(b)], axis=1)  # [D, 2, A+1], the last of them at α = 1
        if not np.isfinite(terms).all():
            raise FloatingPointError(
                f"with the vectors of {a!r} and {b!r} the model gives outputs that are not finite, somewhere "
                f"between {settings.coefs[0]} and {settings.coefs[-1]}: narrow disentanglement.coefs."
            )
        counts = [sum(int(batch.mask.sum()) for batch in images[name]) for name in (a, b)]
        measured = dict(zip(MODULES, zip(terms, own, strict=True), strict=True))
        for key in missing:
            map_, curves = measured[key["distance"]]
            whole = curves[:, -1]
            ratio = relative_terms(map_, whole, degree=DEGREES[key["distance"]]) if whole.all() else None
            journal.record(
                Disentanglement,
                **key,
                summary=mean_over_square(map_, settings.coefs),
                relative=None if ratio is None else mean_over_square(ratio, settings.coefs),
                own=whole,
                images=counts,
                coefs=settings.coefs,
                own_curve=np.round(curves[:, :-1], 6),
                terms=np.round(map_, 6),
            )
        progress.note({"ξ/2": mean_over_square(terms[0], settings.coefs)})


def _images(setup: Setup, task: data.Task) -> list[Batch]:
    """Batches of the task's images, on the host; fewer than all are evenly spread, for some sources sort by class."""
    settings = setup.config.disentanglement
    source = task.split(settings.split)
    count = len(source) if settings.images is None else min(settings.images, len(source))
    rows = np.arange(count) * len(source) // count
    some = dataclasses.replace(task, splits={**task.splits, settings.split: rows_of(source, rows)})
    batches = data.load(
        some,
        settings.split,
        batch_size=min(setup.config.evaluate.batch_size, count),
        preprocessing=setup.encoder.inputs,
        workers=setup.config.data_workers,
    )
    return [setup.placement.pad(batch) for batch in batches]


def _model_outputs(setup: Setup, images: Mapping[str, list[Batch]], taus: Mapping[str, Params]) -> OutputsOf:
    """Of a model that is not affine: a forward pass for each point of the grid."""
    placement = setup.placement
    step = evaluate.make_features_step(setup.encoder.apply, placement=placement)
    pretrained = placement.params(setup.pretrained)
    carried = dict(zip(taus, moved_leaves(list(taus.values())), strict=True))

    def encoder(vectors: tuple[Any, Any], batch: Batch, known: Mapping[tuple[float, float], Any]) -> Outputs:
        placed = placement.shares(batch)
        return lambda c: known[c] if c in known else step(pretrained, vectors, np.array(c, np.float32), placed)

    @functools.cache
    def alone(task: str) -> list[dict[tuple[float, float], np.ndarray]]:
        """Of each batch the features without a second vector, by the same program as with one: for all pairs."""
        points = [(alpha, 0.0) for alpha in (0.0, *setup.config.disentanglement.coefs, 1.0)]
        vectors = placement.params((carried[task], carried[task]))
        encoders = (encoder(vectors, batch, {}) for batch in images[task])
        return [{point: np.asarray(outputs(point)) for point in points} for outputs in encoders]

    def outputs(task: str, other: str) -> Iterator[tuple[Outputs, ArrayLike]]:
        known_of = alone(task)
        vectors = placement.params((carried[task], carried[other]))
        for batch, known in zip(images[task], known_of, strict=True):
            yield encoder(vectors, batch, known), batch.mask

    return outputs


def _tangent_outputs(setup: Setup, images: Mapping[str, list[Batch]], taus: Mapping[str, Params]) -> OutputsOf:
    """Of a linearised model: one pass over the images of a task serves all of its pairs and the whole grid."""
    placement, positions = setup.placement, {name: t for t, name in enumerate(taus, start=1)}
    step = evaluate.make_responses_step(setup.encoder.apply_for_responses, placement=placement)
    carried = tuple(moved_leaves(list(taus.values())))
    pretrained, vectors = placement.params((setup.pretrained, carried))

    @functools.cache
    def responses(task: str) -> list[np.ndarray]:
        return [np.asarray(step(pretrained, vectors, placement.shares(batch))) for batch in images[task]]

    def outputs(task: str, other: str) -> Iterator[tuple[Outputs, ArrayLike]]:
        for batch, rows in zip(images[task], responses(task), strict=True):
            yield AffineOutputs(*(rows[:, t] for t in (0, positions[task], positions[other]))), batch.mask

    return outputs


WORKFLOW = Workflow(on_tasks(answer), on_vectors(Stage(STAGE, each=True)))

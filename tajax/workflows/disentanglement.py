"""Weight disentanglement of the task vectors of a run: a map of ξ(α₁, α₂) for each pair of tasks.

Each map is measured through the heads and on the features side by side, from one pass over the grid
(Ortiz-Jimenez et al. 2023, §4; Jin et al. 2024).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from tajax import data, evaluate, progress, trees
from tajax.config import one_of
from tajax.data.sources import rows_of
from tajax.disentanglement import (
    MODULES,
    affine_sums,
    mean_over_square,
    pointwise_sums,
    relative_terms,
    summed_distances,
)
from tajax.progress import Stage
from tajax.records import Disentanglement, stage_of
from tajax.results import Record
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


class Disturbance(NamedTuple):
    """What the vectors do to the outputs on the images of one task, in the mean over them, for each distance.

    Attributes:
        term: [D, A, A], the term of ξ of this task: what another vector does. α of the task itself first.
        own: [D, A+1], what the task's own vector does, dist(f(x; θ₀), f(x; θ₀ + ατ)), at each α and then at α = 1.
    """

    term: np.ndarray
    own: np.ndarray


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
    settings, journal = setup.config.disentanglement, setup.journal

    def key_of(pair: tuple[str, str]) -> Record:
        return {"tasks": list(pair), "split": settings.split, "distance": tuple(MODULES)}

    @functools.cache
    def to_measure() -> tuple[dict[str, list[Batch]], Callable[[str, str], Disturbance]]:
        """The images of all pairs that are left, and how to disturb them."""
        left = {name for pair in pairs if journal.missing(Disentanglement, key_of(pair)) for name in pair}
        images = {task.name: _images(setup, task) for task in setup.tasks if task.name in left}
        make = _tangent_disturbances if setup.regime.evaluate_linearized else _model_disturbances
        return images, make(setup, heads, images, {name: taus[name] for name in images})

    for (a, b), missing in journal.each(Disentanglement, pairs, key_of, name=" and ".join):
        images, disturbance = to_measure()
        first, second = disturbance(a, b), disturbance(b, a)
        terms = np.stack([first.term, second.term.swapaxes(1, 2)], axis=1)  # [D, 2, A, A]
        own = np.stack([first.own, second.own], axis=1)  # [D, 2, A+1]
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


def _model_disturbances(
    setup: Setup, heads: Mapping[str, Head], images: Mapping[str, list[Batch]], taus: Mapping[str, Params]
) -> Callable[[str, str], Disturbance]:
    """`(task, other task) -> Disturbance` of a model that is not affine: a forward pass for each point of the grid."""
    grid, placement = np.array(setup.config.disentanglement.coefs), setup.placement
    step = evaluate.make_features_step(setup.encoder.apply, placement=placement)
    pretrained = placement.params(setup.pretrained)
    carried = dict(zip(taus, trees.moved_leaves(list(taus.values())), strict=True))

    def encoder(task: str, other: str, batch: Batch) -> Callable[[tuple[float, float]], jax.Array]:
        vectors = placement.params((carried[task], carried[other]))
        placed = placement.shares(batch)
        return lambda coefs: step(pretrained, vectors, np.array(coefs, np.float32), placed)

    @functools.cache
    def alone(task: str) -> list[tuple[list[np.ndarray], np.ndarray]]:
        """Of each batch the features at each α, and how far they are from those at 0, those at 1 too: for all pairs."""
        found = []
        for batch in images[task]:
            outputs = encoder(task, task, batch)  # the second coefficient is 0: the same program as for two vectors
            origin, *features = (np.asarray(outputs((alpha, 0.0))) for alpha in (0.0, *grid, 1.0))
            constants = batch.mask, heads[task]
            moved = [summed_distances(DISTANCES, origin, edited, *constants) for edited in features]
            found.append((features[:-1], np.stack(moved, axis=1)))
        return found

    def disturbance(task: str, other: str) -> Disturbance:
        term, own = np.zeros((len(DISTANCES), len(grid), len(grid))), np.zeros((len(DISTANCES), len(grid) + 1))
        for batch, (features, moved) in zip(images[task], alone(task), strict=True):
            constants = batch.mask, heads[task]
            term += pointwise_sums(DISTANCES, grid, features, encoder(task, other, batch), *constants)
            own += moved
        count = sum(batch.mask.sum() for batch in images[task])
        return Disturbance(term / count, own / count)

    return disturbance


def _tangent_disturbances(
    setup: Setup, heads: Mapping[str, Head], images: Mapping[str, list[Batch]], taus: Mapping[str, Params]
) -> Callable[[str, str], Disturbance]:
    """The same of a linearised model: one pass over the images of a task serves all of its pairs and the whole grid."""
    placement, positions = setup.placement, {name: t for t, name in enumerate(taus, start=1)}
    step = evaluate.make_responses_step(setup.encoder.apply_for_responses, placement=placement)
    carried = tuple(trees.moved_leaves(list(taus.values())))
    pretrained, vectors = placement.params((setup.pretrained, carried))
    grid = np.array(setup.config.disentanglement.coefs, np.float32)

    @functools.cache
    def responses(task: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each batch f(θ₀) with the response to each vector, and how far the task's own vector moves it."""
        found = []
        for batch in images[task]:
            rows = np.asarray(step(pretrained, vectors, placement.shares(batch)))
            origin, own = rows[:, 0], rows[:, positions[task]]
            constants = batch.mask, heads[task]
            moved = [summed_distances(DISTANCES, origin, origin + alpha * own, *constants) for alpha in (*grid, 1.0)]
            found.append((rows, np.stack(moved, axis=1)))
        return found

    def disturbance(task: str, other: str) -> Disturbance:
        term, own = np.zeros((len(DISTANCES), len(grid), len(grid))), np.zeros((len(DISTANCES), len(grid) + 1))
        for batch, (rows, moved) in zip(images[task], responses(task), strict=True):
            vectors_of_both = (rows[:, t] for t in (0, positions[task], positions[other]))
            term += affine_sums(DISTANCES, grid, *vectors_of_both, batch.mask, heads[task])
            own += moved
        count = sum(batch.mask.sum() for batch in images[task])
        return Disturbance(term / count, own / count)

    return disturbance


WORKFLOW = Workflow(on_tasks(answer), on_vectors(Stage(STAGE, each=True)))

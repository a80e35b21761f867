"""Geometry of the task vectors of a run: how long they are, where in the model, and at which angles to each other."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from tajax import progress, trees
from tajax.progress import Stage
from tajax.records import Geometry, stage_of
from tajax.results import Record
from tajax.task_vectors import cosine_matrix, gram_by_module
from tajax.types import Params
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.setup import Setup
from tajax.workflows.stages import on_vectors
from tajax.workflows.start import on_tasks
from tajax.workflows.vectors import task_vectors
from tajax.workflows.workflow import Workflow

STAGE = stage_of(Geometry)
WHOLE = "all"  # the whole vector, beside the modules; the layers as a whole bear the name of the node that stacks them


def answer(setup: Setup, evaluator: Evaluator) -> None:
    """Cosines and norms of the vectors of a config, whole, by layer and by module; no image is looked at."""
    taus = task_vectors(setup, evaluator.heads)
    with progress.stage(STAGE):
        measure_geometry(setup, taus)


def measure_geometry(setup: Setup, taus: Mapping[str, Params]) -> None:
    """Records the geometry of whole vectors, of layers and of every module that moved, where not recorded yet."""
    names, stacked = [task.name for task in setup.tasks], setup.encoder.stacked
    grams = _grams([taus[name] for name in names], stacked)
    origin = _grams([setup.pretrained], stacked)
    sizes: dict[str, int] = {}
    for path, leaf in trees.flatten_paths(setup.pretrained).items():
        within = {path.rpartition("/")[0] or path, WHOLE}
        if stacked and stacked in path.split("/"):
            within.add(stacked)
        for module in within:
            sizes[module] = sizes.get(module, 0) + np.size(leaf)
    moved = tuple(module for module, gram in grams.items() if gram.any())
    for module in (key["module"] for key in setup.journal.missing(Geometry, {"module": moved})):
        gram = grams[module]
        whole, base = (_summed_layers(g) for g in (gram, origin[module]))
        fields: Record = {
            "norms": _norms(whole).tolist(),
            "pretrained_norm": float(_norms(base)[0]),
            "cosines": _or_none(np.asarray(cosine_matrix(whole))),
        }
        if gram.ndim == 3:
            means = np.array([_mean_over_pairs(np.asarray(cosine_matrix(layer))) for layer in np.moveaxis(gram, -1, 0)])
            fields |= {
                "layer_norms": _norms(gram).tolist(),
                "layer_pretrained_norms": _norms(origin[module])[0].tolist(),
                "layer_cosines": _or_none(means),
            }
        setup.journal.record(Geometry, module=module, tasks=names, parameters=sizes[module], **fields)


def _grams(taus: Sequence[Params], stacked: str | None) -> dict[str, np.ndarray]:
    """Those of the modules, before them that of the whole vector, and of the layers with all that is in them."""
    grams = {module: np.asarray(gram) for module, gram in gram_by_module(taus, stacked=stacked).items()}
    within = [gram for module, gram in grams.items() if stacked in module.split("/")]
    layers = {stacked: functools.reduce(np.add, within)} if stacked and within else {}
    return {WHOLE: functools.reduce(np.add, map(_summed_layers, grams.values()))} | layers | grams


def _summed_layers(gram: np.ndarray) -> np.ndarray:
    return gram.sum(axis=-1) if gram.ndim == 3 else gram


def _norms(gram: np.ndarray) -> np.ndarray:
    """[T] or [T, L]."""
    return np.sqrt(np.einsum("tt...->t...", gram))


def _mean_over_pairs(cosines: np.ndarray) -> float:
    """The mean off the diagonal; NaN for a single vector, or where one is zero."""
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    return float(pairs.mean()) if pairs.size else float("nan")


def _or_none(values: np.ndarray) -> list:
    """Nested lists with None in place of NaN, which JSON cannot hold."""
    objects = values.astype(object)
    objects[np.isnan(values)] = None
    return objects.tolist()


WORKFLOW = Workflow(on_tasks(answer), on_vectors(Stage(STAGE, work=0)))

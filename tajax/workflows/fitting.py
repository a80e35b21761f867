"""What a merging method finds in examples of the tasks before it merges: Fisher information, coefficients, masks.

The examples are `config.merging.images` of the split `config.merging.split` of each task, drawn with the seed of the
run; they are read as they are asked for. What was found is recorded if it is small, and a process that goes on takes it
from there; what is too large for a record it finds again, the same.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tajax import data, merging, progress, trees
from tajax.linearization import linearize
from tajax.progress import Stage
from tajax.records import MergingFit, stage_of
from tajax.task_vectors import moved_leaves
from tajax.types import ApplyFn, Batch, Head, Params
from tajax.workflows.setup import Setup

BATCH_SIZE = 16
"""Examples at once. Methods that take a step a batch see it: it is that of AdaMerging's paper."""
RECORDED = 10_000
"""Numbers, up to which what was found is recorded."""


def fit_method(setup: Setup, heads: Mapping[str, Head], taus: Mapping[str, Params]) -> Mapping[str, Any]:
    """What the method of `config.merging` takes besides its options; nothing where it needs no data.

    Args:
        setup: the run.
        heads: of the tasks, by name.
        taus: their vectors.

    Raises:
        ValueError: as its `fit`.
    """
    settings = setup.config.merging
    method = merging.METHODS[settings.method]
    if method.fit is None:
        return {}
    names = [task.name for task in setup.tasks]
    key = {"method": settings.method, "split": settings.split}
    known = setup.journal.find(MergingFit, **key)
    with progress.stage(stage_of(MergingFit), {settings.method: 1}, done=[settings.method] if known else []):
        if known and "found" in known[0]:
            return jax.tree.map(np.float32, known[0]["found"], is_leaf=lambda node: isinstance(node, list))
        some = {
            task.name: data.drawn(task, settings.split, settings.images, seed=setup.config.seed) for task in setup.tasks
        }
        batches = {task: Examples(setup, one, labels=method.needs == "labels") for task, one in some.items()}
        options = {keyword: settings[settings.method][keyword] for keyword in method.fit_options}
        if method.layered:
            options["stacked"] = setup.encoder.stacked
        start = time.monotonic()
        found = method.fit(
            _encode(setup, taus),
            setup.pretrained,
            {name: taus[name] for name in names},
            batches,
            {name: heads[name] for name in names},
            **options,
        )
        found = jax.block_until_ready(found)
        if not known:
            small = sum(np.size(leaf) for leaf in jax.tree.leaves(found)) <= RECORDED
            setup.journal.record(
                MergingFit,
                **key,
                images={name: len(batches[name]) for name in names},
                labels=method.needs == "labels",
                seconds=round(time.monotonic() - start, 1),
                **({"found": jax.tree.map(np.asarray, found)} if small else {}),
            )
    return found


@dataclasses.dataclass(frozen=True)
class Examples:
    """Batches of a task that can be gone through any number of times, each time read anew; of texts, in order.

    Attributes:
        setup: the run.
        task: with the examples that were drawn.
        labels: whether they are shown; else zeros stand in their place.
    """

    setup: Setup
    task: data.Task
    labels: bool

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.task.split(self.setup.config.merging.split))

    def __iter__(self) -> Iterator[Batch]:
        """The batches."""
        batches: Iterable[Batch] = data.load(
            self.task,
            self.setup.config.merging.split,
            batch_size=min(BATCH_SIZE, len(self)),
            preprocessing=self.setup.encoder.inputs,  # in threads: workers would start anew with each pass and task
        )
        for batch in batches:
            hidden: Any = np.zeros_like(batch.label)  # which JAX's functions take as its own
            yield batch if self.labels else batch._replace(label=hidden)


def _encode(setup: Setup, taus: Mapping[str, Params]) -> ApplyFn:
    """The forward pass of the run's models: the encoder, or its expansion in what the vectors move."""
    if not setup.regime.evaluate_linearized:
        return setup.encoder.apply
    (moved, *_) = moved_leaves(list(taus.values()))
    mask = [path in moved for path in trees.flatten_paths(setup.pretrained)]
    structure = jax.tree.structure(setup.pretrained)
    return linearize(setup.encoder.apply_for_responses, setup.pretrained, mask=jax.tree.unflatten(structure, mask))


def stages(config: ConfigDict) -> tuple[Stage, ...]:
    """The one of `fit_method`; none where there is nothing to fit."""
    name = config.merging.method
    if merging.METHODS[name].fit is None:
        return ()
    return (Stage(stage_of(MergingFit), f"fit of {name.replace('_', ' ')} to {config.merging.split}"),)

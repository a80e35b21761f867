"""Some examples of a split, drawn with a seed: the same for every model, mask and machine."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Shaped

from tajax.data import draws
from tajax.data.pipeline import load
from tajax.data.sources import rows_of
from tajax.data.tasks import Task
from tajax.types import InputSpec


def drawn(task: Task, split: str, count: int, *, seed: int) -> Task:
    """The task with `count` examples of a split, or all where there are fewer, in an order that the seed decides.

    Args:
        task: an opened task.
        split: "train", "val" or "test".
        count: N, at least 1.
        seed: of the draw.

    Raises:
        ValueError: there is no such split.
    """
    source = task.split(split)
    rows = draws.permutation(len(source), seed=seed, purpose=draws.ORDER)[:count]
    return dataclasses.replace(task, splits={**task.splits, split: rows_of(source, rows)})


def sample(
    task: Task, split: str, count: int, *, seed: int, inputs: InputSpec, workers: int = 0
) -> Shaped[np.ndarray, "N ..."]:
    """Inputs of `count` examples of a split, or of all where there are fewer; without labels.

    Args:
        task: an opened task.
        split: "train", "val" or "test".
        count: N, at least 1.
        seed: of the draw.
        inputs: what the model takes, `encoder.inputs`; images are resized and cut, never augmented.
        workers: processes that decode images.

    Raises:
        ValueError: as `load`.
    """
    some = drawn(task, split, count, seed=seed)
    (batch,) = load(some, split, batch_size=len(some.split(split)), preprocessing=inputs, workers=workers)
    return np.asarray(batch.inputs)

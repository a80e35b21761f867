"""The curvature of the tasks of a run, from their training examples."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tajax import data
from tajax.curvature.factors import Factors, SumsFn, make_sums, mean_of
from tajax.curvature.files import About
from tajax.encoders.encoder import Encoder

IMAGES = 256
"""Of a task, if nothing else is said: between 128 and 256 are enough (TAK)."""
BATCH_SIZE = 16


def factors_path(workdir: Path, task: str) -> Path:
    """Where a run keeps the factors of a task."""
    return workdir / "curvature" / f"{task}.safetensors"


class Measure(NamedTuple):
    """How factors are made of a task; of one model, so that what is compiled is shared.

    Attributes:
        encoder: θ₀ and the features.
        trained: paths of the leaves that the factors are for.
        trainable: the rule that named them, and `layers`: for the files.
        through_norm: whether the encoder is one of `tajax.encoders.encoder.through_norm`: for the files.
        images: examples of a task, drawn from its training split.
        seed: of the examples and of v ~ N(0, I).
        batch_size: examples at once; changes nothing but rounding.
        workers: processes that decode images.
    """

    encoder: Encoder
    trained: Collection[str]
    trainable: object
    layers: tuple[int, int] | None = None
    through_norm: bool = False
    images: int = IMAGES
    seed: int = 0
    batch_size: int = BATCH_SIZE
    workers: int = 0


def make_measure(
    how: Measure, *, advance: Callable[[int], object] = lambda examples: None
) -> Callable[[data.Task], tuple[Factors, About]]:
    """`task -> (factors, about)`, for as many tasks as one likes; no label is read. `advance` is told of examples done.

    Raises:
        ValueError: on the first task, a trained leaf of which no curvature is known; later, as `data.sample`.
    """
    encoder = how.encoder
    key = jax.random.key(how.seed)

    @functools.cache
    def of_shape(shape: tuple[int, ...], dtype: str) -> SumsFn:
        example = jax.ShapeDtypeStruct((1, *shape), dtype)
        return make_sums(encoder.apply_for_responses, encoder.params, example, how.trained, stacked=encoder.stacked)

    def measure(task: data.Task) -> tuple[Factors, About]:
        start = time.monotonic()
        inputs = data.sample(task, "train", how.images, seed=how.seed, inputs=encoder.inputs, workers=how.workers)
        sums_of = of_shape(inputs.shape[1:], inputs.dtype.name)
        total: Factors | None = None
        for first in range(0, len(inputs), how.batch_size):
            rows = np.arange(first, first + how.batch_size)
            weights = (rows < len(inputs)).astype(np.float32)
            directions = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), (encoder.feature_dim,)))
            part = sums_of(encoder.params, inputs[rows % len(inputs)], directions(rows), jnp.asarray(weights))
            total = part if total is None else jax.tree.map(jnp.add, total, part)
            advance(int(weights.sum()))
        assert total is not None  # a task has examples
        factors = jax.block_until_ready(mean_of(total))
        about = About(
            task=task.name,
            model=encoder.identity.name,
            family=encoder.family,
            base_sha256=encoder.identity.sha256,
            geometry=encoder.identity.geometry,
            trainable=how.trainable,
            layers=None if how.layers is None else list(how.layers),
            through_norm=how.through_norm,
            images=len(inputs),
            seed=how.seed,
            seconds=round(time.monotonic() - start, 1),
        )
        return factors, about

    return measure

"""What is run: image towers with drawn weights, images that are neither constant nor noise, heads and task vectors.

Everything is a function of seeds, drawn on the host: a CPU and a card get the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.geometries import GEOMETRIES
from tajax import models, trees
from tajax.models import LoadedClip, VisionConfig
from tajax.types import ApplyFn, Batch, Head, Params, Preprocessing

CLASSES = 10
VECTORS = 8
LEARNING_RATE = 1e-5  # the papers'
RELATIVE_NORM = 0.01  # of a task vector's leaf, to that of θ₀


class Sizes(NamedTuple):
    """How much is run.

    Attributes:
        towers: Image towers by name, the first of them also for evaluation, merging and resuming.
        batches: Of each tower, the images of a training step that are tried first.
        parity: Images whose features are compared.
        evaluated: Images that a sweep reads, in batches of `evaluation_batch`; and those of each task of the map.
        evaluation_batch: Images at a time.
        grid: Points of a map along each axis.
        repeats: Timed runs of what is timed; the median counts.
        resumed_batch: Images of a step of the training that is killed.
    """

    towers: Mapping[str, VisionConfig]
    batches: Mapping[str, int]
    parity: int
    evaluated: int
    evaluation_batch: int
    grid: int
    repeats: int
    resumed_batch: int

    @property
    def first(self) -> str:
        """The tower that most parts take."""
        return next(iter(self.towers))


_TINY = VisionConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=32,
    patch_size=8,
    projection_dim=32,
)
SIZES: Mapping[str, Sizes] = {
    "tiny": Sizes({"tiny": _TINY}, {"tiny": 16}, 4, 16, 16, 3, 2, 8),
    "real": Sizes({name: GEOMETRIES[name] for name in ("b32", "l14")}, {"b32": 128, "l14": 64}, 4, 512, 256, 5, 5, 32),
}
"""`tiny` shows on a CPU that the command works, `real` is the question. 128 images of linear L/14 need 114 GiB, 64 of
them 60 (experiments/scale), so those are tried first."""


@functools.cache
def load(sizes: str, tower: str) -> LoadedClip:
    """An image tower drawn from seed 0, its parameters in NumPy; layers under a scan, which compiles quickest."""
    vision = SIZES[sizes].towers[tower]
    config = models.ClipConfig(vision=vision, text=models.TextConfig(projection_dim=vision.projection_dim))
    images = jnp.zeros((1, vision.image_size, vision.image_size, 3))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # normal numbers differ in a bit on other devices
        drawn = jax.device_get(jax.jit(models.ImageEncoder(vision).init)(jax.random.key(0), images)["params"])
    preprocessing = Preprocessing(vision.image_size, models.OPENAI_MEAN, models.OPENAI_STD)
    return LoadedClip(tower, config, {"image": drawn}, preprocessing, directory=Path())


def encoder(clip: LoadedClip) -> ApplyFn:
    """The tower on uint8 images, `(params, images) -> features [B, E]`."""
    mean, std = (
        np.asarray(values, np.float32).reshape(1, 1, 1, 3)
        for values in (clip.preprocessing.mean, clip.preprocessing.std)
    )

    def encode(params: Params, images: jax.Array) -> jax.Array:
        # As `tajax.data.normalize`, whose room needs the libraries of data sets.
        return clip.encode_image(params, (images.astype(jnp.float32) / 255 - mean) / std)

    return encode


def batch(clip: LoadedClip, size: int, *, seed: int = 0) -> Batch:
    """Images of drawn colours that flow into each other, with grain on top, and drawn labels; on the host."""
    draw, side = np.random.default_rng(seed), clip.config.vision.image_size
    coarse = draw.uniform(0, 255, size=(size, 5, 5, 3)).astype(np.float32)
    places = np.linspace(0, 4, side, dtype=np.float32)
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(5, dtype=np.float32)))  # linear interpolation
    smooth = np.einsum("yi,xj,bijc->byxc", weights, weights, coarse, optimize=True)
    grain = draw.normal(0, 12, size=smooth.shape).astype(np.float32)
    pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    return Batch(pixels, draw.integers(CLASSES, size=size).astype(np.int32), np.ones(size, bool))


def batches(clip: LoadedClip, images: int, size: int, *, seed: int = 0) -> list[Batch]:
    """A data set of so many images in batches; the last may be smaller."""
    return [
        batch(clip, min(size, images - begin), seed=1000 * seed + number)
        for number, begin in enumerate(range(0, images, size))
    ]


def head(clip: LoadedClip, *, seed: int = 0) -> Head:
    """A drawn head of `CLASSES` classes with a temperature that tells them apart."""
    weights = np.random.default_rng([1, seed]).normal(size=(clip.config.projection_dim, CLASSES)).astype(np.float32)
    return Head(jnp.asarray(weights), jnp.int32(CLASSES))


def task_vectors(params: Params, count: int, *, rule: str = "all") -> list[Params]:
    """Normal noise of `RELATIVE_NORM` the size of each leaf that a rule trains, zero elsewhere; in NumPy."""
    mask = trees.param_mask(params, rule)

    def draw(generator: np.random.Generator, leaf: np.ndarray, moved: bool) -> np.ndarray:
        if not moved:
            return np.zeros_like(leaf)
        deviation = RELATIVE_NORM * (float(np.sqrt(np.mean(np.square(leaf)))) or 0.02)
        return np.float32(deviation) * generator.standard_normal(leaf.shape, np.float32)

    generators = (np.random.default_rng([2, seed]) for seed in range(count))
    return [jax.tree.map(lambda leaf, moved, g=g: draw(g, np.asarray(leaf), moved), params, mask) for g in generators]

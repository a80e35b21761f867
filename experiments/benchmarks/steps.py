"""One training step of an encoder as XLA compiles it: its operations, its memory, and runs of it. No PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.geometries import GEOMETRIES
from tajax import finetune, models, optim, trees
from tajax.data.preprocess import normalize
from tajax.encoders.encoder import Encoder
from tajax.parametrization import masked
from tajax.types import ApplyFn, Batch, Head, Params, Preprocessing

CLASSES = 10
LEARNING_RATE = 1e-5  # the papers'; weight decay 0.1 and clipping at 1 are the defaults of tajax's optimiser


class Work(NamedTuple):
    """What a training step is taken of.

    Attributes:
        params: θ₀.
        apply: `(params, inputs) -> features`.
        head: Drawn, as the batch is: time does not depend on what the examples are.
        batch: Examples, all of the same size.
    """

    params: Params
    apply: ApplyFn
    head: Head
    batch: Batch


class Step(NamedTuple):
    """A compiled training step.

    Attributes:
        trained: How many parameters it trains.
        program: What XLA made of it.
        begin: Its arguments before the first step: state, θ₀, head and batch.
    """

    trained: int
    program: jax.stages.Compiled
    begin: Callable[[], tuple[finetune.TrainState, Params, Head, Batch]]

    @property
    def flops(self) -> float:
        """Floating point operations of a step."""
        return self.program.cost_analysis()["flops"]

    @property
    def temporary(self) -> int:
        """Bytes that a step needs beside its arguments and results: activations and gradients."""
        return self.program.memory_analysis().temp_size_in_bytes

    @property
    def memory(self) -> int:
        """Bytes of everything at once: parameters, θ₀, moments, batch, and what is temporary."""
        sizes = self.program.memory_analysis()
        ends = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        return ends + sizes.temp_size_in_bytes

    def runner(self) -> Callable[[], None]:
        """A function that takes a step, each from where the last ended."""
        state, *constants = self.begin()

        def run() -> None:
            nonlocal state
            state, _ = jax.block_until_ready(self.program(state, *constants))

        return run


def load_clip(model: str) -> models.LoadedClip:
    """A CLIP by what `models.load` takes, or the name of a geometry: then an image tower drawn from seed 0."""
    if model not in GEOMETRIES:
        return models.load(model)
    vision = GEOMETRIES[model]
    config = models.ClipConfig(vision=vision, text=models.TextConfig(projection_dim=vision.projection_dim))
    images = jnp.zeros((1, vision.image_size, vision.image_size, 3))
    image = jax.jit(models.ImageEncoder(vision).init)(jax.random.key(0), images)["params"]
    preprocessing = Preprocessing(vision.image_size, models.OPENAI_MEAN, models.OPENAI_STD)
    unroll = True if jax.default_backend() == "cpu" else 1  # as `models.load` chooses
    return models.LoadedClip(model, config, {"image": image}, preprocessing, directory=Path(), unroll=unroll)


def encoder(clip: models.LoadedClip) -> ApplyFn:
    """The image tower on uint8 images."""
    return lambda params, images: clip.encode_image(params, normalize(images, clip.preprocessing))


def noise(clip: models.LoadedClip, batch_size: int) -> tuple[Head, Batch]:
    """A drawn head, and a batch of noise: time does not depend on what the images show."""
    vision, draw = clip.config.vision, np.random.default_rng(0)
    shape = (batch_size, vision.image_size, vision.image_size, vision.num_channels)
    return _labelled(draw.integers(256, size=shape, dtype=np.uint8), draw, width=vision.projection_dim)


def _labelled(inputs: np.ndarray, draw: np.random.Generator, *, width: int) -> tuple[Head, Batch]:
    labels = draw.integers(CLASSES, size=len(inputs)).astype(np.int32)
    batch = Batch(inputs, labels, np.ones(len(labels), bool))
    weights = draw.normal(size=(width, CLASSES)).astype(np.float32)
    return Head(weights, np.int32(CLASSES)), jax.device_put(batch)


def of_images(clip: models.LoadedClip, batch_size: int) -> Work:
    """Noise through an image tower. XLA counts the operations of layers under a scan once: `unrolled` counts all."""
    return Work(clip.params["image"], encoder(clip), *noise(clip, batch_size))


def of_texts(text: Encoder, batch_size: int, *, tokens: int) -> Work:
    """Rows of so many drawn tokens, none of them padding, through a sentence encoder with all layers unrolled."""
    draw, words = np.random.default_rng(0), len(text.params["token_embedding"])
    ids = draw.integers(words, size=(batch_size, tokens)).astype(np.int32)
    return Work(text.params, text.apply_for_responses, *_labelled(ids, draw, width=text.feature_dim))


def compile_step(
    work: Work,
    rule: str | Sequence[str] | Mapping[str, bool],
    *,
    layers: tuple[int, int] | None = None,
    linearized: bool = False,
) -> Step:
    """The step of fine-tuning what a rule chooses, compiled; nothing is executed until `Step.runner` is called.

    Args:
        work: the model and a batch.
        rule: as of `tajax.param_mask`.
        layers: likewise.
        linearized: train in the tangent space.
    """
    params, apply, head, batch = work
    mask = trees.param_mask(params, rule, layers=layers)
    optimizer, trained = optim.adamw(LEARNING_RATE), masked(mask)
    step = finetune.make_train_step(apply, optimizer, trained, linearized=linearized)
    shapes = jax.eval_shape(lambda params: finetune.init_state(trained.init(params), optimizer), params)
    program = step.lower(shapes, params, head, batch).compile()
    begin = lambda: (finetune.init_state(trained.init(params), optimizer), params, head, batch)  # noqa: E731
    return Step(trees.count_params(params, mask), program, begin)


def unrolled(clip: models.LoadedClip) -> models.LoadedClip:
    """The same model with all layers unrolled, so that every one of them is counted."""
    return dataclasses.replace(clip, unroll=True)

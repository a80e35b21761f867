"""The encoders that jobs are of, in shapes alone: no weights are drawn, and none but the bundled model's are loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from experiments.benchmarks.geometries import GEOMETRIES
from tajax import models
from tajax.data.preprocess import normalize
from tajax.encoders.text.bert import Bert, Tokens
from tajax.encoders.text.bert import abstract_params as text_params
from tajax.encoders.text.geometry import BertConfig
from tajax.models import ImageEncoder, VisionConfig
from tajax.models.clip import abstract_params
from tajax.precision import DTYPES, in_float32
from tajax.types import ApplyFn, Params, Precision, Preprocessing, Remat

TOKENS = 128
"""Of a text; none is padding."""

MINILM = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
"""all-MiniLM-L6-v2."""


class Subject(NamedTuple):
    """An encoder, as shapes and pure functions.

    Attributes:
        params: θ₀ in shapes.
        inputs: From a number of examples to the shape of their inputs.
        encoder: `(remat, unroll, dtype) -> apply`, as `Encoder.for_training` and `Encoder.apply_for_responses` make it
            of a model that is loaded; `unroll` is said, because those choose it by the machine that they run on.
        feature_dim: E.
        precision: As of `tajax.encoders.load`.
    """

    params: Params
    inputs: Callable[[int], jax.ShapeDtypeStruct]
    encoder: Callable[[Remat, bool, DTypeLike], ApplyFn]
    feature_dim: int
    precision: Precision = "default"

    def for_training(self, remat: Remat) -> ApplyFn:
        """The function of a training step: layers under a scan, as on accelerators."""
        return self._made(remat, unroll=False)

    @property
    def apply_for_responses(self) -> ApplyFn:
        """The function of a linearised evaluation: layers unrolled."""
        return self._made("none", unroll=True)

    def _made(self, remat: Remat, *, unroll: bool) -> ApplyFn:
        apply = self.encoder(remat, unroll, DTYPES[self.precision])
        return in_float32(apply) if self.precision == "highest" else apply


def image_tower(config: VisionConfig) -> Subject:
    """A CLIP's image tower."""
    size = config.image_size
    preprocessing = Preprocessing(size, models.OPENAI_MEAN, models.OPENAI_STD)

    def encoder(remat: Remat, unroll: bool, dtype: DTypeLike) -> ApplyFn:
        tower = ImageEncoder(config, dtype, unroll or 1, remat)
        return lambda params, images: tower.apply({"params": params}, normalize(images, preprocessing))

    clip = models.ClipConfig(vision=config, text=models.TextConfig(projection_dim=config.projection_dim))
    params = abstract_params(clip)["image"]
    inputs = lambda count: jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)  # noqa: E731
    return Subject(params, inputs, encoder, config.projection_dim)


def sentence_encoder(config: BertConfig) -> Subject:
    """A BERT whose tokens are averaged."""

    def encoder(remat: Remat, unroll: bool, dtype: DTypeLike) -> ApplyFn:
        bert = Bert(config, dtype=dtype, unroll=unroll or 1, remat=remat)
        return lambda params, ids: bert.apply({"params": params}, Tokens(ids, ids >= 0))

    inputs = lambda count: jax.ShapeDtypeStruct((count, TOKENS), jnp.int32)  # noqa: E731
    return Subject(text_params(config), inputs, encoder, config.hidden_size)


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "tiny": lambda: image_tower(models.load("tiny").config.vision),
    "b32": lambda: image_tower(GEOMETRIES["b32"]),
    "b16": lambda: image_tower(GEOMETRIES["b16"]),
    "l14": lambda: image_tower(GEOMETRIES["l14"]),
    "l14_336": lambda: image_tower(dataclasses.replace(GEOMETRIES["l14"], image_size=336)),
    "minilm": lambda: sentence_encoder(MINILM),
}
"""Encoders by name."""

TITLES: Mapping[str, str] = {
    "tiny": "bundled",
    "b32": "B/32",
    "b16": "B/16",
    "l14": "L/14",
    "l14_336": "L/14-336",
    "minilm": f"MiniLM-L6, {TOKENS} tokens",
}
"""What tables call them."""

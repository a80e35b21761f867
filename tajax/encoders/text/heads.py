"""Zero-shot heads of a sentence encoder: its own features of the classes' names in sentences."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tajax.encoders.text.bert import Bert, Tokens
from tajax.encoders.text.loading import LoadedText
from tajax.encoders.text.tokenizer import padded
from tajax.models.class_prompts import check_distinct, fill_templates, head_of_features
from tajax.models.transformer import features_at
from tajax.types import Head, JsonObject, Params

__all__ = ["SCALE", "made_from", "zero_shot_head"]

SCALE = 20.0
"""The inverse temperature: the default `scale` of sentence-transformers' MultipleNegativesRankingLoss, the contrastive
loss by which such encoders are trained (sentence_transformers/losses, version 6.2). No file of a model says it."""

_ROWS = 64  # texts per call of the encoder, so that one compiled program serves tasks of any size


def zero_shot_head(text: LoadedText, class_names: Sequence[str], templates: Sequence[str]) -> Head:
    """The head whose column k is the mean feature of class k in sentences, scaled to the temperature's length.

        W_k = s · m_k / ‖m_k‖,   m_k = (1/T) Σ_t f(text_tk) / ‖f(text_tk)‖

    with f the encoder at θ₀ and s = 20, see `SCALE`.

    Args:
        text: The encoder; its own parameters are used.
        class_names: K names in plain words that the encoder can tell apart, in the order of the labels.
        templates: T sentences with `{}` where the name goes, such as "this text is about {}.".

    Returns:
        Weights float32 `[E, K]`, and K.

    Raises:
        ValueError, TypeError: as `tajax.models.zero_shot_head`.

    Source: Reimers & Gurevych 2019 for features of sentences that are compared by their cosine.
    """
    prompts = fill_templates(class_names, templates)
    tokens = padded(text.tokenizer.tokenization(), prompts)
    longest = text.tokenizer.max_length
    cut = np.array([len(row) >= longest for row in text.tokenizer.split(prompts)])
    check_distinct(class_names, templates, np.where(tokens.mask, tokens.ids, -1), cut)
    return head_of_features(_encode(text, tokens), class_names, scale=SCALE, whose=text.name)


def made_from(text: LoadedText, prompts: Sequence[str]) -> JsonObject:
    """What the features of prompts are computed from: JSON values by what they are."""
    ids = text.tokenizer.split(prompts)
    joined = b"".join(np.int32(len(row)).astype("<i4").tobytes() + row.astype("<i4").tobytes() for row in ids)
    return {
        "encoder": dataclasses.asdict(text.described.config) | {"pooling": list(text.described.pooling)},
        "weights of the encoder": text.sha256[:16],
        "tokens of the prompts": hashlib.sha256(joined).hexdigest()[:16],
        "cut at": text.tokenizer.max_length,
        "scale": SCALE,
    }


def _encode(text: LoadedText, tokens: Tokens) -> Float[np.ndarray, "M E"]:
    """Features float64 `[M, E]`, computed a fixed number of rows at a time."""
    count, length = tokens.ids.shape
    ids, mask = (np.pad(leaf, ((0, -count % _ROWS), (0, 0)), mode="edge") for leaf in tokens)
    dtype = jnp.promote_types(text.dtype, jnp.float32)
    encoder = Bert(text.described.config, text.described.pooling, dtype, text.unroll)
    features = [
        _features(encoder, text.params, Tokens(jnp.asarray(ids[i : i + _ROWS]), jnp.asarray(mask[i : i + _ROWS])))
        for i in range(0, len(ids), _ROWS)
    ]
    return np.concatenate([np.asarray(chunk, np.float64) for chunk in features])[:count]


@functools.partial(jax.jit, static_argnums=0)
def _features(encoder: Bert, params: Params, tokens: Tokens) -> Float[Array, "B E"]:
    with jax.default_matmul_precision("highest"):  # a head serves every text: it is computed once, and exactly
        return features_at(encoder, params, tokens)

"""Zero-shot classification heads: class names through the text tower, fixed for ever after."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tajax.models.class_prompts import check_distinct, fill_templates, head_of_features
from tajax.models.clip import TextEncoder
from tajax.models.geometry import pooled_position
from tajax.models.loading import LoadedClip
from tajax.models.transformer import features_at
from tajax.types import Head, Params

__all__ = ["pad_head", "zero_shot_head"]

_ROWS = 64  # texts per call of the tower, so that one compiled program serves tasks of any size
_COLUMNS = 16  # token columns are cut to a multiple of this: what stands behind EOS changes nothing


def zero_shot_head(clip: LoadedClip, class_names: Sequence[str], templates: Sequence[str]) -> Head:
    """The head whose column k is the mean text feature of class k, scaled to the temperature's length.

        W_k = exp(s) · m_k / ‖m_k‖,   m_k = (1/T) Σ_t g(text_tk) / ‖g(text_tk)‖

    with g the text tower and s the logarithm of the inverse temperature.

    Args:
        clip: The model; its own parameters are used.
        class_names: K names in plain words that the model can tell apart, in the order of the labels.
        templates: T sentences with `{}` where the name goes, such as "a photo of a {}.".

    Returns:
        Weights float32 `[E, K]`, and K.

    Raises:
        ValueError: no class, no template, a template without `{}`, features that are not finite, or two classes with
            the same tokens in every template, whose columns would be equal: the same name twice, names that differ in
            what the tokenizer does not keep (capital letters, how accents are composed, white space), or only behind
            the context length.
        TypeError: a name or template that is not a text, or one text in place of several.

    Example:
        >>> from tajax.models import load
        >>> zero_shot_head(load("tiny"), ["red circle", "green square"], ["a photo of a {}."]).weights.shape
        (128, 2)

    Source: Radford et al. 2021, §3.1.4 (prompt ensembling).
    """
    tokens = clip.tokenizer.tokenize(fill_templates(class_names, templates))
    _check_distinct(clip, class_names, templates, tokens)
    scale = np.exp(np.float64(clip.params["logit_scale"]))
    return head_of_features(_encode(clip, tokens), class_names, scale=scale, whose=clip.name)


def pad_head(head: Head, num_columns: int) -> Head:
    """The same head with zero columns up to `num_columns`, so that tasks share one compiled program.

    Raises:
        ValueError: the head is wider already.

    Example:
        >>> pad_head(Head(jnp.ones((8, 3)), jnp.int32(3)), 5).weights.shape
        (8, 5)
    """
    have = head.weights.shape[1]
    if num_columns < have:
        raise ValueError(f"Cannot pad a head of {have} columns to {num_columns}.")
    return head._replace(weights=jnp.pad(head.weights, ((0, 0), (0, num_columns - have))))


def _check_distinct(
    clip: LoadedClip, class_names: Sequence[str], templates: Sequence[str], tokens: Int[np.ndarray, "M C"]
) -> None:
    ends = pooled_position(clip.config.text, tokens)
    seen = np.where(np.arange(tokens.shape[1]) <= ends[:, None], tokens, -1)
    check_distinct(class_names, templates, seen, ends + 1 == tokens.shape[1])


def _encode(clip: LoadedClip, tokens: Int[np.ndarray, "M C"]) -> Float[np.ndarray, "M E"]:
    """Text features float64 `[M, E]`, computed a fixed number of rows at a time."""
    longest = int(pooled_position(clip.config.text, tokens).max()) + 1
    tokens = tokens[:, : -(-longest // _COLUMNS) * _COLUMNS]
    padded = np.pad(tokens, ((0, -len(tokens) % _ROWS), (0, 0)), mode="edge")
    encoder = TextEncoder(clip.config.text, jnp.promote_types(clip.dtype, jnp.float32), clip.unroll)
    chunks = [_features(encoder, clip.params["text"], rows) for rows in padded.reshape(-1, _ROWS, tokens.shape[1])]
    return np.concatenate([np.asarray(chunk, np.float64) for chunk in chunks])[: len(tokens)]


@functools.partial(jax.jit, static_argnums=0)
def _features(encoder: TextEncoder, params: Params, tokens: Int[Array, "B C"]) -> Float[Array, "B E"]:
    with jax.default_matmul_precision("highest"):  # a head serves every image: it is computed once, and exactly
        return features_at(encoder, params, tokens)

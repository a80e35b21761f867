"""Zero-shot classification heads: class names through the text tower, fixed for ever after."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tajax.models.clip import TextEncoder, features_at
from tajax.models.geometry import pooled_position
from tajax.models.loading import LoadedClip
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
    class_names, templates = _check_texts("class_names", class_names), _check_texts("templates", templates)
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f"Template {template!r} has no '{{}}' for the class name; write it as 'a photo of a {{}}.'."
            )
    tokens = clip.tokenizer.tokenize([t.replace("{}", name) for name in class_names for t in templates])
    _check_distinct(clip, class_names, templates, tokens)
    features = _encode(clip, tokens).reshape(len(class_names), len(templates), -1)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    means = features.mean(axis=1)
    weights = np.exp(np.float64(clip.params["logit_scale"])) * means / np.linalg.norm(means, axis=-1, keepdims=True)
    for name, row in zip(class_names, weights, strict=True):
        if not np.isfinite(row).all():
            raise ValueError(
                f"The text feature of class {name!r} is not finite: the parameters of {clip.name!r} are damaged."
            )
    return Head(weights=jnp.asarray(weights.T, jnp.float32), num_classes=jnp.int32(len(class_names)))


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
    return Head(jnp.pad(head.weights, ((0, 0), (0, num_columns - have))), head.num_classes)


def _check_texts(what: str, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"{what} must be a sequence of texts, got the single text {texts!r}.")
    texts = list(texts)
    if not texts:
        raise ValueError(f"{what} is empty.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{what}[{i}] must be a text, got {type(text).__name__} {text!r}.")
        if not text.strip():
            raise ValueError(f"{what}[{i}] is blank.")
    return texts


def _check_distinct(
    clip: LoadedClip, class_names: Sequence[str], templates: Sequence[str], tokens: Int[np.ndarray, "M C"]
) -> None:
    """Refuse classes of which the text tower sees the same: no image could be told to be of the one or the other."""
    ends = pooled_position(clip.config.text, tokens)
    seen = np.where(np.arange(tokens.shape[1]) <= ends[:, None], tokens, -1).reshape(len(class_names), -1)
    first: dict[bytes, int] = {}
    equal = [(first.setdefault(row.tobytes(), k), k) for k, row in enumerate(seen)]
    pairs = [(class_names[i], class_names[k]) for i, k in equal if i != k]
    if not pairs:
        return
    one, other = pairs[0]
    cut = ends.reshape(len(class_names), -1)[class_names.index(one)].max() + 1 == tokens.shape[1]
    raise ValueError(
        f"The model cannot tell the classes {one!r} and {other!r} apart: {_difference(one, other, cut=bool(cut))}, so "
        f"both are the same tokens in every template, such as {templates[0]!r}. Give each class a name of its own."
        + (f" As many as {len(pairs)} classes repeat another so." if pairs[1:] else "")
    )


def _difference(one: str, other: str, *, cut: bool) -> str:
    """In what the names of two classes differ that have the same tokens."""
    if one == other:
        return "the name is given twice"
    first, second = (unicodedata.normalize("NFC", name) for name in (one, other))
    if first == second:
        return "the names differ in how accents are composed alone"
    if first.lower().split() == second.lower().split():
        return "the names differ in capital letters or white space alone"
    return (
        "the texts are cut at the context length, before they differ" if cut else "the tokenizer makes the same of both"
    )


def _encode(clip: LoadedClip, tokens: Int[np.ndarray, "M C"]) -> Float[np.ndarray, "M E"]:
    """Text features float64 `[M, E]`, computed a fixed number of rows at a time."""
    longest = int(pooled_position(clip.config.text, tokens).max()) + 1
    tokens = tokens[:, : -(-longest // _COLUMNS) * _COLUMNS]
    padded = np.pad(tokens, ((0, -len(tokens) % _ROWS), (0, 0)), mode="edge")
    encoder = TextEncoder(clip.config.text, clip.dtype, clip.unroll)
    chunks = [_features(encoder, clip.params["text"], rows) for rows in padded.reshape(-1, _ROWS, tokens.shape[1])]
    return np.concatenate([np.asarray(chunk, np.float64) for chunk in chunks])[: len(tokens)]


@functools.partial(jax.jit, static_argnums=0)
def _features(encoder: TextEncoder, params: Params, tokens: Int[Array, "B C"]) -> Float[Array, "B E"]:
    return features_at(encoder, params, tokens)

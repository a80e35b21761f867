"""Heads from class names: names put into sentences, told apart by their tokens, and averaged as features.

What families of models that take texts have in common; each has its own way from a prompt to tokens and features.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from tajax.types import Head

__all__ = ["check_distinct", "fill_templates", "head_of_features"]


def fill_templates(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """The prompts of all classes, those of one class next to each other.

    Args:
        class_names: K names in plain words.
        templates: T sentences with `{}` where the name goes.

    Raises:
        ValueError: no class, no template, a blank one, or a template without `{}`.
        TypeError: a name or template that is not a text, or one text in place of several.

    Example:
        >>> fill_templates(["cat", "dog"], ["a {}", "the {}"])
        ['a cat', 'the cat', 'a dog', 'the dog']
    """
    class_names, templates = _check_texts("class_names", class_names), _check_texts("templates", templates)
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f"Template {template!r} has no '{{}}' for the class name; write it as 'a photo of a {{}}.'."
            )
    return [template.replace("{}", name) for name in class_names for template in templates]


def head_of_features(
    features: Float[np.ndarray, "M E"], class_names: Sequence[str], *, scale: float, whose: str
) -> Head:
    """The head whose column k is s · m_k / ‖m_k‖, with m_k the mean of the unit features of the prompts of class k.

    Args:
        features: Of the prompts as `fill_templates` gives them, float64.
        class_names: K names, of which M is a multiple.
        scale: s, the inverse temperature.
        whose: The model's name, for the message.

    Returns:
        Weights float32 `[E, K]`, and K.

    Raises:
        ValueError: a column that is not finite.
    """
    features = features.reshape(len(class_names), -1, features.shape[-1])
    with np.errstate(invalid="ignore"):
        features = features / np.linalg.norm(features, axis=-1, keepdims=True)
        means = features.mean(axis=1)
        weights = scale * means / np.linalg.norm(means, axis=-1, keepdims=True)
    for name, row in zip(class_names, weights, strict=True):
        if not np.isfinite(row).all():
            raise ValueError(
                f"The text feature of class {name!r} is not finite: the parameters of {whose!r} are damaged."
            )
    return Head(weights=jnp.asarray(weights.T, jnp.float32), num_classes=jnp.int32(len(class_names)))


def check_distinct(
    class_names: Sequence[str], templates: Sequence[str], seen: Int[np.ndarray, "M L"], cut: Bool[np.ndarray, " M"]
) -> None:
    """Refuse classes of which the text encoder sees the same: nothing could be told to be of the one or the other.

    Args:
        class_names: K names.
        templates: T of them.
        seen: Token ids of the prompts, as `fill_templates` gives them, with −1 wherever nothing is read.
        cut: Which prompts are longer than the encoder takes, or just as long.

    Raises:
        ValueError: two classes have the same tokens in every template; says in what they differ.
    """
    seen = seen.reshape(len(class_names), -1)
    first: dict[bytes, int] = {}
    equal = [(first.setdefault(row.tobytes(), k), k) for k, row in enumerate(seen)]
    pairs = [(class_names[i], class_names[k]) for i, k in equal if i != k]
    if not pairs:
        return
    one, other = pairs[0]
    long = bool(cut.reshape(len(class_names), -1)[list(class_names).index(one)].any())
    raise ValueError(
        f"The model cannot tell the classes {one!r} and {other!r} apart: {_difference(one, other, cut=long)}, so "
        f"both are the same tokens in every template, such as {templates[0]!r}. Give each class a name of its own."
        + (f" As many as {len(pairs)} classes repeat another so." if pairs[1:] else "")
    )


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

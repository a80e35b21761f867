"""Families of models that can be edited: one row each, with the module that has its `FAMILY`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tajax.encoders.encoder import Encoder, Family
    from tajax.types import Precision

FAMILIES: Mapping[str, str] = {
    "clip": "tajax.encoders.clip",
    "text": "tajax.encoders.text",
    "vit": "tajax.encoders.vit",
}
"""Families by the names of `config.family`. Names, because a config is checked before any neural network is
imported. `tajax.models` is the documented door to CLIP."""


def family_named(name: str) -> Family:
    """The family of a name in `FAMILIES`, its module imported."""
    found: Family = importlib.import_module(FAMILIES[name]).FAMILY
    return found


def load(
    name: str, *, family: str = "clip", random_seed: int | None = None, precision: Precision = "default"
) -> Encoder:
    """A pre-trained encoder.

    Args:
        name: of the model, or where it lies: of a CLIP what `tajax.models.load` takes, of a ViT a directory or hub id
            in Hugging Face's format, of a sentence encoder one of sentence-transformers, too.
        family: its name in `FAMILIES`.
        random_seed: draw its parameters from this seed, as before any pre-training.
        precision: how exactly it computes, see `tajax.precision`; its parameters are float32.

    Raises:
        FileNotFoundError, ValueError: as `tajax.models.load`; ValueError also for a precision that there is not.

    Example:
        >>> load("tiny").feature_dim
        128
    """
    # a config is checked without JAX's arrays and neural networks
    from tajax.encoders.encoder import exact
    from tajax.precision import DTYPES

    if precision not in DTYPES:
        raise ValueError(f"precision is {precision!r}; choose one of {', '.join(map(repr, DTYPES))}")
    encoder = family_named(family).load(name, random_seed=random_seed, dtype=DTYPES[precision])
    return exact(encoder) if precision == "highest" else encoder


__all__ = ["FAMILIES", "family_named", "load"]

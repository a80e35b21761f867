"""From the tokens of a text to its one feature: sentence-transformers' ways of pooling.

With h_j the last layer's token j, over the tokens that are no padding, n of them:

    cls                   h_1
    max                   max_j h_j, entry by entry
    mean                  (1/n) Σ_j h_j
    mean_sqrt_len_tokens  (1/√n) Σ_j h_j
    weightedmean          Σ_j j·h_j / Σ_j j
    lasttoken             h_n

Source: Reimers & Gurevych 2019, "Sentence-BERT", §3; Muennighoff 2022, "SGPT", §3.1 for the weighted mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tajax.types import JsonObject

__all__ = ["MODES", "pool", "pooling_from_config", "pooling_to_config"]

Pooled = Callable[[Array, Array], Array]


def _mean(x: Array, mask: Array) -> Array:
    return _sum(x, mask) / jnp.maximum(_count(x, mask), 1)


def _mean_sqrt(x: Array, mask: Array) -> Array:
    return _sum(x, mask) / jnp.sqrt(jnp.maximum(_count(x, mask), 1))


def _weighted_mean(x: Array, mask: Array) -> Array:
    weights = jnp.cumsum(mask, axis=1) * mask
    total = jnp.maximum(weights.sum(axis=1, keepdims=True), 1).astype(x.dtype)
    return jnp.einsum("bl,bld->bd", weights.astype(x.dtype), x) / total


def _max(x: Array, mask: Array) -> Array:
    # By its place: the derivative of a maximum compares with it, and is 0/0 where x was computed again and rounded
    # otherwise, as XLA may do.
    places = jnp.argmax(jnp.where(mask[:, :, None], x, jnp.finfo(x.dtype).min), axis=1)
    highest = jnp.take_along_axis(x, places[:, None], axis=1)[:, 0]
    return jnp.where(mask.any(axis=1, keepdims=True), highest, 0)


def _last(x: Array, mask: Array) -> Array:
    end = jnp.where(jnp.arange(x.shape[1])[None] == mask.sum(axis=1, keepdims=True) - 1, 1, 0)
    return jnp.einsum("bl,bld->bd", end.astype(x.dtype), x)


def _sum(x: Array, mask: Array) -> Array:
    # not a product with the mask: what stands in padding may be anything but must not reach the sum
    return jnp.sum(jnp.where(mask[:, :, None], x, 0), axis=1)


def _count(x: Array, mask: Array) -> Array:
    return mask.sum(axis=1, keepdims=True).astype(x.dtype)


MODES: Mapping[str, Pooled] = {
    "cls": lambda x, mask: jnp.where(mask[:, :1], x[:, 0], 0),
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""By the names of `pooling_mode`, in the order in which the reference concatenates those of the older keys."""

_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SIZES = ("word_embedding_dimension", "embedding_dimension")


def pool(tokens: Float[Array, "B L D"], mask: Bool[Array, "B L"], modes: tuple[str, ...]) -> Float[Array, "B E"]:
    """Features of texts, E = D times the number of modes; zero for a row that is padding alone.

    Args:
        tokens: Of the last layer; 'cls' reads the first alone.
        mask: False in padding, which follows the text.
        modes: Of `MODES`, concatenated in this order.

    Example:
        >>> tokens = jnp.array([[[2.0], [4.0], [9.0]]])
        >>> pool(tokens, jnp.array([[True, True, False]]), ("cls", "max", "mean"))
        Array([[2., 4., 3.]], dtype=float32)
    """
    return jnp.concatenate([MODES[mode](tokens, mask) for mode in modes], axis=-1)


def pooling_from_config(config: Mapping[str, object], *, width: int) -> tuple[str, ...]:
    """The modes that the `config.json` of a Pooling module names, in the order of their concatenation.

    Args:
        config: The dictionary that it holds: with `pooling_mode`, a mode or several, as sentence-transformers writes
            it now; or with one truth value a mode, as it did.
        width: D of the model below.

    Raises:
        ValueError: an unknown mode or key, a mode twice, prompts that are not pooled, or another width.

    Example:
        >>> pooling_from_config({"word_embedding_dimension": 384, "pooling_mode_cls_token": True}, width=384)
        ('cls',)
    """
    known = {"pooling_mode", "include_prompt", *_SIZES, *_KEYS}
    unknown = [key for key, value in config.items() if key not in known and value not in (None, False)]
    if unknown:
        raise ValueError(f"pooling by {unknown[0]!r} is not known; modes are {', '.join(MODES)}.")
    for key in _SIZES:
        if config.get(key, width) != width:
            raise ValueError(f"{key} is {config[key]!r}, but tokens have width {width}.")
    if config.get("include_prompt", True) is not True:
        raise ValueError("include_prompt is false: features that leave the tokens of a prompt out are not computed.")
    said = config.get("pooling_mode")
    if said is None:
        modes = [mode for key, mode in _KEYS.items() if config.get(key)] or ["mean"]
    else:
        modes = [said] if isinstance(said, str) else list(said) if isinstance(said, list | tuple) else []
        if not modes:
            raise ValueError(f"pooling_mode must be a mode or a list of them, got {said!r}; {', '.join(MODES)}.")
    for mode in modes:
        if not isinstance(mode, str) or mode not in MODES:
            raise ValueError(f"pooling_mode {mode!r} is not known; choose of {', '.join(MODES)}.")
    if len(set(modes)) < len(modes):
        raise ValueError(f"pooling_mode names a mode twice: {', '.join(modes)}.")
    return tuple(modes)


def pooling_to_config(modes: tuple[str, ...], *, width: int) -> JsonObject:
    """What `pooling_from_config` reads, and sentence-transformers of any version where modes are in the usual order.

    Example:
        >>> pooling_from_config(pooling_to_config(("max", "mean"), width=8), width=8)
        ('max', 'mean')
    """
    usual = tuple(mode for mode in MODES if mode in modes)
    if modes != usual:
        return {"embedding_dimension": width, "pooling_mode": list(modes), "include_prompt": True}
    return {"word_embedding_dimension": width} | {key: mode in modes for key, mode in _KEYS.items()}

"""Factors on disk, to publish beside a task: safetensors without code and without examples of the task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import tajax
from tajax import atomic, tensor_files, trees
from tajax.curvature.factors import Factors, Kronecker
from tajax.curvature.roles import JOINT
from tajax.encoders.encoder import Encoder
from tajax.types import JsonObject, Params

FORMAT = "tajax curvature 1"
_SCALARS = ("feature_square", "examples")
_PARTS = ("inputs", "outputs", "tokens", "gram")


class About(NamedTuple):
    """What factors say of themselves."""

    task: str
    """Whose examples they are a mean over."""
    model: str
    family: str
    base_sha256: str
    """`Identity.sha256` of the base: θ₀."""
    geometry: JsonObject
    """`Identity.geometry`, what the weights of the base do not tell."""
    trainable: object
    """The rule that said which leaves the factors are for, as for `param_mask`."""
    layers: list[int] | None
    """The half-open range of layers, None for all. Factors are kept of all layers in any case."""
    through_norm: bool
    """Whether gradients are of features after L2 normalisation (`tajax.encoders.encoder.through_norm`)."""
    images: int
    """Examples that were looked at."""
    seed: int
    """Of the examples and of v."""
    seconds: float
    """That it took."""


def save_factors(path: str | Path, factors: Factors, about: About) -> None:
    """Writes the factors of a task as a safetensors file, whole or not at all; its directory is made if absent.

    Tensors are float32: `inputs: NAME` A [L, K, K] or its diagonal [L, V], `outputs: NAME` B [L, M, M], `tokens: NAME`
    [L], `gram: PATH` [L, n, n], and the scalars of `Factors`; a NAME is the path of a leaf or of a kernel and its bias.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    tensors = {field: np.asarray(getattr(factors, field), np.float32) for field in _SCALARS}
    for name, kronecker in factors.kronecker.items():
        tensors |= {f"{part}: {name}": np.asarray(leaf, np.float32) for part, leaf in kronecker._asdict().items()}
    tensors |= {f"gram: {name}": np.asarray(leaf, np.float32) for name, leaf in factors.gram.items()}
    trees.check_finite(tensors, f"the curvature for {path}")
    fields = {name: json.dumps(_plain(value)) for name, value in about._asdict().items()}
    texts = fields | {"format": FORMAT, "tajax_version": tajax.__version__}
    atomic.write(path, safetensors.numpy.save(tensors, metadata=texts))


def read_about(path: str | Path) -> About:
    """What a file of `save_factors` says of itself; its tensors are not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of another format, or lacks a field. The message names the file.
    """
    texts = tensor_files.read_metadata(path)
    if texts.get("format") != FORMAT:
        raise ValueError(f"{path} holds no curvature of tajax: its metadata does not say {FORMAT!r}.")
    try:
        return About(**{name: json.loads(texts[name]) for name in About._fields})
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata lack a field, or one is damaged ({error}). Make it again.") from error


def load_factors(path: str | Path, like: Params) -> tuple[Factors, About]:
    """The factors of a task, and what they say of themselves.

    Args:
        path: a file of `save_factors`.
        like: parameters of the model, of which paths and shapes are compared.

    Raises:
        FileNotFoundError, ValueError: as `read_about`; a tensor is missing, unknown, not finite or of another shape
            than the model's leaves want, or no second moment. The message names file and tensor.
    """
    about = read_about(path)
    tensors, _ = tensor_files.read(path)
    what = f"curvature {path}"
    wanted = set(_SCALARS)
    parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in _PARTS}
    for key, tensor in tensors.items():
        part, colon, name = key.partition(": ")
        if colon and part in parts:
            parts[part][name] = tensor
            wanted |= {f"{each}: {name}" for each in ((part,) if part == "gram" else _PARTS[:3])}
    trees.check_same_names(what, wanted, tensors, "the format")
    trees.check_finite(tensors, what)
    if negative := next((key for key, tensor in tensors.items() if _is_negative(tensor)), None):
        raise ValueError(f"{what}: {negative} has numbers below zero where second moments have none")
    shapes = {name: np.shape(leaf) for name, leaf in trees.flatten_paths(like).items()}
    for name in (*parts["inputs"], *parts["gram"]):
        _check_leaves(what, name, parts, shapes)
    kronecker = {
        name: Kronecker(*(jnp.asarray(parts[part][name]) for part in Kronecker._fields)) for name in parts["inputs"]
    }
    gram = {name: jnp.asarray(leaf) for name, leaf in parts["gram"].items()}
    return Factors(kronecker, gram, *(jnp.asarray(tensors[field]) for field in _SCALARS)), about


def check_fits(path: str | Path, about: About, encoder: Encoder, *, task: str | None = None) -> None:
    """Raises `ValueError` if factors are of another base, or of another task than their name says."""
    identity = encoder.identity
    given = {"family": about.family, "sha256 of the base": about.base_sha256, "geometry": about.geometry}
    here = {"family": encoder.family, "sha256 of the base": identity.sha256, "geometry": _plain(identity.geometry)}
    if task is not None:
        given["task"], here["task"] = about.task, task
    for what, value in given.items():
        if value != here[what]:
            raise ValueError(
                f"{path} was made for another {what}: {value!r} ({about.model}), and here it is {here[what]!r}. Make "
                "the curvature of this model: --config.workflow=curvature."
            )


def _is_negative(tensor: np.ndarray) -> bool:
    """Whether a diagonal is below zero anywhere, or a vector or number."""
    square = tensor.ndim == 3 and tensor.shape[1] == tensor.shape[2]
    return bool(np.any((np.einsum("lnn->ln", tensor) if square else tensor) < 0))


def _check_leaves(
    what: str,
    name: str,
    parts: Mapping[str, Mapping[str, np.ndarray]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    for path in name.split(JOINT):
        if path not in shapes:
            raise ValueError(f"{what} has a factor for {path!r}, which is no leaf of the model")
    sizes = [int(np.prod(shapes[path])) for path in name.split(JOINT)]
    if name in parts["gram"]:
        shape = parts["gram"][name].shape
        fits = len(shape) == 3 and shape[1] == shape[2] and shape[0] * shape[1] == sum(sizes)
    else:
        a, b, tokens = (parts[part][name].shape for part in _PARTS[:3])
        square = len(b) == 3 and b[1] == b[2] and (a[1:] == (a[-1],) or a[1:] == (a[-1], a[-1])) and len(a) > 1
        fits = square and a[0] == b[0] and tokens == b[:1] and b[0] * a[-1] * b[1] == sum(sizes)
        fits = fits and (len(sizes) == 1 or sizes[1] == b[0] * b[1])
        shape = (a, b, tokens)
    if not fits:
        raise ValueError(f"{what}: the factors of {name} have shapes {shape}, which do not fit its leaves")


def _plain(value: object) -> object:
    """A value as JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

"""Merging leaf by leaf, for vectors that do not fit into memory together: each is read where it is needed, in part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.matrices import groups, in_layers
from tajax.merging.method import Method
from tajax.merging.preparation import Preparation
from tajax.rules import STACKED
from tajax.types import Params


def prepare_alone(
    preparation: Preparation,
    taus: Sequence[Callable[[], Params]],
    *,
    keys: Sequence[Array] = (),
    **options: Any,  # those of the preparation
) -> Iterator[Params]:
    """Prepared vectors, one at a time: what `preparation(taus, **options)` makes of vectors that are read when needed.

    Args:
        preparation: a row of `PREPARATIONS`.
        taus: what reads each of the vectors. Each is called once, or twice where the preparation must know something
            of all vectors first.
        keys: of a preparation that draws, one for each vector; the draws are others than those from one key.
        **options: of the preparation.

    Yields:
        The vectors in their order.

    Raises:
        ValueError: what the preparation raises itself.

    Example:
        >>> from tajax.merging import PREPARATIONS
        >>> taus = [lambda: {"w": np.float32([3.0, 0.0])}, lambda: {"w": np.float32([0.0, -1.0])}]
        >>> list(prepare_alone(PREPARATIONS["rescale"], taus))
        [{'w': Array([2., 0.], dtype=float32)}, {'w': Array([ 0., -2.], dtype=float32)}]
    """
    shared = preparation.shared(read() for read in taus) if preparation.shared is not None else {}
    for number, read in enumerate(taus):
        drawn = {"key": keys[number]} if preparation.random else {}
        yield preparation.alone(read(), **options, **drawn, **shared)


def merge_by_leaf(
    method: Method,
    pretrained: Params,
    taus: Sequence[Mapping[str, ArrayLike]],
    *,
    stacked: str | None = STACKED,
    **options: Any,  # those of the method
) -> Iterator[tuple[str, np.ndarray]]:
    """The merged model, a leaf at a time: at no moment are more than a few layers of all vectors in memory.

    It is the model that `method(pretrained, taus, **options)` makes, to the rounding of compiled programs, for methods
    that are `by_leaf`. What such a method first does to each vector as a whole (`Method.alone`) has been done.

    Args:
        method: a row of `METHODS`.
        pretrained: θ₀.
        taus: the T vectors, by path, for example memory maps of files. A leaf that a vector lacks is zero in it.
        stacked: the node below which leaves have the layers along their leading axis, which are then taken one by one.
        **options: of the method, after `Method.alone`.

    Yields:
        Paths of leaves that any vector has, with their merged values. All other leaves stay as they are in θ₀.

    Raises:
        ValueError: the method is not `by_leaf`; and what it raises itself.

    Example:
        >>> from tajax.merging import METHODS
        >>> taus = [{"w": np.ones(2, np.float32)}, {}]
        >>> theta = {"w": jnp.zeros(2), "b": jnp.zeros(1)}
        >>> dict(merge_by_leaf(METHODS["weight_average"], theta, taus))
        {'w': array([0.5, 0.5], dtype=float32)}
    """
    if not method.by_leaf:
        raise ValueError("this method looks at all leaves together, and cannot merge them one by one")
    flat = trees.flatten_paths(pretrained)
    layers = {"stacked": stacked} if method.layered else {}
    merge = jax.jit(lambda theta, parts: method(theta, parts, **options, **layers))  # one program for equal layers
    for group in groups(list(flat), bool(options.get("fused"))):
        moved = [path for path in group if any(path in tau for tau in taus)]
        if not moved:
            continue
        merged = {path: np.array(flat[path]) for path in group}
        for rows in _rows(group[0], flat[group[0]], stacked):
            theta = trees.unflatten_paths({path: jnp.asarray(np.asarray(flat[path])[rows]) for path in group})
            parts = [
                trees.unflatten_paths({path: _part(tau, path, flat[path], rows) for path in group}) for tau in taus
            ]
            for path, part in trees.flatten_paths(merge(theta, parts)).items():
                merged[path][rows] = part
        yield from ((path, merged[path]) for path in moved)


def _rows(path: str, leaf: ArrayLike, stacked: str | None) -> Iterator[Any]:  # Any: what NumPy takes as an index
    if not in_layers(path, stacked):
        yield ...
        return
    for layer in range(np.shape(leaf)[0]):
        yield slice(layer, layer + 1)


def _part(tau: Mapping[str, ArrayLike], path: str, like: ArrayLike, rows: Any) -> np.ndarray:
    if path not in tau:
        return np.zeros(np.shape(np.asarray(like)[rows]), np.float32)
    return np.ascontiguousarray(np.asarray(tau[path])[rows])

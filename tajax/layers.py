"""Leaves that stack all layers of a tower along their leading axis: taking trained layers out, putting them back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from tajax.types import LeafMask


def take_layers(leaf: ArrayLike, trained: LeafMask) -> Array:
    """The trained layers of a leaf, in order: all of it for one bool, [sum(trained), ...] for an array [L].

    Layers are cut and put back in whole runs: XLA then sees through both, and computes no gradient of a frozen layer
    unless the layers run in a loop. A loop has to be cut where the first trained layer is, at `frozen_layers`.

    Example:
        >>> take_layers(jnp.arange(4.0), np.array([True, False, True, True]))
        Array([0., 2., 3.], dtype=float32)
    """
    array = jnp.asarray(leaf)
    if np.ndim(trained) == 0:
        return array
    return _joined([jax.lax.slice_in_dim(array, *run) for kept, run in _runs(trained) if kept])


def put_layers(leaf: ArrayLike, trained: LeafMask, part: Array) -> Array:
    """The leaf with `part` in place of its trained layers: the inverse of `take_layers`.

    Example:
        >>> put_layers(jnp.zeros(4), np.array([True, False, True, True]), jnp.array([1.0, 2.0, 3.0]))
        Array([1., 0., 2., 3.], dtype=float32)
    """
    if np.ndim(trained) == 0:
        return part
    array, pieces, done = jnp.asarray(leaf), [], 0
    for kept, (start, end) in _runs(trained):
        if kept:
            pieces.append(jax.lax.slice_in_dim(part, done, done := done + end - start))
        else:
            pieces.append(jax.lax.slice_in_dim(array, start, end))
    return _joined(pieces)


def in_layers(path: str, leaf: ArrayLike, layers: tuple[int, int], *, stacked: str) -> LeafMask:
    """The mask of a leaf that is trained in a half-open range of its layers; False where it has none.

    Below the node `stacked` leaves have the layers along their leading axis.

    Raises:
        ValueError: the range is empty, or reaches beyond the layers of the leaf.
        TypeError: the range is not two whole numbers.

    Example:
        >>> in_layers("layers/mlp/bias", np.zeros((3, 8)), (0, 2), stacked="layers")
        array([ True,  True, False])
    """
    if not (len(layers) == 2 and all(isinstance(end, int) and not isinstance(end, bool) for end in layers)):
        raise TypeError(f"layers is {layers!r}; give (first, end), two whole numbers")
    if stacked not in path.split("/"):
        return False
    (first, end), depth = layers, (*np.shape(leaf), 0)[0]
    if not 0 <= first < end <= depth:
        raise ValueError(
            f"layers is ({first}, {end}), which is no range of the {depth} layers of {path!r};"
            f" give (first, end) with 0 <= first < end <= {depth}"
        )
    return simplified((np.arange(depth) >= first) & (np.arange(depth) < end))


def frozen_layers(trained: Mapping[str, LeafMask], *, stacked: str | None) -> int:
    """How many layers, counted from the input, come before the first of which anything is trained.

    Args:
        trained: masks of leaves by path, as `trees.trained_layers` has them.
        stacked: the node below which leaves have the layers along their leading axis; None if there is none.

    Returns:
        That number, less than there are layers; 0 where no mask tells layers apart.

    Example:
        >>> kernels, biases = np.array([False, False, True]), np.array([False, True, False])
        >>> frozen_layers({"blocks/kernel": kernels, "blocks/bias": biases, "blocks/scale": False}, stacked="blocks")
        1
    """
    within = [mask for path, mask in trained.items() if stacked in path.split("/") and np.any(mask)]
    return min((int(np.argmax(mask)) if np.ndim(mask) else 0 for mask in within), default=0)


def simplified(trained: np.ndarray) -> LeafMask:
    """One bool for an array that is the same in every layer, else the array."""
    return bool(trained.any()) if trained.all() or not trained.any() else trained


def _runs(trained: LeafMask) -> Iterator[tuple[bool, tuple[int, int]]]:
    """Maximal runs of equal layers, and whether each is trained."""
    layers = np.asarray(trained)
    ends = [*(np.flatnonzero(np.diff(layers)) + 1).tolist(), len(layers)]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield bool(layers[start]), (start, end)


def _joined(pieces: Sequence[Array]) -> Array:
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces)

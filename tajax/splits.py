"""A data set seen through a linearised model, on the host: its scores along each task vector, and what they tell.

Of N images, K classes and T task vectors they are N·(T+1)·(K+T+1) floats: 2.0 GB in float32 of 50,000 images, 1,000
classes and 9 vectors. The devices hold two batches of them while they are made, and a part of them later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from tajax import metrics
from tajax.affine import AffineLogits, Interval, correct_intervals, tally_at
from tajax.metrics import Tally

__all__ = ["AffineSplit", "gathered", "intervals", "on_host", "tally_at_coefs"]

_PART = 2**27  # bytes of a split on the device at a time; what is computed of them takes a few times as many


class AffineSplit(NamedTuple):
    """A data set seen through a linearised model, on the host: enough to evaluate it at any coefficients."""

    rows: AffineLogits
    """Scores and inner products of each image, padding excluded."""
    labels: Int[np.ndarray, " N"]


def gathered(results: Iterable[tuple[Array, Array, Array]], classes: int) -> AffineSplit:
    """What a step gives on batch after batch, together on the host, without its padding.

    A result is fetched when the next one has been dispatched, and not kept. The host holds the rows once, and up to an
    eighth more while they come.

    Args:
        results: scores [B, T+1, ≥K], inner products [B, T+1, T+1] and labels [B], −1 in padding, as of
            `evaluate.make_affine_step`.
        classes: K, the number of classes; further columns are left out.

    Returns:
        The rows in their order, with the dtypes of the results.

    Raises:
        ValueError: there is no row that is no padding.

    Example:
        >>> one = np.ones((2, 2, 4), np.float32), np.ones((2, 2, 2), np.float32), np.array([3, -1])
        >>> gathered([one, one], 4).labels
        array([3, 3])
    """
    arrays: list[np.ndarray] = []
    count, before = 0, None
    for result in results:
        if before is not None:
            count = _append(arrays, count, before, classes)  # while the devices are at the next one
        before = result
    if before is not None:
        count = _append(arrays, count, before, classes)
    if not count:
        raise ValueError("the data set is empty: no image to evaluate")
    for array in arrays:
        array.resize((count, *array.shape[1:]), refcheck=False)
    scores, gram, labels = arrays
    return AffineSplit(on_host(scores, gram, classes), labels)


def on_host(scores: np.ndarray, gram: np.ndarray, classes: int) -> AffineLogits:
    """`AffineLogits` in NumPy: scores [N, T+1, K], inner products [N, T+1, T+1], and K."""
    host: tuple[Any, ...] = (scores, gram, np.int32(classes))  # of NumPy, where types say of JAX
    return AffineLogits(*host)


def _append(arrays: list[np.ndarray], count: int, result: tuple[Array, Array, Array], classes: int) -> int:
    """Puts the images of a batch behind the first `count` rows of scores, inner products and labels; returns how many.

    Where there is no room an array grows by an eighth, in place: the system moves the pages of a large one, so that its
    rows are never there twice.
    """
    scores, gram, labels = map(np.asarray, result)
    kept = np.flatnonzero(labels >= 0)
    end = count + len(kept)
    leaves = scores[..., :classes], gram, labels
    if not arrays:
        arrays.extend(np.empty((0, *leaf.shape[1:]), leaf.dtype) for leaf in leaves)
    for array, leaf in zip(arrays, leaves, strict=True):
        if end > len(array):
            array.resize((end + end // 8, *leaf.shape[1:]), refcheck=False)
        array[count:end] = leaf[kept]
    return end


def tally_at_coefs(split: AffineSplit, coefs: Float[ArrayLike, "G T"]) -> Tally:
    """`affine.tally_at` over all images of a split, of which a part at a time is on the device.

    Counts are exact. Losses are summed part by part, where the rows take more than 128 MiB.

    Args:
        split: from `evaluate.affine_split`.
        coefs: one row of T coefficients for each of the G points.

    Returns:
        A Tally with leaves of shape [G].

    Raises:
        ValueError: as `affine.tally_at`.
    """
    parts = (tally_at(rows, labels, np.ones(len(labels), bool), coefs) for rows, labels in _parts(split))
    return metrics.total(parts, what="the split")


def intervals(split: AffineSplit, direction: Float[ArrayLike, " T"]) -> Interval:
    """`affine.correct_intervals` of all images of a split, of which a part at a time is on the device.

    Args:
        split: from `evaluate.affine_split`.
        direction: d [T]; ones for the sum of the task vectors.

    Returns:
        The intervals, on the host; to the bit those of all images together.

    Raises:
        ValueError: as `affine.correct_intervals`.
    """
    parts = [jax.device_get(correct_intervals(rows, labels, direction)) for rows, labels in _parts(split)]
    return jax.tree.map(lambda *ends: np.concatenate(ends), *parts)


def _parts(split: AffineSplit) -> Iterator[AffineSplit]:
    """The split in order, cut so that scores and inner products of a part take up to `_PART` bytes."""
    scores, gram, classes = split.rows
    size = max(1, _PART // (scores[0].nbytes + gram[0].nbytes))
    for start in range(0, len(split.labels), size):
        part = slice(start, start + size)
        yield AffineSplit(AffineLogits(scores[part], gram[part], classes), split.labels[part])

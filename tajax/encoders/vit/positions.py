"""The interpolation of a position table to another grid, as a constant matrix for each axis.

transformers interpolates DINOv2's table bicubically each time an image comes in, since the table is of 518 pixels and
images have 224. Both axes are treated alike and one after the other, so that with A `[g, G]` it is A·table·Aᵀ, for each
channel: the table itself stays the parameter, and its gradient goes through A.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["KERNELS", "bicubic_matrix"]


class _Kernel(NamedTuple):
    """A cubic convolution kernel, and whether it is widened where a grid shrinks, against aliases."""

    a: float
    antialias: bool


KERNELS = {
    "dinov2": _Kernel(-0.75, antialias=False),
    "dinov2_with_registers": _Kernel(-0.5, antialias=True),
}
"""What PyTorch's bicubic interpolation is made with for each `model_type` that interpolates."""


def bicubic_matrix(old: int, new: int, *, a: float, antialias: bool) -> Float[np.ndarray, "new old"]:
    """What makes `new` values of `old` along one axis, bicubically: A·x.

    A value stands in the middle of its cell. The new value i lies at s = (i + ½)·old/new − ½ among the old ones and is
    Σ_j k((s − j)/w)·x_j / Σ_j k((s − j)/w), with Keys' cubic kernel k: w is old/new where a grid shrinks and
    `antialias` is on, and 1 elsewhere. Without `antialias` what lies beyond the border is the value at the border; with
    it, it counts for nothing.

    Args:
        old: Values that there are.
        new: Values that are made.
        a: Of the kernel, its slope at distance 1.
        antialias: Whether the kernel is widened where values get fewer.

    Returns:
        float64; each row sums to 1.

    Source: Keys 1981, "Cubic convolution interpolation for digital image processing". `interpolate(…, mode="bicubic",
        align_corners=False)` of PyTorch takes a = −0.75 without and −0.5 with `antialias`. transformers gives it the
        new size; earlier versions, and the code of DINOv2, gave the factor (new + 0.1)/old for new/old.

    Example:
        >>> bicubic_matrix(2, 4, a=-0.75, antialias=False).sum(axis=1)
        array([1., 1., 1., 1.])
    """
    matrix = np.zeros((new, old))
    scale = old / new
    width = scale if antialias and scale > 1 else 1.0
    for i in range(new):
        center = (i + 0.5) * scale - 0.5
        for j in range(math.floor(center - 2 * width), math.ceil(center + 2 * width) + 1):
            weight = _keys(abs(center - j) / width, a)
            if not antialias:
                matrix[i, min(max(j, 0), old - 1)] += weight
            elif 0 <= j < old:
                matrix[i, j] += weight
    return matrix / matrix.sum(axis=1, keepdims=True)


def _keys(x: float, a: float) -> float:
    """Keys' kernel at a distance."""
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0

"""Fields over the picture: coordinates, gradients, clouds of smooth noise, grain."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from tajax.data.builders.drawing import SIZE
from tajax.data.builders.randomness import between

_AXIS = ((np.arange(SIZE) + 0.5) / (SIZE / 2) - 1).astype(np.float32)
X, Y = np.meshgrid(_AXIS, _AXIS)  # [32, 32], in (-1, 1), right and down


@lru_cache(maxsize=64)
def _interpolation(cells: int, size: int) -> np.ndarray:
    """Weights [size, cells + 1] of a smooth (raised cosine) interpolation between cells + 1 knots."""
    place = (np.arange(size) + 0.5) / size * cells
    left = np.minimum(place.astype(int), cells - 1)
    mix = 0.5 - 0.5 * np.cos(np.pi * (place - left))
    weights = np.zeros((size, cells + 1), np.float32)
    weights[np.arange(size), left] = 1 - mix
    weights[np.arange(size), left + 1] = mix
    return weights


def clouds(rng: np.random.Generator, *, cells: int, size: int = SIZE, channels: int = 0) -> np.ndarray:
    """Smooth noise in [0, 1], [size, size] or [size, size, channels]; features are size / cells wide."""
    weights = _interpolation(cells, size)
    if not channels:
        return weights @ rng.random((cells + 1, cells + 1), np.float32) @ weights.T
    knots = rng.random((channels, cells + 1, cells + 1), np.float32)
    return np.moveaxis(weights @ knots @ weights.T, 0, -1)


def ramp(rng: np.random.Generator) -> np.ndarray:
    """A linear gradient from 0 to 1 in a random direction, [32, 32]."""
    angle = between(rng, 0, 2 * math.pi)
    return np.float32(0.5) + (X * np.float32(math.cos(angle)) + Y * np.float32(math.sin(angle))) * np.float32(0.36)


def spotlight(x: float, y: float, reach: float) -> np.ndarray:
    """1 at the point (x, y) of the coordinates `X`, `Y`, falling to 0 at distance `reach`, [32, 32]."""
    return np.maximum(0, 1 - ((X - np.float32(x)) ** 2 + (Y - np.float32(y)) ** 2) / np.float32(reach * reach))


def grain(rng: np.random.Generator, strength: float, *, colored: bool = True) -> np.ndarray:
    """Normal noise of standard deviation `strength`, [32, 32, 3], or [32, 32, 1] alike in all channels."""
    return rng.standard_normal((SIZE, SIZE, 3 if colored else 1), np.float32) * np.float32(strength)


def softened(picture: np.ndarray) -> np.ndarray:
    """The picture [32, 32, 3] blurred by (1, 2, 1)/4 along both axes, edges repeated."""
    padded = np.pad(picture, ((1, 1), (0, 0), (0, 0)), mode="edge")
    picture = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    padded = np.pad(picture, ((0, 0), (1, 1), (0, 0)), mode="edge")
    return 0.25 * padded[:, :-2] + 0.5 * padded[:, 1:-1] + 0.25 * padded[:, 2:]

"""Textures as fields of brightness: each takes coordinates and gives a pattern from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from tajax.data.builders.concepts import TEXTURES
from tajax.data.builders.drawing import SIZE
from tajax.data.builders.randomness import between
from tajax.data.builders.surfaces import clouds

_FINE = 2 * SIZE  # fields are sampled twice as finely as the picture, then averaged
_AXIS = ((np.arange(_FINE) + 0.5) / SIZE - 1).astype(np.float32)
_U, _V = np.meshgrid(_AXIS, _AXIS)

Field = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def _wave(phase: np.ndarray) -> np.ndarray:
    """1 on the first half of every period of one, 0 on the second."""
    return (phase % 1.0 < 0.5).astype(np.float32)


def _striped(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _wave(u)


def _checkered(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.abs(_wave(u) - _wave(v))


def _dotted(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    row = np.floor(v * 1.1)
    across, down = (u * 1.1 + 0.5 * (row % 2)) % 1.0 - 0.5, v * 1.1 - row - 0.5
    return (across * across + down * down < between(rng, 0.07, 0.11)).astype(np.float32)


def _zigzag(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    fold = np.abs((u * 0.7) % 1.0 - 0.5) * 2
    return _wave(v * 1.1 + fold * between(rng, 0.8, 1.1))


def _brick(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    row = np.floor(v * 1.25)
    across, down = (u * 0.62 + 0.5 * (row % 2)) % 1.0, v * 1.25 - row
    return ((across > 0.13) & (down > 0.24)).astype(np.float32)


def _ringed(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, y = between(rng, -0.5, 0.5), between(rng, -0.5, 0.5)
    middle_u, middle_v = u[SIZE, SIZE], v[SIZE, SIZE]
    return _wave(np.hypot(u - middle_u - 2 * x, v - middle_v - 2 * y))


def _gridded(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    line = between(rng, 0.2, 0.3)
    return np.maximum(u % 1.0 < line, v % 1.0 < line).astype(np.float32)


def _marbled(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    swirl = clouds(rng, cells=4, size=_FINE) * 3.2 + clouds(rng, cells=9, size=_FINE) * 0.7
    return (0.5 + 0.5 * np.sin(2 * math.pi * (0.35 * u + swirl))).astype(np.float32) ** 2


def _cracked(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Edges between the cells of jittered lattice points: where the two nearest points are nearly as far."""
    side = 4
    step = 2.6 / (side - 1)
    seeds = np.mgrid[0:side, 0:side].reshape(2, -1).T * step - 1.3 + (rng.random((side * side, 2)) - 0.5) * step * 1.1
    squares = ((_U[..., None] - seeds[:, 0]) ** 2 + (_V[..., None] - seeds[:, 1]) ** 2).astype(np.float32)
    nearest = np.sqrt(np.partition(squares, 1, axis=-1)[..., :2])
    return (nearest[..., 1] - nearest[..., 0] > between(rng, 0.09, 0.13)).astype(np.float32)


def _scaly(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Overlapping rows of round scales, each shaded towards its rim."""
    u, v = u * 0.9, v * 1.5
    row = np.floor(v)
    down = v - row
    across = (u + 0.5 * (row % 2)) % 1.0 - 0.5
    upper = ((u + 0.5 * ((row + 1) % 2)) % 1.0) - 0.5
    depth = np.hypot(across, down * 0.62)  # distance from the centre of the scale that hangs into this row
    above = np.hypot(upper, (down + 1) * 0.62)
    return np.where(above < 0.72, above / 0.72, depth / 0.72).astype(np.float32) ** 2


_FIELDS: dict[str, Field] = {
    "striped": _striped, "checkered": _checkered, "dotted": _dotted, "zigzag": _zigzag, "brick": _brick,
    "ringed": _ringed, "gridded": _gridded, "marbled": _marbled, "cracked": _cracked, "scaly": _scaly,
}  # fmt: skip
assert tuple(_FIELDS) == TEXTURES


def pattern(
    name: str, rng: np.random.Generator, *, periods: float, angle: float = 0.0, warp: float = 0.0
) -> Float[np.ndarray, "32 32"]:
    """One of `concepts.TEXTURES` as brightness from 0 to about 1 (rims of scales reach 1.08).

    Args:
        name: the texture.
        rng: source of its phase and of its own small variations.
        periods: repetitions across the picture (cracks and marbling keep their own size).
        angle: turn, in radians.
        warp: how far smooth noise bends it, in periods.
    """
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], np.float32) * (
        periods / 2
    )
    u = turn[0, 0] * _U + turn[0, 1] * _V + np.float32(rng.random())
    v = turn[1, 0] * _U + turn[1, 1] * _V + np.float32(rng.random())
    if warp:
        u = u + (clouds(rng, cells=3, size=_FINE) - 0.5) * np.float32(2 * warp)
        v = v + (clouds(rng, cells=3, size=_FINE) - 0.5) * np.float32(2 * warp)
    fine = _FIELDS[name](u, v, rng)
    return fine.reshape(SIZE, 2, SIZE, 2).mean((1, 3), dtype=np.float32)

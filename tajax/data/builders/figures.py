"""Outlines of things in their own coordinates (unit radius, x right, y down): shapes and arrows."""

from __future__ import annotations

import math

import numpy as np

from tajax.data.builders.concepts import DIRECTIONS, SHAPES
from tajax.data.builders.drawing import Mask, Pose, blank, polygons, strokes

Figure = tuple[tuple[np.ndarray, bool], ...]


def regular(corners: int, *, radius: float = 1.0, turn: float = 0.0) -> np.ndarray:
    """Corners [corners, 2] of a regular polygon, the first one on top before turning by `turn` radians."""
    angles = np.arange(corners) * (2 * math.pi / corners) - math.pi / 2 + turn
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius


def _star(points: int, inner: float) -> np.ndarray:
    corners = regular(2 * points)
    corners[1::2] *= inner
    return corners


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y + 2.5], axis=1) / 16


def _cross(arm: float) -> np.ndarray:
    quarter = np.array([(arm, -1.0), (arm, -arm), (1.0, -arm)])
    turn = np.array([(0.0, 1.0), (-1.0, 0.0)])  # a quarter turn, row vectors
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


_CIRCLE = regular(36)
_HALF = np.array([(math.cos(t), math.sin(t) + 0.4) for t in np.linspace(math.pi, 2 * math.pi, 20)]) * 1.08
_FIGURES: dict[str, Figure] = {
    "circle": ((_CIRCLE, True),),
    "square": ((regular(4, turn=math.pi / 4) * 1.2, True),),
    "triangle": ((regular(3) * 1.15 + (0.0, 0.2), True),),
    "pentagon": ((regular(5) * 1.08, True),),
    "star": ((_star(5, 0.4) * 1.15, True),),
    "heart": ((_heart(), True),),
    "crescent": ((_CIRCLE, True), (_CIRCLE * 0.86 + (0.46, 0.0), False)),
    "cross": ((_cross(0.34), True),),
    "ring": ((_CIRCLE, True), (_CIRCLE * 0.56, False)),
    "semicircle": ((_HALF, True),),
}
assert tuple(_FIGURES) == SHAPES


def shape(name: str, pose: Pose) -> Mask:
    """The mask of one of `concepts.SHAPES`."""
    return polygons(_FIGURES[name], pose)


def direction_angle(direction: str) -> float:
    """Radians, clockwise, from up to one of `concepts.DIRECTIONS`."""
    return DIRECTIONS.index(direction) * math.pi / 4


def solid_arrow(pose: Pose, *, shaft: float = 0.24, head: float = 0.7, barb: float = 0.0) -> Mask:
    """A filled arrow that points up before its pose turns it.

    Args:
        pose: place, size and angle.
        shaft: half the width of the shaft.
        head: half the width of the head, which is as long as it is half wide.
        barb: how far the head's back corners sweep behind its base.
    """
    base = -1.0 + 1.15 * head
    corners = [
        (0, -1),
        (head, base + barb),
        (shaft, base),
        (shaft, 1),
        (-shaft, 1),
        (-shaft, base),
        (-head, base + barb),
    ]
    return polygons(((np.array(corners, float), True),), pose)


def line_arrow(pose: Pose, *, width: float, head: float = 0.65, tail: bool = False) -> Mask:
    """An arrow of strokes `width` pixels wide, pointing up before its pose turns it; `tail` adds a foot."""
    lines = [
        np.array([(0, -0.95), (0, 1.0)]),
        np.array([(-head, -0.95 + head), (0, -1.0), (head, -0.95 + head)]),
    ]
    if tail:
        lines.append(np.array([(-0.35, 1.0), (0.35, 1.0)]))
    return strokes(lines, pose, width=width, mask=blank())


def chevron_arrow(pose: Pose) -> Mask:
    """A broad arrowhead without a shaft that points up before its pose turns it."""
    corners = [(0, -1), (0.95, 0.25), (0.95, 0.95), (0, -0.2), (-0.95, 0.95), (-0.95, 0.25)]
    return polygons(((np.array(corners, float), True),), pose)

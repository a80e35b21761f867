"""Traffic-sign pictograms, drawn from polygons."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from tajax.data.builders.concepts import SIGNS
from tajax.data.builders.drawing import CANVAS, SCALE, Pose, coverage, glyph, place, polygons
from tajax.data.builders.figures import regular
from tajax.data.builders.randomness import between, pick

Paint = dict[str, tuple[int, ...]]

_DISC = regular(36)
_DIAMOND = regular(4)
_PLATE = regular(4, turn=math.pi / 4) * 1.3
_OCTAGON = regular(8, turn=math.pi / 8) * 1.06
_UPWARD = regular(3) * 1.2 + (0.0, 0.25)
_DOWNWARD = -_UPWARD
_SLASH = np.array([(-0.62, -0.78), (0.78, 0.62), (0.62, 0.78), (-0.78, -0.62)])
_BAR = np.array([(-0.72, -0.2), (0.72, -0.2), (0.72, 0.2), (-0.72, 0.2)])
_BENT_ARROW = np.array(
    [(0.16, 0.72), (0.52, 0.72), (0.52, -0.34), (-0.14, -0.34), (-0.14, -0.66), (-0.78, -0.14), (-0.14, 0.4),
     (-0.14, 0.06), (0.16, 0.06)]
)  # fmt: skip
_MARK = np.array([(-0.13, -0.42), (0.13, -0.42), (0.08, 0.3), (-0.08, 0.3)])
_DOT = regular(10, radius=0.13) + (0.0, 0.56)
_HEAD = regular(10, radius=0.17) + (0.0, -0.45)
_WALKER = (
    np.array([(-0.1, -0.26), (0.14, -0.26), (0.12, 0.22), (-0.12, 0.22)]),
    np.array([(-0.12, 0.16), (0.06, 0.16), (-0.22, 0.74), (-0.4, 0.74)]),
    np.array([(-0.06, 0.16), (0.12, 0.16), (0.42, 0.74), (0.24, 0.74)]),
    np.array([(0.06, -0.26), (0.14, -0.2), (0.4, 0.1), (0.3, 0.16)]),
    np.array([(-0.02, -0.26), (-0.12, -0.2), (-0.38, 0.14), (-0.28, 0.18)]),
)


class _Plate:
    """A sign under construction: a picture `CANVAS` pixels wide, and the pose that all of its parts share."""

    def __init__(self, pose: Pose, paint: Paint, outline: np.ndarray, border: str) -> None:
        self.pose, self.paint, self.outline = pose, paint, outline
        self.picture = Image.new("RGB", (CANVAS, CANVAS), paint[border])
        self._pen = ImageDraw.Draw(self.picture)

    def fill(self, corners: np.ndarray, color: str) -> None:
        self._pen.polygon(place(corners, self.pose), fill=self.paint[color])

    def write(self, text: str, color: str, *, size: float, down: float = 0.0, weight: int = 2) -> None:
        a, b, c, d = self.pose.matrix()
        pose = self.pose._replace(x=self.pose.x + b * down, y=self.pose.y + d * down, radius=self.pose.radius * size)
        self.picture.paste(self.paint[color], mask=glyph(text, pose, weight=weight))


def _stop(pose: Pose, paint: Paint, rng: np.random.Generator) -> _Plate:
    plate = _Plate(pose, paint, _OCTAGON, "white")
    plate.fill(_OCTAGON * 0.9, "red")
    plate.write("STOP", "white", size=0.78)
    return plate


def _yield(pose: Pose, paint: Paint, rng: np.random.Generator) -> _Plate:
    plate = _Plate(pose, paint, _DOWNWARD, "red")
    plate.fill(_DOWNWARD * 0.6 - (0.0, 0.04), "white")
    return plate


def _no_entry(pose: Pose, paint: Paint, rng: np.random.Generator) -> _Plate:
    plate = _Plate(pose, paint, _DISC, "white")
    plate.fill(_DISC * 0.94, "red")
    plate.fill(_BAR, "white")
    return plate


def _no_parking(pose: Pose, paint: Paint, rng: np.random.Generator) -> _Plate:
    plate = _Plate(pose, paint, _DISC, "red")
    plate.fill(_DISC * 0.76, "blue")
    plate.fill(_SLASH, "red")
    return plate


def _speed_limit(pose: Pose, paint: Paint, rng: np.random.Generator) -> _Plate:
    plate = _Plate(pose, paint, _DISC, "red")
    plate.fill(_DISC * 0.74, "white")
    plate.write(pick(rng, ("30", "40", "50", "60", "70", "80", "90")), "black", size=0.56, weight=3)
    return plate


def _turn(pose: Pose, paint: Paint, side: int) -> _Plate:
    plate = _Plate(pose, paint, _DISC, "white")
    plate.fill(_DISC * 0.93, "blue")
    plate.fill(_BENT_ARROW * (side * 0.85, 0.85), "white")
    return plate


def _turn_left(pose: Pose, paint: Paint, rng: np.random.Generator) -> _Plate:
    return _turn(pose, paint, 1)


def _turn_right(pose: Pose, paint: Paint, rng: np.random.Generator) -> _Plate:
    return _turn(pose, paint, -1)


def _priority_road(pose: Pose, paint: Paint, rng: np.random.Generator) -> _Plate:
    plate = _Plate(pose, paint, _DIAMOND * 1.15, "white")
    plate.fill(_DIAMOND * 0.78, "yellow")
    return plate


def _pedestrian_crossing(pose: Pose, paint: Paint, rng: np.random.Generator) -> _Plate:
    plate = _Plate(pose, paint, _PLATE, "blue")
    plate.fill(_UPWARD * 0.86 - (0.0, 0.12), "white")
    for part in (_HEAD, *_WALKER):
        plate.fill(part * 0.8 + (0.0, 0.08), "black")
    return plate


def _danger(pose: Pose, paint: Paint, rng: np.random.Generator) -> _Plate:
    plate = _Plate(pose, paint, _UPWARD, "red")
    plate.fill(_UPWARD * 0.68 + (0.0, 0.04), "white")
    plate.fill(_MARK + (0.0, 0.1), "black")
    plate.fill(_DOT + (0.0, 0.06), "black")
    return plate


_DRAW: dict[str, Callable[[Pose, Paint, np.random.Generator], _Plate]] = {
    "stop": _stop, "yield": _yield, "no entry": _no_entry, "no parking": _no_parking,
    "speed limit": _speed_limit, "turn left": _turn_left, "turn right": _turn_right,
    "priority road": _priority_road, "pedestrian crossing": _pedestrian_crossing, "danger": _danger,
}  # fmt: skip
assert tuple(_DRAW) == SIGNS


class Sign(NamedTuple):
    """A finished sign, to be laid over a picture."""

    cover: np.ndarray  # float32 [32, 32] in [0, 1], where the sign is
    color: np.ndarray  # float32 [32, 32, 3] in [0, 1], what is on it


def sign(name: str, pose: Pose, rng: np.random.Generator, *, fading: float = 0.1) -> Sign:
    """One of `concepts.SIGNS`, with paint that differs a little from sign to sign.

    Args:
        name: which sign.
        pose: place, size and turn; one unit is the radius of a round sign.
        rng: source of the paint and of the number on a speed limit.
        fading: how far the paint may depart from the standard's, in [0, 1].
    """
    paint = {
        color: tuple(int(max(0, min(255, c + 255 * between(rng, -fading, fading)))) for c in standard)
        for color, standard in _STANDARD.items()
    }
    plate = _DRAW[name](pose, paint, rng)
    color = np.asarray(plate.picture.reduce(SCALE), np.float32) * np.float32(1 / 255)
    return Sign(coverage(polygons(((plate.outline, True),), pose)), color)


_STANDARD: Paint = {
    "red": (200, 25, 35), "white": (240, 240, 238), "blue": (25, 80, 180), "yellow": (250, 200, 25),
    "black": (22, 22, 24),
}  # fmt: skip

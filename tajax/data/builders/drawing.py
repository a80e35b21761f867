"""Coverage masks: polygons, strokes and glyphs drawn large, then averaged down to 32 pixels.

A mask lives twice. As a Pillow ``"L"`` image of `CANVAS` pixels a side it can be outlined, thickened or cut;
`coverage` averages it to a float32 array [32, 32] in [0, 1], with which `paint` lays a colour on a picture
[32, 32, 3]. Composing at the small size keeps a picture at a few tenths of a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 32  # pixels, the side of every finished picture
SCALE = 3  # supersampling: masks are drawn at SCALE × SIZE and averaged
CANVAS = SIZE * SCALE

_GLYPH_TILE = 96  # pixels, the side of a cached glyph
_GLYPH_EXTENT = 1.5  # half a tile, in units of half a capital's height

Mask = Image.Image


class Pose(NamedTuple):
    """Where a figure stands and how it is bent.

    A point p of the figure goes to centre + radius · R(angle) · [[stretch, shear], [0, 1/stretch]] · p.
    """

    x: float  # centre, in pixels from the left
    y: float  # centre, in pixels from the top
    radius: float  # pixels that one unit of the figure's own coordinates takes
    angle: float = 0.0  # radians, clockwise on the screen
    stretch: float = 1.0
    shear: float = 0.0

    def matrix(self) -> tuple[float, float, float, float]:
        """The four entries a, b, c, d of the linear part, row by row, in pixels of the finished picture."""
        cos, sin = math.cos(self.angle) * self.radius, math.sin(self.angle) * self.radius
        return (
            cos * self.stretch,
            cos * self.shear - sin / self.stretch,
            sin * self.stretch,
            sin * self.shear + cos / self.stretch,
        )


def blank() -> Mask:
    """An empty mask."""
    return Image.new("L", (CANVAS, CANVAS), 0)


def place(points: np.ndarray, pose: Pose) -> list[tuple[float, float]]:
    """Points [P, 2] of a figure's own coordinates (x right, y down), as canvas coordinates."""
    a, b, c, d = pose.matrix()
    x, y = points[:, 0], points[:, 1]
    across = (a * x + b * y + pose.x) * SCALE
    down = (c * x + d * y + pose.y) * SCALE
    return list(zip(across.tolist(), down.tolist(), strict=True))


def polygons(figure: Sequence[tuple[np.ndarray, bool]], pose: Pose, mask: Mask | None = None) -> Mask:
    """A mask of polygons laid over each other: (corners [P, 2], True to fill or False to cut out)."""
    mask = blank() if mask is None else mask
    pen = ImageDraw.Draw(mask)
    for corners, solid in figure:
        pen.polygon(place(corners, pose), fill=255 if solid else 0)
    return mask


def strokes(lines: Sequence[np.ndarray], pose: Pose, *, width: float, mask: Mask | None = None) -> Mask:
    """A mask of polylines [P, 2], `width` pixels of the finished picture wide."""
    mask = blank() if mask is None else mask
    pen = ImageDraw.Draw(mask)
    for line in lines:
        pen.line(place(line, pose), fill=255, width=max(1, round(width * SCALE)), joint="curve")
    return mask


@lru_cache(maxsize=512)
def _glyph_tile(text: str, weight: int) -> Image.Image:
    half = _GLYPH_TILE / 2
    capital = ImageFont.load_default(100).getbbox("H")
    size = 100 * (2 * half / _GLYPH_EXTENT) / (capital[3] - capital[1])  # a capital is two units high …
    if len(text) > 1:
        left, _, right, _ = ImageFont.load_default(size).getbbox(text)
        size *= min(1.0, (2 * half / _GLYPH_EXTENT) / (right - left))  # … and a word two units wide at most
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    tile = Image.new("L", (_GLYPH_TILE, _GLYPH_TILE), 0)
    ImageDraw.Draw(tile).text(
        (half - (left + right) / 2, half - (top + bottom) / 2), text, fill=255, font=font, stroke_width=weight
    )
    return tile


def glyph(text: str, pose: Pose, *, weight: int = 0) -> Mask:
    """A mask of a letter or a short word in Pillow's own font; `weight` in 0…8 makes it bolder.

    A single capital is two units high; a longer word is at most two units wide. Its ink is centred.
    """
    a, b, c, d = pose.matrix()
    scale = _GLYPH_TILE / (2 * _GLYPH_EXTENT) / SCALE / (a * d - b * c)
    ia, ib, ic, id_ = d * scale, -b * scale, -c * scale, a * scale
    x, y, half = pose.x * SCALE, pose.y * SCALE, _GLYPH_TILE / 2
    inverse = (ia, ib, half - ia * x - ib * y, ic, id_, half - ic * x - id_ * y)
    return _glyph_tile(text, weight).transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )


_BAND, _GROWN, _SHRUNK = (
    np.array([min(255, max(0, value(i))) for i in range(256)], np.uint8)
    for value in (
        lambda i: round(8.8 * i * (1 - i / 255)) if 20 < i < 235 else 0,
        lambda i: (i - 20) * 8,
        lambda i: (i - 205) * 8,
    )
)


def _soft(mask: Mask, by: float, levels: np.ndarray) -> Mask:
    """The mask, blurred, and its grey levels exchanged for those of the table (faster than `Image.point`)."""
    return Image.fromarray(levels[np.asarray(blurred(mask, by))])


def outline(mask: Mask, width: float) -> Mask:
    """The contour of a mask as a line about `width` finished pixels wide."""
    return _soft(mask, width / 2, _BAND)


def grown(mask: Mask, by: float) -> Mask:
    """The mask, `by` finished pixels thicker on every side."""
    return _soft(mask, by, _GROWN)


def shrunk(mask: Mask, by: float) -> Mask:
    """The mask, `by` finished pixels thinner on every side."""
    return _soft(mask, by, _SHRUNK)


def blurred(mask: Mask, by: float) -> Mask:
    """The mask, blurred over `by` finished pixels."""
    return mask.filter(ImageFilter.BoxBlur(by * SCALE))


def coverage(mask: Mask) -> Float[np.ndarray, "32 32"]:
    """The share of each finished pixel that the mask covers."""
    return np.asarray(mask.reduce(SCALE), np.float32) * np.float32(1 / 255)


def paint(picture: np.ndarray, cover: np.ndarray, color: np.ndarray | np.floating) -> None:
    """Lay `color`, [3], [32, 32, 3] or a grey, over `picture` [32, 32, 3] in place, weighed by `cover` [32, 32]."""
    picture += cover[..., None] * (color - picture)


def shifted(cover: np.ndarray, right: int, down: int) -> np.ndarray:
    """`cover` moved by whole pixels, empty where nothing moved in."""
    moved = np.zeros_like(cover)
    rows, columns = cover.shape
    moved[max(0, down) : rows + min(0, down), max(0, right) : columns + min(0, right)] = cover[
        max(0, -down) : rows + min(0, -down), max(0, -right) : columns + min(0, -right)
    ]
    return moved


def finish(picture: np.ndarray) -> np.ndarray:
    """The picture as uint8 [32, 32, 3], clipped to [0, 1] first."""
    return (np.clip(picture, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)

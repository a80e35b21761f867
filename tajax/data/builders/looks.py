"""The looks of the tasks: what each one's world is made of, and how a figure is drawn in it.

No scene for pre-training looks like any of these. A look takes a `Nuisance`, which says how hard it may make things.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tajax.data.builders.colors import any_color, contrast
from tajax.data.builders.concepts import LETTERS
from tajax.data.builders.drawing import (
    SIZE,
    Mask,
    Pose,
    blank,
    blurred,
    coverage,
    glyph,
    outline,
    paint,
    polygons,
    shifted,
    shrunk,
    strokes,
)
from tajax.data.builders.figures import regular
from tajax.data.builders.randomness import between, chance, pick
from tajax.data.builders.surfaces import X, Y, clouds, grain, ramp, softened, spotlight


class Nuisance(NamedTuple):
    """How much of everything that does not matter a task's pictures have."""

    radius: tuple[float, float]  # pixels, from … to
    drift: float  # pixels, how far from the middle the figure may stand
    turn: float  # radians, either way
    bend: float  # how much it is stretched and sheared, either way
    clutter: float  # how many distracting things on average
    fading: float  # share of the contrast that may be lost, in [0, 1]
    grain: float  # standard deviation of the pixel noise at most, of 1


def standing(rng: np.random.Generator, nuisance: Nuisance, *, angle: float = 0.0) -> Pose:
    """A pose within the limits of the nuisance, around `angle`."""
    return Pose(
        SIZE / 2 + between(rng, -nuisance.drift, nuisance.drift),
        SIZE / 2 + between(rng, -nuisance.drift, nuisance.drift),
        between(rng, *nuisance.radius),
        angle + between(rng, -nuisance.turn, nuisance.turn),
        stretch=math.exp(between(rng, -nuisance.bend, nuisance.bend)),
        shear=between(rng, -nuisance.bend, nuisance.bend),
    )


def _some(rng: np.random.Generator, mean: float) -> range:
    """A number of things between 0 and twice the mean, to loop over."""
    return range(int(rng.random() * (2 * mean + 1)))


def _filled(color: tuple[float, float, float], rng: np.random.Generator, spread: float) -> np.ndarray:
    """A picture of one colour, each channel up to `spread` off."""
    base = np.array(color, np.float32) + (rng.random(3, np.float32) - 0.5) * np.float32(2 * spread)
    return np.broadcast_to(base, (SIZE, SIZE, 3)).copy()


def _squiggle(rng: np.random.Generator, length: float) -> np.ndarray:
    """Four points [4, 2] of a bent line about `length` half pictures long, anywhere in the picture."""
    start, heading = rng.random(2) * 2 - 1, between(rng, 0, 2 * math.pi)
    headings = heading + np.cumsum((rng.random(3) - 0.5) * 1.6)
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / 3)
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


_WHOLE = Pose(SIZE / 2, SIZE / 2, SIZE / 2)


def chalk_on_blackboard(rng: np.random.Generator, mask: Mask, again: Mask, nuisance: Nuisance) -> np.ndarray:
    """A hand-drawn contour in crumbling chalk, gone over twice (`mask`, `again`), on a badly wiped board."""
    picture = _filled(pick(rng, ((0.13, 0.22, 0.18), (0.14, 0.16, 0.18), (0.1, 0.2, 0.24))), rng, 0.03)
    picture += (clouds(rng, cells=4) * clouds(rng, cells=2))[..., None] * np.float32(between(rng, 0.05, 0.3))
    for _ in _some(rng, nuisance.clutter):
        if chance(rng, 0.5):
            scrawl = strokes([_squiggle(rng, 1.2)], _WHOLE, width=between(rng, 0.8, 1.4))
        else:
            where = Pose(between(rng, 2, 30), between(rng, 2, 30), between(rng, 1.5, 3), between(rng, -0.4, 0.4))
            scrawl = glyph(pick(rng, LETTERS), where)
        paint(picture, coverage(scrawl) * np.float32(between(rng, 0.15, 0.4)), np.float32(0.85))
    chalk = np.array(
        pick(
            rng,
            ((0.95, 0.95, 0.92), (0.96, 0.9, 0.6), (0.95, 0.7, 0.75), (0.65, 0.85, 0.95), (0.7, 0.93, 0.7)),
        ),
        np.float32,
    )
    width = between(rng, 1.5, 2.4)
    crumbs = np.clip(rng.random((SIZE, SIZE), np.float32) * 1.5 + 0.35, 0, 1)
    line = np.maximum(coverage(outline(mask, width)), 0.7 * coverage(outline(again, width)))
    if chance(rng, 0.35):  # shaded with the side of the chalk
        stripes = ((X * between(rng, -1, 1) + Y) * between(rng, 5, 7)) % 1 < 0.5
        line = np.maximum(line, coverage(shrunk(mask, 0.6)) * stripes * np.float32(0.6))
    strength = 1 - between(rng, 0, nuisance.fading)
    paint(picture, line * crumbs * np.float32(strength), chalk)
    return picture + grain(rng, between(rng, 0, nuisance.grain), colored=False)


def glossy_before_lights(rng: np.random.Generator, mask: Mask, color: np.ndarray, nuisance: Nuisance) -> np.ndarray:
    """A shiny thing in focus, before out-of-focus lights of other colours, under a tinted lamp."""
    picture = _filled((0.22, 0.2, 0.26), rng, 0.14)
    picture *= 0.6 + 0.8 * ramp(rng)[..., None]
    for _ in _some(rng, nuisance.clutter):
        x, y, reach = between(rng, -1.1, 1.1), between(rng, -1.1, 1.1), between(rng, 0.2, 0.45)
        disc = np.minimum(1, spotlight(x, y, reach) * 3) * np.float32(between(rng, 0.3, 0.75))
        paint(picture, disc, any_color(rng))
    cover = coverage(mask)
    height = coverage(blurred(mask, 2.2))
    relief = shifted(height, 1, 1) - shifted(height, -1, -1)  # brighter where the surface faces the upper left
    shade = np.clip(0.8 - 0.55 * relief, 0.3, 1.3)[..., None]
    tint = 1 + (rng.random(3, np.float32) - 0.5) * np.float32(2 * nuisance.fading)
    light = np.float32(between(rng, 0.75, 1.05))
    paint(picture, shifted(height, 1, 2) * np.float32(0.4), np.float32(0.02))
    paint(picture, cover, (color * shade + 0.02) * tint * light)
    rows, columns = np.nonzero(cover > 0.9)
    if len(rows):  # a highlight on the upper left of what shows
        best = int(np.argmin(rows + columns + 4 * rng.random()))
        gleam = Pose(columns[best] + 2.0, rows[best] + 2.0, between(rng, 0.8, 1.5))
        spot = coverage(blurred(polygons(((regular(10), True),), gleam), 0.5))
        paint(picture, spot * cover * np.float32(0.75), np.float32(1))
    return picture + grain(rng, between(rng, 0, nuisance.grain))


def blueprint(rng: np.random.Generator, mask: Mask, nuisance: Nuisance) -> np.ndarray:
    """A technical drawing: pale contours on squared blue paper, among construction lines."""
    picture = _filled((0.1, 0.27, 0.58), rng, 0.05)
    picture *= 0.85 + 0.3 * clouds(rng, cells=3)[..., None]
    pitch, at_x, at_y = pick(rng, (4, 5, 6)), int(rng.random() * 6), int(rng.random() * 6)
    picture[at_y % pitch :: pitch] += np.float32(0.09)
    picture[:, at_x % pitch :: pitch] += np.float32(0.09)
    ink = np.array((0.86, 0.94, 1.0), np.float32)
    for _ in _some(rng, nuisance.clutter):
        kind, x, y = rng.random(), between(rng, -1, 1), between(rng, -1, 1)
        if kind < 0.4:  # a dimension line, straight across
            ends = ((-1.2, y), (1.2, y)) if chance(rng, 0.5) else ((x, -1.2), (x, 1.2))
            mark = strokes([np.array(ends)], _WHOLE, width=0.6)
        elif kind < 0.7:  # a centre mark
            mark = strokes([np.array([(-1, 0), (1, 0)]), np.array([(0, -1), (0, 1)])],
                           Pose(16 + 15 * x, 16 + 15 * y, between(rng, 1.5, 3)), width=0.7)  # fmt: skip
        else:  # an arc of a pair of compasses
            mark = outline(polygons(((regular(30), True),), Pose(16 + 20 * x, 16 + 20 * y, between(rng, 6, 16))), 0.7)
        paint(picture, coverage(mark) * np.float32(between(rng, 0.25, 0.6)), ink)
    cover = coverage(outline(mask, between(rng, 0.9, 1.4)))
    if chance(rng, 0.5):  # hatching inside
        step = pick(rng, (3, 4))
        rows, columns = np.indices((SIZE, SIZE))
        cover = np.maximum(cover, coverage(mask) * ((rows + columns) % step == 0) * np.float32(0.55))
    paint(picture, cover * np.float32(1 - between(rng, 0, nuisance.fading)), ink)
    return picture + grain(rng, between(rng, 0, nuisance.grain), colored=False)


def letterpress(rng: np.random.Generator, mask: Mask, behind: Mask, nuisance: Nuisance) -> np.ndarray:
    """Worn type on stained paper; `behind` is what shines through from the other side."""
    picture = _filled((0.88, 0.82, 0.68), rng, 0.05)
    picture -= (clouds(rng, cells=5) * clouds(rng, cells=2))[..., None] * np.array((0.15, 0.22, 0.3), np.float32)
    ink = np.array(pick(rng, ((0.1, 0.09, 0.1), (0.25, 0.13, 0.08), (0.1, 0.13, 0.3), (0.42, 0.08, 0.1))), np.float32)
    for _ in _some(rng, nuisance.clutter):
        if chance(rng, 0.6):  # a line of small print
            row, height = int(rng.random() * SIZE), pick(rng, (1, 2))
            words = np.repeat(rng.random(16) < 0.7, 2) * (rng.random(SIZE) < 0.85)
            picture[row : row + height] -= (words * np.float32(between(rng, 0.15, 0.4)))[None, :, None]
        else:  # a ring of a coffee cup
            cup = Pose(between(rng, 0, SIZE), between(rng, 0, SIZE), between(rng, 6, 13))
            stain = coverage(outline(polygons(((regular(30), True),), cup), 1.5))
            paint(picture, stain * np.float32(0.35), np.array((0.45, 0.28, 0.12), np.float32))
    ghost = coverage(blurred(behind, 0.6)) * np.float32(between(rng, 0, 0.35))
    paint(picture, ghost, ink + 0.25)
    wear = np.clip(clouds(rng, cells=12) * 2.4 + 1.1 - 2.2 * nuisance.fading * rng.random(), 0, 1)
    speckle = (rng.random((SIZE, SIZE), np.float32) > 0.06).astype(np.float32)
    paint(picture, coverage(blurred(mask, 0.3)) * wear * speckle, ink)
    return picture + grain(rng, between(rng, 0, nuisance.grain), colored=False)


_HEAT = np.array(
    [(0.02, 0.01, 0.1), (0.25, 0.03, 0.42), (0.62, 0.1, 0.4), (0.93, 0.35, 0.16), (0.99, 0.72, 0.15),
     (1.0, 0.98, 0.75)],
    np.float32,
)  # fmt: skip


def thermal_camera(rng: np.random.Generator, field: np.ndarray, nuisance: Nuisance) -> np.ndarray:
    """Warmth in false colours: black and violet where `field` [32, 32] is cold, through orange to white."""
    if chance(rng, 0.5):
        field = 1 - field
    swing = np.float32(0.75 * (1 - between(rng, 0, nuisance.fading)))
    warmth = np.float32(0.5) + (field - np.float32(0.5)) * swing
    for _ in _some(rng, nuisance.clutter):  # something hot or cold behind it
        spot = spotlight(between(rng, -1, 1), between(rng, -1, 1), between(rng, 0.4, 1.2))
        warmth = warmth + spot * np.float32(between(rng, -0.35, 0.35))
    warmth = warmth + (ramp(rng) - 0.5) * np.float32(between(rng, 0, 0.3))
    warmth = softened(warmth[..., None])
    warmth += grain(rng, between(rng, 0, nuisance.grain), colored=False)
    warmth[:: 2 + int(rng.random() * 3)] += np.float32(between(rng, 0, 0.05))  # scan lines
    place = np.clip(warmth[..., 0], 0, 1) * (len(_HEAT) - 1)
    left = np.minimum(place.astype(int), len(_HEAT) - 2)
    mix = (place - left)[..., None]
    return _HEAT[left] * (1 - mix) + _HEAT[left + 1] * mix


def microscope(rng: np.random.Generator, bodies: Mask, nuclei: Mask, nuisance: Nuisance) -> np.ndarray:
    """Stained cells, among specks and fibres in a round field of view."""
    picture = _filled(pick(rng, ((0.9, 0.84, 0.88), (0.86, 0.9, 0.84), (0.92, 0.89, 0.78))), rng, 0.04)
    picture -= clouds(rng, cells=6)[..., None] * np.float32(0.1)
    stain = np.array(
        pick(rng, ((0.62, 0.25, 0.55), (0.2, 0.5, 0.42), (0.3, 0.33, 0.68), (0.75, 0.32, 0.3))), np.float32
    )
    strength = 1 - between(rng, 0, nuisance.fading)
    for _ in _some(rng, nuisance.clutter):
        if chance(rng, 0.6):
            speck = Pose(between(rng, 2, 30), between(rng, 2, 30), between(rng, 0.4, 0.8))
            paint(picture, coverage(polygons(((regular(8), True),), speck)) * np.float32(0.7), stain * 0.4)
        else:
            fibre = strokes([_squiggle(rng, between(rng, 0.4, 1))], _WHOLE, width=0.6)
            paint(picture, coverage(fibre) * np.float32(between(rng, 0.2, 0.5)), stain * 0.7)
    paint(picture, coverage(bodies) * np.float32(0.5 * strength), stain + 0.15)
    paint(picture, coverage(outline(bodies, 1.0)) * np.float32(0.7 * strength), stain * 0.7)
    paint(picture, coverage(nuclei) * np.float32(0.85 * strength), stain * 0.45)
    if chance(rng, 0.4):
        picture = softened(picture)
    edge = np.clip((np.hypot(X - between(rng, -0.1, 0.1), Y - between(rng, -0.1, 0.1)) - 1.12) * 9, 0, 1)
    paint(picture, edge.astype(np.float32), np.float32(0.06))
    return picture + grain(rng, between(rng, 0, nuisance.grain), colored=False)


def roadside(rng: np.random.Generator, pose: Pose, nuisance: Nuisance) -> np.ndarray:
    """Sky above leaves or a wall, and the pole of a sign that stands at `pose`."""
    sky = np.array(pick(rng, ((0.5, 0.7, 0.92), (0.75, 0.78, 0.82), (0.93, 0.72, 0.55))), np.float32)
    picture = sky + (Y[..., None] * np.float32(0.1)) + np.zeros((SIZE, SIZE, 1), np.float32)
    if chance(rng, 0.7):
        leaf = np.array(pick(rng, ((0.16, 0.3, 0.1), (0.3, 0.36, 0.12), (0.4, 0.25, 0.1))), np.float32)
        leaves = leaf * (0.4 + 1.3 * clouds(rng, cells=14)[..., None])
        line = between(rng, -0.9, 0.6) + (clouds(rng, cells=7) - 0.5) * 0.9
        paint(picture, np.clip((Y - line) * 6, 0, 1).astype(np.float32), leaves)
    else:
        wall = np.array((0.55, 0.5, 0.46), np.float32) * np.float32(between(rng, 0.6, 1.2))
        seen = np.clip((X * pick(rng, (-1, 1)) - between(rng, -0.4, 0.6)) * 12, 0, 1).astype(np.float32)
        paint(picture, seen, wall * (0.9 + 0.2 * clouds(rng, cells=16)[..., None]))
    tilt = pose.angle * 0.5
    foot = np.array([(0.0, 0.0), (-math.sin(tilt) * 3, math.cos(tilt) * 3)])
    pole = strokes([foot], pose._replace(angle=0.0, stretch=1.0, shear=0.0), width=between(rng, 1.2, 2.0))
    paint(picture, coverage(pole), np.float32(between(rng, 0.35, 0.65)))
    return picture


def weathered(rng: np.random.Generator, picture: np.ndarray, nuisance: Nuisance) -> np.ndarray:
    """A street picture under leaves, their shadows, and the light of some hour."""
    shadow = np.clip(clouds(rng, cells=5) * 2.4 - 1.2, 0, 1)[..., None] * np.float32(between(rng, 0, 0.6))
    picture = picture * (1 - shadow)
    leaf = np.array(pick(rng, ((0.14, 0.3, 0.08), (0.35, 0.3, 0.08))), np.float32)
    for _ in _some(rng, nuisance.clutter):
        blade = Pose(between(rng, 2, 30), between(rng, 2, 30), between(rng, 1.5, 3), between(rng, 0, 3.14), stretch=1.5)
        paint(
            picture,
            coverage(polygons(((regular(8), True),), blade)),
            leaf * np.float32(between(rng, 0.5, 1.3)),
        )
    hour = np.float32(between(rng, 1 - nuisance.fading, 1.05)) * (
        1 + (rng.random(3, np.float32) - 0.5) * np.float32(0.2)
    )
    picture = picture * hour
    if chance(rng, 0.5):
        picture = softened(picture)
    return picture + grain(rng, between(rng, 0, nuisance.grain))


def neon_at_night(rng: np.random.Generator, tube: Mask, nuisance: Nuisance) -> np.ndarray:
    """A glowing tube on a brick wall at night, among other tubes."""
    picture = _filled((0.07, 0.05, 0.09), rng, 0.03)
    row, column = np.indices((SIZE, SIZE))
    mortar = (row % 4 == 0) | ((column + 4 * ((row // 4) % 2)) % 8 == 0)
    picture += mortar[..., None] * np.float32(between(rng, 0.02, 0.08))
    glow = np.zeros((SIZE, SIZE, 3), np.float32)
    others = blank()
    for _ in _some(rng, nuisance.clutter):
        strokes([_squiggle(rng, between(rng, 0.5, 1.3))], _WHOLE, width=0.8, mask=others)
    dim = between(rng, 0.25, 0.6)
    power = 1 - between(rng, 0, nuisance.fading)
    for mask, strength in ((others, dim), (tube, power)):
        gas = np.array(
            pick(rng, ((1, 0.15, 0.45), (0.1, 0.85, 1), (0.3, 1, 0.35), (1, 0.55, 0.1), (0.7, 0.3, 1))),
            np.float32,
        )
        halo = coverage(blurred(mask, 1.0)) * 0.9 + coverage(blurred(blurred(mask, 2.5), 1.5)) * 1.1
        core = coverage(mask)
        glow += (halo[..., None] * gas + core[..., None] * (0.45 + 0.55 * gas)) * np.float32(strength)
    picture = picture + glow * (1 + picture)
    return picture + grain(rng, between(rng, 0, nuisance.grain))


_CLOTH = ((0.42, 0.47, 0.5), (0.63, 0.6, 0.56), (0.24, 0.25, 0.31), (0.8, 0.79, 0.77))


def felt_on_cloth(rng: np.random.Generator, mask: Mask, color: np.ndarray, nuisance: Nuisance) -> np.ndarray:
    """A piece of felt with its fluff, its shadow and perhaps a seam, on woven cloth among threads and pins."""
    cloth = np.array(pick(rng, _CLOTH), np.float32)
    for _ in range(6):
        if contrast(cloth, color) > 0.25:
            break
        cloth = np.array(pick(rng, _CLOTH), np.float32)
    picture = _filled(tuple(cloth), rng, 0.04)
    row, column = np.indices((SIZE, SIZE))
    over = (row // 2 + column // 2) % 2 == 0  # warp over weft
    picture += (np.where(over, row % 2, column % 2)[..., None] - np.float32(0.5)) * np.float32(between(rng, 0.04, 0.1))
    picture *= 0.85 + 0.3 * clouds(rng, cells=3)[..., None]
    for _ in _some(rng, nuisance.clutter):
        if chance(rng, 0.6):
            thread = strokes([_squiggle(rng, between(rng, 0.4, 0.9))], _WHOLE, width=0.7)
            paint(picture, coverage(thread) * np.float32(between(rng, 0.3, 0.6)), any_color(rng))
        else:
            head = Pose(between(rng, 1, 31), between(rng, 1, 31), between(rng, 0.7, 1.2))
            paint(picture, coverage(polygons(((regular(10), True),), head)), any_color(rng))
    soft = coverage(blurred(mask, 1.2))
    paint(picture, shifted(soft, 1, 1) * np.float32(between(rng, 0.3, 0.6)), picture * np.float32(0.35))
    fluff = (rng.random((SIZE, SIZE), np.float32) - 0.5) * 4 * soft * (1 - soft)  # at the edge alone
    cover = np.clip(coverage(mask) + np.float32(0.4) * fluff, 0, 1)
    fibres = 0.92 + 0.16 * clouds(rng, cells=14)[..., None]
    paint(picture, cover * np.float32(1 - between(rng, 0, nuisance.fading)), color * fibres)
    if chance(rng, 0.4):  # sewn on
        stitches = coverage(outline(shrunk(mask, 1.2), 0.7)) * ((row + column) % 3 < 2)
        paint(picture, stitches * np.float32(0.5), color * np.float32(0.5) + np.float32(pick(rng, (0.0, 0.45))))
    return picture + grain(rng, between(rng, 0, nuisance.grain))

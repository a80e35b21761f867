"""Captioned scenes of the synthetic world, for contrastive pre-training.

Every concept of the eight tasks occurs, under its class name, and mixed with others ("three green squares"),
drawn in many plain styles. None of these styles is the look of a task: what is learnt here has to carry over a
change of style.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tajax.data.builders.colors import any_color, contrast, contrasting_word, sample_color
from tajax.data.builders.concepts import (
    COLORS,
    COUNTS,
    DIGITS,
    DIRECTIONS,
    LETTERS,
    SHAPES,
    SIGNS,
    TEXTURES,
    plural,
    with_article,
)
from tajax.data.builders.drawing import (
    SIZE,
    Mask,
    Pose,
    blank,
    coverage,
    finish,
    glyph,
    grown,
    outline,
    paint,
    shifted,
    strokes,
)
from tajax.data.builders.figures import chevron_arrow, direction_angle, line_arrow, shape, solid_arrow
from tajax.data.builders.patterns import pattern
from tajax.data.builders.randomness import between, chance, pick, stream
from tajax.data.builders.signs import sign
from tajax.data.builders.surfaces import clouds, grain, ramp, softened, spotlight

# How often each kind of scene is drawn, in parts of the sum.
FAMILIES = {
    "shape": 14, "color": 9, "digit": 16, "letter": 22, "texture": 11, "count": 10, "sign": 9, "arrow": 9,
    "pair": 6,
}  # fmt: skip

Scene = tuple[np.ndarray, str]


def _ground(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """A background [32, 32, 3] around one colour: flat, shaded, cloudy, lit, or faintly patterned."""
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = color
    kind = rng.random()
    if kind < 0.35:
        return picture
    other = color + (any_color(rng) - color) * between(rng, 0.1, 0.4)
    if kind < 0.55:
        cover = ramp(rng)
    elif kind < 0.75:
        cover = clouds(rng, cells=pick(rng, (2, 3, 5, 8)))
    elif kind < 0.87:
        cover = spotlight(between(rng, -1, 1), between(rng, -1, 1), between(rng, 0.8, 2))
    else:
        cover = pattern(
            pick(rng, ("striped", "checkered", "gridded")),
            rng,
            periods=between(rng, 3, 7),
            angle=between(rng, 0, 3.14),
        ) * np.float32(between(rng, 0.15, 0.4))
    paint(picture, cover, other)
    return picture


def _litter(rng: np.random.Generator, picture: np.ndarray, ground: np.ndarray) -> None:
    """A few thin, faint lines that mean nothing."""
    lines = [rng.random((2, 2)) * 2.4 - 1.2 for _ in range(1 + int(rng.random() * 4))]
    mask = strokes(lines, Pose(16, 16, 16), width=between(rng, 0.5, 1.4))
    paint(
        picture,
        coverage(mask) * np.float32(between(rng, 0.15, 0.45)),
        ground + (any_color(rng) - ground) * 0.5,
    )


def _lay(rng: np.random.Generator, picture: np.ndarray, mask: Mask, color: np.ndarray, *, thin: bool = False) -> None:
    """Draw a mask in one of several manners: filled, shaded, cloudy, outlined, bordered, shadowed."""
    cover = coverage(mask)
    if chance(rng, 0.15):
        paint(
            picture,
            shifted(cover, pick(rng, (-2, -1, 1, 2)), pick(rng, (1, 2))) * np.float32(0.5),
            picture * 0.3,
        )
    manner = rng.random()
    if not thin and manner < 0.18:
        paint(picture, coverage(outline(mask, between(rng, 1.2, 2.4))), color)
        return
    if not thin and manner < 0.32:
        border = any_color(rng)
        if contrast(border, color) > 0.25:
            paint(picture, coverage(grown(mask, between(rng, 0.7, 1.3))), border)
    elif manner < 0.46:
        color = color * (1 - 0.35 * ramp(rng)[..., None])
    elif manner < 0.56:
        color = color + (clouds(rng, cells=6)[..., None] - 0.5) * 0.3
    paint(picture, cover, color)


def _develop(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """The last steps from picture to pixels: softness, contrast, light, grain."""
    if chance(rng, 0.12):
        picture = softened(picture)
    if chance(rng, 0.5):
        picture = 0.5 + (picture - 0.5) * np.float32(between(rng, 0.75, 1.1)) + np.float32(between(rng, -0.06, 0.06))
    if chance(rng, 0.65):
        picture = picture + grain(rng, between(rng, 0.01, 0.07), colored=chance(rng, 0.5))
    return finish(picture)


def _pose(rng: np.random.Generator, *, small: float, large: float, turn: float = math.pi) -> Pose:
    radius = between(rng, small, large)
    slack = max(0.0, SIZE / 2 - radius - 0.5)
    x, y = SIZE / 2 + between(rng, -slack, slack), SIZE / 2 + between(rng, -slack, slack)
    return Pose(
        x,
        y,
        radius,
        between(rng, -turn, turn),
        stretch=math.exp(between(rng, -0.1, 0.1)),
        shear=between(rng, -0.12, 0.12),
    )


def _stage(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str, np.ndarray]:
    """A background, its base colour, and a colour word with a sample of it that stands out from the base."""
    word = pick(rng, COLORS)
    color = sample_color(rng, word)
    base = any_color(rng)
    for _ in range(6):
        if contrast(base, color) > 0.32:
            break
        base = any_color(rng)
    else:
        base = contrasting_word(rng, color, but=(word,))[1]
    picture = _ground(rng, base)
    if chance(rng, 0.2):
        _litter(rng, picture, base)
    return picture, base, word, color


def _size_word(radius: float) -> str:
    return "small " if radius < 7 else "large " if radius > 11 else ""


def _shape_scene(rng: np.random.Generator) -> Scene:
    picture, _, word, color = _stage(rng)
    name = pick(rng, SHAPES)
    pose = _pose(rng, small=5.5, large=14)
    _lay(rng, picture, shape(name, pose), color)
    size = _size_word(pose.radius) if chance(rng, 0.4) else ""
    return picture, with_article(f"{size}{word + ' ' if chance(rng, 0.5) else ''}{name}")


def _color_scene(rng: np.random.Generator) -> Scene:
    picture, _, word, color = _stage(rng)
    pose = _pose(rng, small=6, large=14)
    name = pick(rng, SHAPES)
    _lay(rng, picture, shape(name, pose), color)
    return picture, with_article(f"{word} {'object' if chance(rng, 0.85) else name}")


def _glyph_scene(rng: np.random.Generator, character: str, caption: str) -> Scene:
    picture, _, word, color = _stage(rng)
    pose = _pose(rng, small=6.5, large=12, turn=0.3)
    pose = pose._replace(stretch=math.exp(between(rng, -0.2, 0.12)), shear=between(rng, -0.3, 0.3))
    _lay(rng, picture, glyph(character, pose, weight=pick(rng, (0, 1, 3, 5))), color)
    return picture, f"{caption} in {word}" if chance(rng, 0.2) else caption


def _digit_scene(rng: np.random.Generator) -> Scene:
    digit = int(rng.random() * len(DIGITS))
    return _glyph_scene(rng, str(digit), f"the digit {DIGITS[digit]}")


def _letter_scene(rng: np.random.Generator) -> Scene:
    letter = pick(rng, LETTERS)
    return _glyph_scene(rng, letter, f"the letter {letter}")


def _texture_scene(rng: np.random.Generator) -> Scene:
    word = pick(rng, COLORS)
    color = sample_color(rng, word)
    other, ground = contrasting_word(rng, color, least=0.3, but=(word,))
    name = pick(rng, TEXTURES)
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = ground
    cover = pattern(
        name,
        rng,
        periods=between(rng, 3, 6.5),
        angle=between(rng, -math.pi, math.pi),
        warp=between(rng, 0, 0.35),
    )
    paint(picture, cover, color)
    return picture, with_article(f"{f'{word} and {other} ' if chance(rng, 0.3) else ''}{name} texture")


def scattered(rng: np.random.Generator, count: int, *, small: float, large: float, gap: float) -> list[Pose]:
    """`count` poses that keep `gap` pixels from each other; they shrink until all of them fit."""
    while True:
        poses: list[Pose] = []
        for _ in range(12 * count):
            pose = _pose(rng, small=small, large=large)
            if all(math.hypot(pose.x - p.x, pose.y - p.y) > pose.radius + p.radius + gap for p in poses):
                poses.append(pose)
                if len(poses) == count:
                    return poses
        large = max(0.85 * large, small)
        small *= 0.95


def _count_scene(rng: np.random.Generator) -> Scene:
    picture, _, word, color = _stage(rng)
    count = int(rng.random() * len(COUNTS)) + 1
    same = chance(rng, 0.75)  # all of one shape
    names = [pick(rng, SHAPES)] * count if same else [pick(rng, SHAPES) for _ in range(count)]
    mask = blank()
    for name, pose in zip(names, scattered(rng, count, small=2.8, large=8 - 0.6 * count, gap=1.2), strict=True):
        mask.paste(255, mask=shape(name, pose))
    _lay(rng, picture, mask, color)
    noun = names[0] if same and chance(rng, 0.35) else "object"
    adjective = f"{word} " if chance(rng, 0.3) else ""
    return picture, f"{COUNTS[count - 1]} {adjective}{noun if count == 1 else plural(noun)}"


def _sign_scene(rng: np.random.Generator) -> Scene:
    picture = _ground(rng, any_color(rng))
    name = pick(rng, SIGNS)
    cover, color = sign(name, _pose(rng, small=8, large=13, turn=0.2), rng, fading=0.15)
    if chance(rng, 0.25):
        paint(picture, shifted(cover, pick(rng, (-1, 1)), 1) * np.float32(0.5), picture * 0.3)
    paint(picture, cover, color)
    return picture, with_article(f"{name} sign")


def _arrow_scene(rng: np.random.Generator) -> Scene:
    picture, _, word, color = _stage(rng)
    direction = pick(rng, DIRECTIONS)
    pose = _pose(rng, small=7, large=13)._replace(angle=direction_angle(direction) + between(rng, -0.16, 0.16))
    kind = rng.random()
    if kind < 0.6:
        mask = solid_arrow(
            pose, shaft=between(rng, 0.14, 0.32), head=between(rng, 0.55, 0.85), barb=between(rng, 0, 0.25)
        )
    elif kind < 0.85:
        mask = line_arrow(pose, width=between(rng, 1.6, 3), head=between(rng, 0.5, 0.8))
    else:
        mask = chevron_arrow(pose)
    _lay(rng, picture, mask, color, thin=kind >= 0.6)
    return picture, with_article(f"{word + ' ' if chance(rng, 0.3) else ''}arrow pointing {direction}")


def _pair_scene(rng: np.random.Generator) -> Scene:
    picture, base, word, color = _stage(rng)
    first, second = scattered(rng, 2, small=4.5, large=8, gap=1)
    if first.x > second.x:
        first, second = second, first
    names = pick(rng, SHAPES), pick(rng, SHAPES)
    other, other_color = contrasting_word(rng, base, but=(word,))
    _lay(rng, picture, shape(names[0], first), color)
    _lay(rng, picture, shape(names[1], second), other_color)
    return picture, f"{with_article(f'{word} {names[0]}')} and {with_article(f'{other} {names[1]}')}"


_DRAW: dict[str, Callable[[np.random.Generator], Scene]] = {
    "shape": _shape_scene, "color": _color_scene, "digit": _digit_scene, "letter": _letter_scene,
    "texture": _texture_scene, "count": _count_scene, "sign": _sign_scene, "arrow": _arrow_scene,
    "pair": _pair_scene,
}  # fmt: skip
_DECK = [_DRAW[family] for family, parts in FAMILIES.items() for _ in range(parts)]


def render_scene(index: int, seed: int) -> tuple[np.ndarray, str]:
    """Scene number `index` of the endless sequence `seed`: the picture and what it shows.

    A function of its two arguments alone, in any order and process.

    Args:
        index: 0, 1, …
        seed: the sequence; the builder's train split is sequence 0, its val split sequence 1.

    Returns:
        The picture, uint8 [32, 32, 3], and its caption, a noun phrase for templates such as "a photo of {}.".

    Example:
        >>> picture, caption = render_scene(3, seed=0)
        >>> picture.shape, picture.dtype
        ((32, 32, 3), dtype('uint8'))
    """
    rng = stream(f"scenes/{seed}", index)
    picture, caption = pick(rng, _DECK)(rng)
    return _develop(rng, picture), caption

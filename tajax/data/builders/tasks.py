"""The eight bundled tasks and the control task: what each is called, says, and draws, and how hard it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL.Image

from tajax.data.builders.colors import sample_color
from tajax.data.builders.concepts import (
    CLASS_NAMES,
    COLORS,
    DIRECTIONS,
    LETTERS,
    OBJECTS,
    SHAPES,
    SIGNS,
    TEXTURES,
)
from tajax.data.builders.drawing import SIZE, Pose, blank, finish, glyph, paint, polygons
from tajax.data.builders.figures import direction_angle, line_arrow, regular, shape
from tajax.data.builders.looks import (
    Nuisance,
    blueprint,
    chalk_on_blackboard,
    felt_on_cloth,
    glossy_before_lights,
    letterpress,
    microscope,
    neon_at_night,
    roadside,
    standing,
    thermal_camera,
    weathered,
)
from tajax.data.builders.patterns import pattern
from tajax.data.builders.randomness import between, chance, pick, stream
from tajax.data.builders.signs import sign

# How hard each task is. A change here changes that task's pictures and nothing else; raise its version in `SPECS` too,
# so that data prepared before are not taken for the new ones. In `textures`, radius is the number of periods.
NUISANCE = {
    "shapes": Nuisance(radius=(10, 13), drift=1.5, turn=0.5, bend=0.12, clutter=1.0, fading=0.2, grain=0.03),
    "colors": Nuisance(radius=(6.5, 11), drift=4.0, turn=math.pi, bend=0.15, clutter=6.0, fading=0.12, grain=0.06),
    "digits": Nuisance(radius=(10, 13), drift=1.5, turn=0.15, bend=0.1, clutter=1.5, fading=0.25, grain=0.03),
    "letters": Nuisance(radius=(10, 13), drift=1.5, turn=0.15, bend=0.1, clutter=1.0, fading=0.3, grain=0.03),
    "textures": Nuisance(radius=(2.8, 4.6), drift=0.0, turn=math.pi, bend=0.4, clutter=1.0, fading=0.5, grain=0.06),
    "counting": Nuisance(radius=(3.4, 4.4), drift=10.0, turn=math.pi, bend=0.12, clutter=1.5, fading=0.25, grain=0.03),
    "signs": Nuisance(radius=(7, 11), drift=3.0, turn=0.2, bend=0.15, clutter=2.0, fading=0.5, grain=0.06),
    "arrows": Nuisance(radius=(7.5, 11.5), drift=2.5, turn=0.2, bend=0.12, clutter=1.5, fading=0.4, grain=0.06),
    "objects": Nuisance(radius=(8, 12.5), drift=3.0, turn=0.5, bend=0.12, clutter=1.5, fading=0.1, grain=0.04),
}  # fmt: skip
_GAP = 1.0  # pixels between two cells to be counted
SPLIT_SIZES = {"train": 2_000, "val": 500, "test": 1_000}

Draw = Callable[[np.random.Generator, int, Nuisance], np.ndarray]


class TaskSpec(NamedTuple):
    """One bundled task."""

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]  # prompts with one {} for the class name
    nuisance: Nuisance
    draw: Draw  # (rng, label, nuisance) -> float32 [32, 32, 3], about in [0, 1]
    version: str  # of the pictures, major.minor.patch


def _draw_shape(rng: np.random.Generator, label: int, nuisance: Nuisance) -> np.ndarray:
    pose = standing(rng, nuisance)
    again = pose._replace(
        x=pose.x + between(rng, -0.7, 0.7),
        y=pose.y + between(rng, -0.7, 0.7),
        angle=pose.angle + between(rng, -0.08, 0.08),
    )
    return chalk_on_blackboard(rng, shape(SHAPES[label], pose), shape(SHAPES[label], again), nuisance)


def _draw_color(rng: np.random.Generator, label: int, nuisance: Nuisance) -> np.ndarray:
    thing = shape(
        pick(rng, ("circle", "circle", "heart", "star", "square", "pentagon", "ring")),
        standing(rng, nuisance),
    )
    return glossy_before_lights(rng, thing, sample_color(rng, COLORS[label]), nuisance)


def _draw_digit(rng: np.random.Generator, label: int, nuisance: Nuisance) -> np.ndarray:
    return blueprint(rng, glyph(str(label), standing(rng, nuisance), weight=pick(rng, (2, 4, 6))), nuisance)


def _draw_letter(rng: np.random.Generator, label: int, nuisance: Nuisance) -> np.ndarray:
    type_ = glyph(LETTERS[label], standing(rng, nuisance), weight=pick(rng, (0, 2, 4)))
    mirrored = standing(rng, nuisance)
    mirrored = mirrored._replace(x=mirrored.x + between(rng, -8, 8), radius=mirrored.radius * 0.8)
    behind = glyph(pick(rng, LETTERS), mirrored)
    return letterpress(rng, type_, behind.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), nuisance)


def _draw_texture(rng: np.random.Generator, label: int, nuisance: Nuisance) -> np.ndarray:
    field = pattern(
        TEXTURES[label],
        rng,
        periods=between(rng, *nuisance.radius),
        angle=between(rng, -nuisance.turn, nuisance.turn),
        warp=between(rng, 0, nuisance.bend),
    )
    return thermal_camera(rng, field, nuisance)


def _apart(rng: np.random.Generator, count: int, nuisance: Nuisance) -> list[Pose]:
    """`count` poses inside the field of view that do not touch; after many misses, all smaller and anew."""
    middle, shrink = SIZE / 2, 1.0
    while True:
        poses: list[Pose] = []
        for _ in range(10 * count):
            x, y = (middle + between(rng, -nuisance.drift, nuisance.drift) for _ in "xy")
            radius = between(rng, *nuisance.radius) * shrink
            if math.hypot(x - middle, y - middle) < middle - 0.5 - radius and all(
                math.hypot(x - p.x, y - p.y) > radius + p.radius + _GAP for p in poses
            ):
                poses.append(standing(rng, nuisance)._replace(x=x, y=y, radius=radius))
                if len(poses) == count:
                    return poses
        shrink *= 0.97


def _draw_count(rng: np.random.Generator, label: int, nuisance: Nuisance) -> np.ndarray:
    bodies, nuclei = blank(), blank()
    for pose in _apart(rng, label + 1, nuisance):
        uneven = regular(14) * (0.85 + 0.3 * rng.random((14, 1)))
        polygons(((uneven, True),), pose, bodies)
        nucleus = pose._replace(
            x=pose.x + pose.radius * between(rng, -0.25, 0.25),
            y=pose.y + pose.radius * between(rng, -0.25, 0.25),
            radius=pose.radius * between(rng, 0.3, 0.42),
        )
        polygons(((regular(10), True),), nucleus, nuclei)
    return microscope(rng, bodies, nuclei, nuisance)


def _draw_sign(rng: np.random.Generator, label: int, nuisance: Nuisance) -> np.ndarray:
    pose = standing(rng, nuisance)
    picture = roadside(rng, pose, nuisance)
    cover, color = sign(SIGNS[label], pose, rng, fading=0.12)
    paint(picture, cover, color)
    return weathered(rng, picture, nuisance)


def _draw_arrow(rng: np.random.Generator, label: int, nuisance: Nuisance) -> np.ndarray:
    pose = standing(rng, nuisance, angle=direction_angle(DIRECTIONS[label]))
    tube = line_arrow(pose, width=between(rng, 0.9, 1.5), head=between(rng, 0.5, 0.8), tail=chance(rng, 0.3))
    return neon_at_night(rng, tube, nuisance)


def _draw_object(rng: np.random.Generator, label: int, nuisance: Nuisance) -> np.ndarray:
    color, figure = divmod(label, len(SHAPES))
    piece = shape(SHAPES[figure], standing(rng, nuisance))
    return felt_on_cloth(rng, piece, sample_color(rng, COLORS[color]), nuisance)


def _spec(name: str, draw: Draw, templates: tuple[str, ...], *, version: str = "1.0.0") -> TaskSpec:
    return TaskSpec(name, CLASS_NAMES[name], templates, NUISANCE[name], draw, version)


SPECS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        _spec("shapes", _draw_shape, ("a drawing of {}.", "a picture of {}.", "an image of {}."), version="1.0.2"),
        _spec("colors", _draw_color, ("a photo of {}.", "a picture of {}.", "there is {} in the scene.")),
        _spec("digits", _draw_digit, ("a drawing of {}.", "a picture of {}.", "an image of {}."), version="1.0.1"),
        _spec("letters", _draw_letter, ("a photo of {}.", "a picture of {}.", "an image of {}."), version="1.0.1"),
        _spec("textures", _draw_texture, ("a photo of {}.", "an image of {}.", "a blurry photo of {}.")),
        _spec(
            "counting", _draw_count, ("a photo of {}.", "an image of {}.", "there is {} in the scene."), version="1.0.1"
        ),
        _spec("signs", _draw_sign, ("a photo of {}.", "a small photo of {}.", "there is {} in the scene.")),
        _spec("arrows", _draw_arrow, ("a photo of {}.", "a picture of {}.", "an image of {}.")),
    )
}
"""The eight tasks."""

CONTROL = TaskSpec(
    "objects",
    OBJECTS,
    ("a photo of {}.", "a picture of {}.", "there is {} in the scene."),
    NUISANCE["objects"],
    _draw_object,
    "1.0.0",
)
"""What an edited model should still know: a hundred classes, all of whose words are in captions, in another look."""

ALL: dict[str, TaskSpec] = SPECS | {CONTROL.name: CONTROL}
"""Everything that is drawn here, by name."""


def render_example(task: str, split: str, index: int) -> tuple[np.ndarray, int]:
    """Example number `index` of a split of a task; a function of its three arguments alone.

    Args:
        task: a key of `ALL`.
        split: `train`, `val` or `test`: each has a random stream of its own.
        index: 0, 1, …; labels go round, so that classes are as equally frequent as they can be.

    Returns:
        The picture, uint8 [32, 32, 3], and its label.
    """
    spec = ALL[task]
    rng = stream(f"{task}/{split}", index)
    label = index % len(spec.class_names)
    return finish(spec.draw(rng, label, spec.nuisance)), label

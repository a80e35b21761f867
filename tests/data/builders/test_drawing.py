"""Masks cover what geometry says they cover, and words mean what they say."""

import math

import numpy as np
import pytest

from tajax.data.builders import concepts
from tajax.data.builders.colors import contrast, contrasting_word, sample_color
from tajax.data.builders.drawing import Pose, coverage, glyph, outline, paint, shifted
from tajax.data.builders.figures import chevron_arrow, direction_angle, line_arrow, shape, solid_arrow
from tajax.data.builders.patterns import pattern
from tajax.data.builders.randomness import stream
from tajax.data.builders.surfaces import X, Y

DIAGONAL = math.sqrt(0.5)
POINTS_TO = {  # right, down
    "up": (0, -1), "up right": (DIAGONAL, -DIAGONAL), "right": (1, 0), "down right": (DIAGONAL, DIAGONAL),
    "down": (0, 1), "down left": (-DIAGONAL, DIAGONAL), "left": (-1, 0), "up left": (-DIAGONAL, -DIAGONAL),
}  # fmt: skip


@pytest.mark.parametrize("stretch", [0.8, 1.0, 1.3])
def test_area_of_figures_is_that_of_geometry(stretch):
    radius = 9.0
    areas = {
        name: coverage(shape(name, Pose(16, 16, radius, 0.7, stretch))).sum() for name in ("circle", "square", "ring")
    }
    # Stretching keeps areas; Pillow draws the outline of a polygon too, half a fine pixel more on every side.
    assert areas["circle"] == pytest.approx(math.pi * radius**2, rel=0.05)
    assert areas["square"] == pytest.approx(2 * (1.2 * radius) ** 2, rel=0.05)
    assert areas["ring"] == pytest.approx(math.pi * radius**2 * (1 - 0.56**2), rel=0.06)


def test_a_glyph_is_centred_and_two_units_high():
    ink = coverage(glyph("H", Pose(15, 18, 8)))
    rows, columns = np.nonzero(ink > 0.5)
    assert rows.max() - rows.min() + 1 == pytest.approx(16, abs=1)
    assert (rows.max() + rows.min() + 1) / 2 == pytest.approx(18, abs=0.6)
    assert (columns.max() + columns.min() + 1) / 2 == pytest.approx(15, abs=0.6)


def test_an_outline_is_hollow():
    line = coverage(outline(shape("circle", Pose(16, 16, 10)), 1.5))
    distance = 16 * np.hypot(X, Y)
    assert line[distance < 7.5].max() == 0 and line[distance > 12.5].max() == 0
    assert line[np.abs(distance - 10) < 0.5].min() > 0.5


@pytest.mark.parametrize("direction", concepts.DIRECTIONS)
@pytest.mark.parametrize("draw", [solid_arrow, chevron_arrow, lambda pose: line_arrow(pose, width=2)])
def test_arrows_point_where_their_name_says(direction, draw):
    ink = coverage(draw(Pose(16, 16, 11, direction_angle(direction))))
    right, down = POINTS_TO[direction]
    along, across = X * right + Y * down, Y * right - X * down
    # The head is at the front: there the ink spreads wider across than at the back. It is symmetric about its axis.
    spread = [np.average(across**2, weights=ink * half) for half in (along > 0.2, along < -0.2)]
    if draw is chevron_arrow:  # nothing but a head: the front is a point
        spread.reverse()
    assert spread[0] > 1.5 * spread[1]
    assert np.average(across, weights=ink) == pytest.approx(0, abs=0.03)


def test_shifting_is_rolling_without_wrapping():
    cover = stream("test", 0).random((32, 32)).astype(np.float32)
    expected = np.roll(cover, (2, -3), axis=(0, 1))
    expected[:2], expected[:, -3:] = 0, 0
    np.testing.assert_array_equal(shifted(cover, -3, 2), expected)


def test_painting_mixes_in_proportion():
    picture = np.zeros((32, 32, 3), np.float32)
    paint(picture, np.full((32, 32), 0.25, np.float32), np.array([1.0, 0.5, 0.0], np.float32))
    np.testing.assert_allclose(picture[5, 7], [0.25, 0.125, 0.0])


def test_colour_words_do_not_overlap():
    rng = stream("test", 1)
    samples = {word: np.stack([sample_color(rng, word) for _ in range(100)]) for word in concepts.COLORS}
    centres = np.stack([sample.mean(0) for sample in samples.values()])
    for label, sample in enumerate(samples.values()):
        nearest = np.linalg.norm(sample[:, None] - centres, axis=-1).argmin(1)
        assert np.mean(nearest == label) >= 0.95


def test_a_contrasting_colour_contrasts():
    rng = stream("test", 2)
    for word in concepts.COLORS:
        color = sample_color(rng, word)
        other, sample = contrasting_word(rng, color, but=(word,))
        assert other != word and contrast(color, sample) > 0.2


@pytest.mark.parametrize("name", concepts.TEXTURES)
def test_textures_use_the_whole_range(name):
    field = pattern(name, stream("test", 3), periods=4, angle=0.5, warp=0.2)
    assert field.shape == (32, 32) and field.dtype == np.float32
    assert 0 <= field.min() < 0.2 and 0.8 < field.max() < 1.1
    assert 0.1 < field.mean() < 0.92


def test_class_names_are_distinct_and_fit_templates():
    for task, names in concepts.CLASS_NAMES.items():
        assert len(set(names)) == len(names) >= 6, task
    assert concepts.CLASS_NAMES["counting"] == (
        "one object", "two objects", "three objects", "four objects", "five objects", "six objects"
    )  # fmt: skip
    assert concepts.CLASS_NAMES["colors"][1] == "an orange object"

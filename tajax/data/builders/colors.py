"""Colour words and the colours they stand for."""

from __future__ import annotations

import colorsys

import numpy as np

from tajax.data.builders.concepts import COLORS
from tajax.data.builders.randomness import between, pick

# word: (hue in degrees, saturation, value), each from … to
_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-8, 6), (0.78, 1.0), (0.65, 0.95)),
    "orange": ((22, 34), (0.82, 1.0), (0.9, 1.0)),
    "yellow": ((50, 60), (0.7, 1.0), (0.88, 1.0)),
    "green": ((100, 150), (0.55, 1.0), (0.4, 0.8)),
    "blue": ((208, 238), (0.65, 1.0), (0.55, 1.0)),
    "purple": ((268, 288), (0.55, 0.95), (0.45, 0.8)),
    "pink": ((322, 345), (0.3, 0.55), (0.93, 1.0)),
    "brown": ((18, 32), (0.55, 0.8), (0.3, 0.5)),
    "black": ((0, 360), (0.0, 0.3), (0.0, 0.14)),
    "white": ((0, 360), (0.0, 0.05), (0.92, 1.0)),
}


def sample_color(rng: np.random.Generator, word: str) -> np.ndarray:
    """A colour that the word describes, RGB float32 [3] in [0, 1]."""
    hue, saturation, value = (between(rng, *limits) for limits in _RANGES[word])
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1.0, saturation, value), np.float32)


def any_color(rng: np.random.Generator) -> np.ndarray:
    """Any colour at all, named or not, RGB float32 [3]."""
    return rng.random(3, np.float32)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """How well two colours stand out from each other: a distance led by brightness, 0 … about 1.2."""
    red, green, blue = (one - other).tolist()
    brightness = 0.3 * red + 0.59 * green + 0.11 * blue
    return abs(brightness) + 0.2 * (abs(red) + abs(green) + abs(blue)) / 3**0.5


def contrasting_word(
    rng: np.random.Generator, color: np.ndarray, *, least: float = 0.3, but: tuple[str, ...] = ()
) -> tuple[str, np.ndarray]:
    """A colour word not in `but`, and a sample of it that stands out from `color` by `least` or nearly so."""
    best: tuple[float, str, np.ndarray] | None = None
    for _ in range(8):
        word = pick(rng, COLORS)
        if word in but:
            continue
        sample = sample_color(rng, word)
        distance = contrast(color, sample)
        if distance >= least:
            return word, sample
        if best is None or distance > best[0]:
            best = (distance, word, sample)
    if best is None:
        word = next(word for word in COLORS if word not in but)
        return word, sample_color(rng, word)
    return best[1], best[2]

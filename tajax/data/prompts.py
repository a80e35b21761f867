"""Words of the tasks: prompt templates and class names of the protocol, and what stands in for them elsewhere.

The templates and names are those CLIP was published with for each data set, and every paper on task arithmetic uses
them; they are given to the letter, misspellings included, because the zero-shot head depends on them.
"""

from __future__ import annotations

import re

GENERIC = ("a photo of a {}.", "a photo of the {}.", "a photo of {}.", "an image of a {}.", "a picture of a {}.")


def _with_both_articles(*patterns: str) -> tuple[str, ...]:
    """Each pattern once with "a" and once with "the" in the place of `*`."""
    return tuple(pattern.replace("*", article) for article in ("a", "the") for pattern in patterns)


_VIEWS = tuple(f"{kind} {medium}" for kind in ("satellite", "aerial") for medium in ("imagery", "photo", "view"))
_IMAGENET_PHOTOS = (
    "bad",
    "low resolution",
    "cropped",
    "bright",
    "dark",
    "close-up",
    "black and white",
    "pixelated",
    "jpeg corrupted",
    "blurry",
    "good",
)
_IMAGENET_LOOKS = ("hard to see", "clean", "dirty", "cool", "large", "nice", "weird", "small")
_IMAGENET_WORKS = ("sculpture", "rendering", "tattoo", "drawing", "painting", "doodle", "sketch", "rendition")
_IMAGENET_STUFF = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "cars": (
        *("a photo of a {}.", "a photo of the {}.", "a photo of my {}.", "i love my {}!"),
        *(f"a photo of my {state} {{}}." for state in ("dirty", "clean", "new", "old")),
    ),
    "dtd": _with_both_articles(*(f"a photo of * {{}} {kind}." for kind in ("texture", "pattern", "thing", "object"))),
    "eurosat": ("a centered satellite photo of {}.", *_with_both_articles("a centered satellite photo of * {}.")),
    "gtsrb": tuple(f'a {way} photo of a "{{}}" traffic sign.' for way in ("zoomed in", "centered", "close up")),
    "mnist": ('a photo of the number: "{}".',),
    "resisc45": (
        *(f"{view} of {{}}." for view in _VIEWS),
        *_with_both_articles(*(f"{view} of * {{}}." for view in _VIEWS)),
    ),
    "sun397": _with_both_articles("a photo of * {}."),
    "svhn": ('a photo of the number: "{}".',),
    "imagenet": (
        *_with_both_articles(
            *("a photo of * {}.", "graffiti of * {}.", "art of * {}.", "itap of * {}.", "* {} in a video game."),
            *(f"a {quality} photo of * {{}}." for quality in _IMAGENET_PHOTOS),
            *(f"a photo of * {look} {{}}." for look in _IMAGENET_LOOKS),
            *(f"a {work} of * {{}}." for work in _IMAGENET_WORKS),
            *(f"* {stuff} {{}}." for stuff in _IMAGENET_STUFF),
        ),
        *("a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}."),
    ),
}

_SPEED_LIMITS = (20, 30, 50, 60, 70, 80, None, 100, 120)  # km/h; class 6 ends a limit
_GTSRB = (
    *(
        f"red and white circle {limit} kph speed limit" if limit else "end / de-restriction of 80 kph speed limit"
        for limit in _SPEED_LIMITS
    ),
    "red and white circle red car and black car no passing",
    "red and white circle red truck and black car no passing",
    "red and white triangle road intersection warning",
    "white and yellow diamond priority road",
    "red and white upside down triangle yield right-of-way",
    "stop",
    "empty red and white circle",
    "red and white circle no truck entry",
    "red circle with white horizonal stripe no entry",
    "red and white triangle with exclamation mark warning",
    *(f"red and white triangle with black {curve} curve approaching warning" for curve in ("left", "right", "double")),
    "red and white triangle rough / bumpy road warning",
    "red and white triangle car skidding / slipping warning",
    "red and white triangle with merging / narrow lanes warning",
    "red and white triangle with person digging / construction / road work warning",
    "red and white triangle with traffic light approaching warning",
    "red and white triangle with person walking warning",
    "red and white triangle with child and person walking warning",
    "red and white triangle with bicyle warning",
    "red and white triangle with snowflake / ice warning",
    "red and white triangle with deer warning",
    "white circle with gray strike bar no speed limit",
    "blue circle with white right turn arrow mandatory",
    "blue circle with white left turn arrow mandatory",
    "blue circle with white forward arrow mandatory",
    "blue circle with white forward or right turn arrow mandatory",
    "blue circle with white forward or left turn arrow mandatory",
    "blue circle with white keep right arrow mandatory",
    "blue circle with white keep left arrow mandatory",
    "blue circle with white arrows indicating a traffic circle",
    "white circle with gray strike bar indicating no passing for cars has ended",
    "white circle with gray strike bar indicating no passing for trucks has ended",
)

CLASS_NAMES: dict[str, dict[str, str]] = {
    "eurosat": {
        "AnnualCrop": "annual crop land",
        "Forest": "forest",
        "HerbaceousVegetation": "brushland or shrubland",
        "Highway": "highway or road",
        "Industrial": "industrial buildings or commercial buildings",
        "Pasture": "pasture land",
        "PermanentCrop": "permanent crop land",
        "Residential": "residential buildings or homes or apartments",
        "River": "river",
        "SeaLake": "lake or sea",
    },
    "gtsrb": {f"{number:05d}": name for number, name in enumerate(_GTSRB)},  # directories of the official archive
}
"""Stored name → name for prompts, of the data sets whose stored names say less. All others: `readable`."""


def readable(stored: str) -> str:
    """A stored class name as words: underscores become spaces, and SUN397's paths lose their leading letter.

    Example:
        >>> readable("baseball_diamond"), readable("/a/apse/indoor"), readable("rough / bumpy road")
        ('baseball diamond', 'apse indoor', 'rough / bumpy road')
    """
    if re.match(r"/[a-z]/", stored):
        stored = stored[3:].replace("/", " ")
    return " ".join(stored.replace("_", " ").split())

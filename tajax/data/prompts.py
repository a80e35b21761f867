"""Words of the tasks: prompt templates and class names of the protocol, and what stands in for them elsewhere.

The templates and names are those CLIP was published with for each data set (its `data/prompts.md` and its ImageNet
notebook), and every paper on task arithmetic uses them; they are given to the letter, misspellings included, because
the zero-shot head depends on them. CLIP never was tested on EMNIST, Fashion-MNIST and KMNIST: their templates are those
of the suite of twenty tasks (Wang et al. 2024, "Localizing task information for improved model merging and
compression").
"""

from __future__ import annotations

import re
from pathlib import Path

GENERIC = ("a photo of a {}.", "a photo of the {}.", "a photo of {}.", "an image of a {}.", "a picture of a {}.")

GENERIC_TEXTS = ("{}", "This is {}.")
"""Of texts, whose class names are phrases: "a question about a place"."""


def _with_both_articles(*patterns: str) -> tuple[str, ...]:
    """Each pattern once with "a" and once with "the" in the place of `*`."""
    return tuple(pattern.replace("*", article) for article in ("a", "the") for pattern in patterns)


_VIEWS = tuple(f"{kind} {medium}" for kind in ("satellite", "aerial") for medium in ("imagery", "photo", "view"))
_CIFAR = _with_both_articles(
    "a photo of * {}.",
    *(
        f"a {look} photo of * {{}}."
        for look in ("blurry", "black and white", "low contrast", "high contrast", "bad", "good")
    ),
    *(f"a photo of * {size} {{}}." for size in ("small", "big")),
)
_PHOTO = _with_both_articles("a photo of * {}.")
_NUMBER = ('a photo of the number: "{}".',)
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
    "mnist": _NUMBER,
    "resisc45": (
        *(f"{view} of {{}}." for view in _VIEWS),
        *_with_both_articles(*(f"{view} of * {{}}." for view in _VIEWS)),
    ),
    "sun397": _PHOTO,
    "svhn": _NUMBER,
    "stl10": _PHOTO,
    "oxford_iiit_pet": ("a photo of a {}, a type of pet.",),
    "flowers102": ("a photo of a {}, a type of flower.",),
    "cifar100": _CIFAR,
    "pcam": ("this is a photo of {}",),
    "fer2013": (
        *("a photo of a {} looking face.", "a photo of a face showing the emotion: {}."),
        *("a photo of a face looking {}.", "a face that looks {}.", "they look {}.", "look at how {} they are."),
    ),
    "cifar10": _CIFAR,
    "food101": ("a photo of {}, a type of food.",),
    "fashion_mnist": _PHOTO,
    "rendered_sst2": ("a {} review of a movie.",),
    "emnist": ('a photo of the digit character: "{}".',),
    "kmnist": ("a photo of the character {}.",),
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


def readable(stored: str) -> str:
    """A stored class name as words: underscores become spaces, and SUN397's paths lose their leading letter.

    Example:
        >>> readable("baseball_diamond"), readable("/a/apse/indoor"), readable("rough / bumpy road")
        ('baseball diamond', 'apse indoor', 'rough / bumpy road')
    """
    if re.match(r"/[a-z]/", stored):
        stored = stored[3:].replace("/", " ")
    return " ".join(stored.replace("_", " ").split())


_CLASS_NAMES = Path(__file__).parents[1] / "assets" / "class_names"


def class_names(task: str) -> dict[str, str]:
    """Stored name → name for prompts of a task's classes, in the order of the labels.

    Args:
        task: one that has a file in `tajax/assets/class_names`, where a README tells the sources.

    Example:
        >>> list(class_names("flowers102").items())[:1], class_names("flowers102")["globe-flower"]
        ([('pink primrose', 'pink primrose')], 'globe flower')
    """
    lines = (_CLASS_NAMES / f"{task}.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("\t") for line in lines)
    return {stored: name or readable(stored) for stored, _, name in pairs}

"""What the synthetic world shows: the words for every concept, and the class names of the tasks.

Class names are noun phrases, so that "a photo of {}." fits all of them, and the captions of `tajax_scenes`
use them word for word.
"""

from __future__ import annotations

SHAPES = (
    "circle",
    "square",
    "triangle",
    "pentagon",
    "star",
    "heart",
    "crescent",
    "cross",
    "ring",
    "semicircle",
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
TEXTURES = (
    "striped", "checkered", "dotted", "zigzag", "brick", "ringed", "gridded", "marbled", "cracked", "scaly",
)  # fmt: skip
COUNTS = ("one", "two", "three", "four", "five", "six")
SIGNS = (
    "stop", "yield", "no entry", "no parking", "speed limit", "turn left", "turn right", "priority road",
    "pedestrian crossing", "danger",
)  # fmt: skip
DIRECTIONS = ("up", "up right", "right", "down right", "down", "down left", "left", "up left")  # clockwise


def with_article(phrase: str) -> str:
    """The phrase after its indefinite article.

    Example:
        >>> with_article("orange circle"), with_article("ring")
        ('an orange circle', 'a ring')
    """
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(noun: str) -> str:
    """The plural of a shape's name or of "object".

    Example:
        >>> plural("cross"), plural("ring")
        ('crosses', 'rings')
    """
    return noun + ("es" if noun.endswith("s") else "s")


CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "shapes": tuple(with_article(shape) for shape in SHAPES),
    "colors": tuple(with_article(f"{color} object") for color in COLORS),
    "digits": tuple(f"the digit {digit}" for digit in DIGITS),
    "letters": tuple(f"the letter {letter}" for letter in LETTERS),
    "textures": tuple(with_article(f"{texture} texture") for texture in TEXTURES),
    "counting": tuple(f"{count} {'object' if count == 'one' else 'objects'}" for count in COUNTS),
    "signs": tuple(with_article(f"{sign} sign") for sign in SIGNS),
    "arrows": tuple(f"an arrow pointing {direction}" for direction in DIRECTIONS),
}

OBJECTS = tuple(with_article(f"{color} {shape}") for color in COLORS for shape in SHAPES)
"""Class names of the control task: every colour of every shape."""

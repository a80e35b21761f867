"""What the classes of natural images are called in captions: several names each, with and without an article."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path

_RULES = Path(__file__).parents[1] / "assets" / "phrases.toml"


def with_article(name: str) -> str:
    """The class name as a noun phrase: `goldfish` → `a goldfish`, `orange` → `an orange`."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def names(class_name: str) -> tuple[str, ...]:
    r"""The class's own name, then those that the rules of `assets/phrases.toml` add, each once.

    Example:
        >>> names("passenger car"), names("printed digit two")
        (('passenger car', 'automobile', 'car'), ('printed digit two', 'two', 'digit two', 'number two'))
    """
    found = [class_name]
    for pattern, others in _rules():
        if match := pattern.fullmatch(class_name):
            found += [match.expand(other) for other in others]  # a group that matched nothing is empty
    return tuple(dict.fromkeys(found))


def phrasings(class_name: str) -> tuple[str, ...]:
    """Noun phrases for captions: every name with an indefinite article, with a definite one, and bare.

    The prompts of the tasks have all three: "a photo of a {}.", "a photo of the {}.", "a photo of {}.".

    Example:
        >>> phrasings("acorn")
        ('an acorn', 'the acorn', 'acorn')
    """
    return tuple(phrase for name in names(class_name) for phrase in (with_article(name), f"the {name}", name))


@functools.cache
def _rules() -> tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]:
    with open(_RULES, "rb") as file:
        rules = tomllib.load(file)["rule"]
    return tuple((re.compile(rule["class"]), tuple(rule["names"])) for rule in rules)

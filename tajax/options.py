"""What a method leaves open: one record, from which come a field of the config, its check and its help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Option(NamedTuple):
    """What a method of merging or training leaves open: a keyword of its function, and a field of the config.

    Attributes:
        default: that of the function; values are of its type.
        help: one line on what it is; it stands beside the field in `--help` and in the reference.
        holds: whether a value of that type is in range.
        wanted: the range in words, as in "want a share below 1".
        choices: of a string, all of them.
    """

    default: bool | int | float | str
    help: str
    holds: Callable[[Any], object] = lambda value: True
    wanted: str = ""
    choices: tuple[str, ...] = ()

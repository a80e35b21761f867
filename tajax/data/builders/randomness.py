"""Random streams that depend on names and numbers alone, and the few draws every renderer needs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@lru_cache(maxsize=256)
def _stream_key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def stream(name: str, index: int) -> np.random.Generator:
    """The random numbers of picture `index` in the stream `name`, for example `"shapes/train"`.

    Philox is a counter-based generator: each key (name, index) is a stream of its own, on any machine.
    """
    return np.random.Generator(np.random.Philox(key=[_stream_key(name), index]))


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high)."""
    return low + (high - low) * rng.random()


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return rng.random() < probability


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, all equally likely."""
    return choices[int(rng.random() * len(choices))]

"""Counter-based random draws: orders, cuts and crops that depend on nothing but their coordinates.

Every draw is a pure function of (seed, purpose, epoch, index), read from a Philox stream whose key and counter are
those numbers. Raw 64-bit outputs alone are used: NumPy fixes them for ever, while its `permutation` and `uniform` may
change between releases. So a stream can start anywhere, workers need no state, and a recorded seed keeps its meaning.
"""

from __future__ import annotations

import functools

import numpy as np

ORDER, CROP, VALIDATION, TEST = range(4)  # purposes: never the same stream twice
CUT_SEED = 0  # of splits that are cut here; fixed, and apart from the seed of any run
_PURPOSES = 8  # room in the key; epoch * _PURPOSES + purpose


def check_seed(seed: int) -> int:
    """`seed` itself if it fits the key of a stream.

    Raises:
        ValueError: it is negative or needs more than 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed!r} does not fit: give a whole number from 0 to 2**64 - 1")
    return int(seed)


def _stream(seed: int, purpose: int, epoch: int = 0, index: int = 0) -> np.random.Philox:
    key = np.array([seed, epoch * _PURPOSES + purpose], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, index, 0, 0], np.uint64))


@functools.lru_cache(maxsize=8)  # neighbouring batches and prefetching threads ask for the same epoch
def permutation(count: int, *, seed: int, purpose: int, epoch: int = 0) -> np.ndarray:
    """A random order of `range(count)`: the argsort of raw draws.

    Returns:
        int64 [count], read-only because it is shared between calls.
    """
    order = np.argsort(_stream(seed, purpose, epoch).random_raw(count), kind="stable")
    order.setflags(write=False)
    return order


def uniforms(count: int, *, seed: int, purpose: int, epoch: int = 0, index: int = 0) -> list[float]:
    """`count` numbers in [0, 1) of 53 bits each."""
    raw = _stream(seed, purpose, epoch, index).random_raw(count)
    return ((raw >> np.uint64(11)) * 2.0**-53).tolist()

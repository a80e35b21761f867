"""Images or texts that stand in more than one split of a task, found by their content."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from typing import NamedTuple

from tajax.data.tasks import SPLITS, Task


class Overlap(NamedTuple):
    """One image in two splits.

    Attributes:
        first: (split, index).
        second: (split, index), of a later split in the order train, val, test.
        names: of both, such as their paths.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    names: tuple[str, str]


def find_overlap(task: Task) -> list[Overlap]:
    """Every pair of images with the same pixels, or of equal texts, in different splits; empty for a sound task.

    Images are compared by a 128-bit hash of their size and RGB pixels, so that the same picture is found in another
    file format (without loss), under another name or label. Crops and re-compressions are not found. Repeats inside a
    split are not reported: they leak nothing. Texts are the same if every character is.

    Costs one decoding of the whole task and 32 bytes an image.

    Raises:
        BadImageError: an image cannot be read.
    """

    def named(split: str, index: int) -> str:
        return task.splits[split].describe(index)

    places: defaultdict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for split in SPLITS:
        source = task.splits[split]
        for index in range(len(source)):
            example, _ = source[index]
            content = example.encode() if isinstance(example, str) else repr(example.size).encode() + example.tobytes()
            places[hashlib.blake2b(content, digest_size=16).digest()].append((split, index))
    return [
        Overlap(first, second, (named(*first), named(*second)))
        for same in places.values()
        for first, second in itertools.combinations(same, 2)
        if first[0] != second[0]
    ]

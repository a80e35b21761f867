"""Images of a task that stand in a corpus for pre-training, exactly or nearly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from tajax.data.preprocess import resize_center_crop
from tajax.data.tasks import Task

SIDE = 16  # pixels of the thumbnails that are compared
NEAR = 6.0  # of 255, root mean square over a thumbnail: closer ones count as the same picture
_BLOCK = 4096  # images of the corpus that are compared at a time


class Leak(NamedTuple):
    """What of one split of a task stands in a corpus.

    Attributes:
        split: of the task.
        images: its size.
        exact: how many have the pixels of an image of the corpus.
        near: how many are within `NEAR` of one, the exact ones among them.
        nearest: the smallest distance of any, of 255; 0 for an exact one.
        names: of those that are near, such as their paths.
    """

    split: str
    images: int
    exact: int
    near: int
    nearest: float
    names: tuple[str, ...]


class Corpus:
    """Images to look in, each reduced to a thumbnail and a digest once; 3 kB an image.

    Args:
        arrays: of images, all of one size, a multiple of 16 pixels on each side.

    Raises:
        ValueError: images have another size, differ in size, or there are none.
    """

    def __init__(self, arrays: Iterable[UInt8[np.ndarray, "N H W 3"]]):
        self.thumbnails: list[np.ndarray] = []
        self.contents: set[bytes] = set()
        sizes: set[tuple[int, int]] = set()
        for images in filter(len, arrays):
            sizes.add((images.shape[1], images.shape[2]))
            if len(sizes) > 1 or any(height != width or height % SIDE for height, width in sizes):
                break
            self.thumbnails.append(_thumbnails(images))
            self.contents |= {_content(image) for image in images}
        else:
            if sizes:
                (self.side, _), *_ = sizes
                return
        found = ", ".join(f"{height}×{width}" for height, width in sorted(sizes)) or "nothing"
        raise ValueError(f"images of the corpus are {found}; want one size, a multiple of {SIDE} on each side")

    def __len__(self) -> int:
        """The number of images."""
        return sum(map(len, self.thumbnails))


def find_leaks(task: Task, corpus: Corpus, *, splits: Sequence[str] = ("val", "test")) -> list[Leak]:
    """How much of a task's evaluation splits a corpus has seen.

    Images are brought to the corpus's size, and compared as they are and as thumbnails of 16×16 pixels by
    d(x, y) = √(mean (x − y)²) over pixels and channels, in steps of 255. So a copy in another size or compression
    counts, and a crop does not.

    Args:
        task: an opened task.
        corpus: what was trained on.
        splits: of the task.

    Returns:
        One entry a split. Costs a matrix product of its thumbnails with those of the corpus.

    Raises:
        BadImageError: an image of the task cannot be read.
    """
    found = []
    for split in splits:
        source = task.split(split)
        images = np.stack([resize_center_crop(source[index][0], corpus.side) for index in range(len(source))])
        nearest = _nearest(_thumbnails(images), corpus.thumbnails)
        exact = np.array([_content(image) in corpus.contents for image in images])
        near = np.flatnonzero(exact | (nearest <= NEAR))
        smallest = 0.0 if exact.any() else float(nearest.min())
        names = tuple(source.describe(int(index)) for index in near)
        found.append(Leak(split, len(images), int(exact.sum()), len(near), smallest, names))
    return found


def _content(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _thumbnails(images: UInt8[np.ndarray, "N H W 3"]) -> Float32[np.ndarray, "N D"]:
    """Means over equal squares, flattened; around zero, so that float32 is enough for their products."""
    count, height, width, _ = images.shape
    sums = np.zeros((count, SIDE, SIDE, 3), np.uint32)
    down, across = height // SIDE, width // SIDE
    for row in range(down):
        for column in range(across):
            sums += images[:, row::down, column::across]
    return (sums / np.float32(down * across)).astype(np.float32).reshape(count, -1) - np.float32(127.5)


def _nearest(
    thumbnails: Float32[np.ndarray, "N D"], corpus: Sequence[Float32[np.ndarray, "M D"]]
) -> Float32[np.ndarray, " N"]:
    """The distance of each to the nearest of the corpus."""
    best = np.full(len(thumbnails), np.inf, np.float32)
    lengths = np.einsum("nd,nd->n", thumbnails, thumbnails)
    for known in corpus:
        for start in range(0, len(known), _BLOCK):
            others = known[start : start + _BLOCK]
            squared = np.einsum("nd,nd->n", others, others)[:, None] - 2 * (others @ thumbnails.T)
            best = np.minimum(best, squared.min(axis=0))
    return np.sqrt(np.maximum(best + lengths, 0) / thumbnails.shape[1])

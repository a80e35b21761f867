"""Batches of captioned images from several sources, and which caption of a batch fits which of its images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tajax.data.captions import CaptionedImages

TEMPLATES = (
    "{}",
    "a photo of {}.",
    "a picture of {}.",
    "an image of {}.",
    "a drawing of {}.",
    "a small photo of {}.",
    "a blurry photo of {}.",
    "there is {} in the scene.",
)


class Vocabulary(NamedTuple):
    """All phrases of some sources, and which classes each of them fits.

    Attributes:
        phrases: the distinct phrases.
        of_class: for each class, counted over all sources in their order, the numbers of its phrases.
        pairs: int64, sorted: class · len(phrases) + phrase of all that fit.
    """

    phrases: tuple[str, ...]
    of_class: tuple[np.ndarray, ...]
    pairs: np.ndarray

    def fits(self, classes: np.ndarray, phrases: np.ndarray) -> np.ndarray:
        """Whether each phrase fits an image of each class, bool [len(classes), len(phrases)]."""
        wanted = classes[:, None].astype(np.int64) * len(self.phrases) + phrases[None]
        return self.pairs[np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)] == wanted


def vocabulary(sources: Sequence[CaptionedImages]) -> Vocabulary:
    """The phrases of the sources. One that two classes share fits both, so it never counts as wrong for either."""
    classes = [phrases for source in sources for phrases in source.phrases]
    numbers = {phrase: number for number, phrase in enumerate(dict.fromkeys(p for each in classes for p in each))}
    of_class = tuple(np.array([numbers[phrase] for phrase in each], np.int64) for each in classes)
    pairs = np.concatenate([number * len(numbers) + each for number, each in enumerate(of_class)])
    return Vocabulary(tuple(numbers), of_class, np.sort(pairs))


def rows_of_sources(sizes: Sequence[int], rows: int, *, power: float) -> list[int]:
    """How `rows` rows of a batch are shared out: to a source of n images in proportion to n^power, at least one each.

    Args:
        sizes: images of each source.
        rows: rows to share out.
        power: 1 draws every image as often as any other, 0 every source.

    Returns:
        Whole numbers that sum to `rows`, by largest remainders.

    Raises:
        ValueError: there are fewer rows than sources.

    Example:
        >>> rows_of_sources([900, 100, 1], 8, power=0.5)
        [5, 2, 1]
    """
    if rows < len(sizes):
        raise ValueError(f"{rows} rows of natural images a batch are fewer than their {len(sizes)} sources")
    weights = [size**power for size in sizes]
    free = rows - len(sizes)
    shares = [max(0.0, rows * weight / math.fsum(weights) - 1) for weight in weights]
    shares = [free * share / (math.fsum(shares) or 1.0) for share in shares]
    whole = [int(share) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda k: (whole[k] - shares[k], k))
    for k in by_remainder[: free - sum(whole)]:
        whole[k] += 1
    return [1 + count for count in whole]


class MixedRows(NamedTuple):
    """Rows of one batch.

    Attributes:
        images: uint8 [B, H, W, 3].
        mirrored: bool [B], whether a mirrored image fits its caption.
        phrase: int64 [B], of the vocabulary.
        template: int64 [B], the template around the phrase.
        positives: bool [B, B], whether the caption of a column fits the image of a row.
    """

    images: np.ndarray
    mirrored: np.ndarray
    phrase: np.ndarray
    template: np.ndarray
    positives: np.ndarray


def mixed_batches(
    sources: Sequence[CaptionedImages],
    rows: Sequence[int],
    words: Vocabulary,
    *,
    seed: int,
    num_templates: int = len(TEMPLATES),
    start_batch: int = 0,
) -> Iterator[MixedRows]:
    """Endless batches with a fixed number of rows from each source, each source shuffled anew every epoch.

    A function of `seed` and the batch number alone, so a run can go on from any batch.

    Args:
        sources: where the images come from.
        rows: rows a batch takes from each source.
        words: `vocabulary(sources)`.
        seed: of the orders, and of the phrases and templates drawn.
        num_templates: templates to draw from.
        start_batch: the number of the first batch.
    """
    offsets = np.cumsum([0] + [len(s.phrases) for s in sources[:-1]])
    orders: dict[tuple[int, int], np.ndarray] = {}

    def order(which: int, epoch: int) -> np.ndarray:
        if (which, epoch) not in orders:
            for old in [key for key in orders if key[0] == which and key[1] < epoch - 1]:
                del orders[old]
            rng = np.random.default_rng([seed, which, epoch])
            orders[which, epoch] = rng.permutation(len(sources[which].images))
        return orders[which, epoch]

    batch = start_batch
    mirrored = np.repeat([source.mirrored for source in sources], rows)
    while True:
        picked = []
        for which, (source, count) in enumerate(zip(sources, rows, strict=True)):
            size = len(source.images)
            positions = batch * count + np.arange(count)
            picked.append([order(which, p // size)[p % size] for p in positions.tolist()])
        classes = np.concatenate([s.labels[i] + o for s, i, o in zip(sources, picked, offsets, strict=True)])
        rng = np.random.default_rng([seed, len(sources), batch])
        template = rng.integers(num_templates, size=len(classes))
        which_phrase = rng.random(len(classes))
        said = [words.of_class[k][int(u * len(words.of_class[k]))] for k, u in zip(classes, which_phrase, strict=True)]
        phrase = np.array(said)
        images = np.concatenate([s.images[i] for s, i in zip(sources, picked, strict=True)])
        yield MixedRows(images, mirrored, phrase, template, words.fits(classes, phrase))
        batch += 1

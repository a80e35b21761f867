"""Reading a whole source once: to check it, to know its content again, and to keep it in memory when it is small.

All happen before the first batch, so that a broken image costs seconds instead of the training that it would end.
"""

from __future__ import annotations

import hashlib
import logging
import os
import weakref
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, cast

import numpy as np

from tajax.data.preprocess import resize_center_crop
from tajax.data.sources import (
    ArraySource,
    BadExampleError,
    BadImageError,
    BadLabelError,
    BadTextError,
    FileSource,
    ImageSource,
    Source,
    TextSource,
    announce,
    decode,
    rows_of,
    what_of,
)
from tajax.types import Preprocessing, Resize

logger = logging.getLogger(__name__)

MEMORY_BYTES = 2**28  # of one split kept decoded: 87,000 images of 32 px, 1,780 of 224 px
ON_BAD_IMAGE = ("error", "skip")
_SAMPLE = 32  # images whose size is looked at to estimate the bytes of a source
_LISTED = 5  # bad images named in a message

DIGEST = np.dtype("V16")  # 128 bits of SHA-256, enough to tell the files of any data set apart


class _Geometry(NamedTuple):
    """The evaluation geometry, as `resize_center_crop` takes it."""

    size: int
    resize: Resize | None

    def is_that_of(self, source: ArraySource) -> bool:
        """Whether the images form one array that the geometry leaves as it is."""
        kept = self.resize is None or self.resize.side == self.size
        return kept and isinstance(source.images, np.ndarray) and source.images.shape[1:3] == (self.size, self.size)


# What was read of each source that is still alive: images by their geometry, the examples without a readable one, and
# the digests of files.
_decoded: weakref.WeakKeyDictionary[Source, dict[_Geometry | None, ArraySource]] = weakref.WeakKeyDictionary()
_bad: weakref.WeakKeyDictionary[Source, dict[int, BadExampleError]] = weakref.WeakKeyDictionary()
_digests: weakref.WeakKeyDictionary[Source, np.ndarray] = weakref.WeakKeyDictionary()


def check(
    sources: Mapping[str, Source], *, on_bad_image: str = "error", option: str = "on_bad_image='skip'"
) -> dict[str, Source]:
    """The sources without the images that cannot be read, or the texts without a word: the same objects if all can.

    Files are read once each, in threads, and decoded no further than it takes to find out. Records of a TFDS data set
    were checked when it was prepared: they are read only to skip. What was found is remembered while a source lives.

    Args:
        sources: splits of a task by their names in messages.
        on_bad_image: "error", or "skip" to leave unreadable images out, with a warning that counts them.
        option: what the message says to pass in order to skip.

    Raises:
        BadImageError, BadTextError: unreadable images, or texts without a word, and `on_bad_image` is "error". The
            message counts them in every source and names the first of each.
        ValueError: labels outside the class list; no readable image at all; an unknown `on_bad_image`.
    """
    if on_bad_image not in ON_BAD_IMAGE:
        raise ValueError(f"on_bad_image {on_bad_image!r} is not known; choose from {ON_BAD_IMAGE}")
    skip, reports, left = on_bad_image == "skip", [], {}
    for where, source in sources.items():
        bad = _find_bad(source, where, records=skip)
        left[where] = _without(source, bad)
        if bad:
            reports.append(_report(bad, source, where))
        if skip and len(bad) == len(source):
            raise ValueError(reports[-1] + "Nothing is left to read.")
    if reports and not skip:
        kind = BadTextError if isinstance(source, TextSource) else BadImageError  # a task has one kind of examples
        raise kind("".join(reports) + f"Mend or remove them, or pass {option}.")
    if reports:
        logger.warning("%sThey are left out.", "".join(reports))
    return left


def _find_bad(source: Source, where: str, *, records: bool) -> Mapping[int, BadExampleError]:
    if source not in _bad:
        if isinstance(source, TextSource):
            blank = [index for index, text in enumerate(source.texts) if not text.strip()]
            _bad[source] = {i: BadTextError(f"text {source.describe(i)} is empty") for i in blank}
        elif isinstance(source, FileSource):
            _bad[source] = _read_files(source, where)
        elif records and not isinstance(source, ArraySource):
            _bad[source] = _in_threads(source.__getitem__, len(source), where)[1]
    return _bad.get(source, {})


def _without(source: Source, bad: Collection[int]) -> Source:
    if not bad:
        return source
    rows = np.setdiff1d(np.arange(len(source)), list(bad))
    left = rows_of(source, rows)
    _bad[left] = {}  # so that nothing is read twice
    if source in _digests:
        _digests[left] = _digests[source][rows]
    return left


def digests(source: FileSource, *, where: str) -> np.ndarray:
    """A digest of each file's bytes, `DIGEST` [N], all zeros where a file cannot be read.

    They come with `check`, which reads each file anyway; without it the files are read here.
    """
    if source not in _digests:
        _bad[source] = _read_files(source, where)
    return _digests[source]


def digest(content: bytes | memoryview) -> bytes:
    """The digest of some bytes."""
    return hashlib.sha256(content).digest()[: DIGEST.itemsize]


def _read_files(source: FileSource, where: str) -> dict[int, BadExampleError]:
    """The bad ones; digests of all are kept."""
    found = np.zeros(len(source), DIGEST)

    def look(index: int) -> None:
        encoded = source.read(index)
        found[index] = digest(encoded)
        decode(encoded, source.describe(index), quick=True)

    bad = _in_threads(look, len(source), where)[1]
    _digests[source] = found
    return bad


def ready(
    source: ImageSource,
    *,
    preprocessing: Preprocessing | None,
    where: str,
    on_bad_image: str = "error",
    memory_bytes: int = MEMORY_BYTES,
) -> tuple[ImageSource, bool]:
    """The source to read batches from: checked, and decoded in memory if that takes at most `memory_bytes`.

    Args:
        source: one split of a task.
        preprocessing: images in memory have its evaluation geometry; None keeps them as they are.
        where: its name, for messages.
        on_bad_image: as in `check`.
        memory_bytes: limit for the decoded images; 0 keeps none.

    Returns:
        The source, and whether it is an array of images in evaluation geometry, so that batches are mere copies.

    Raises:
        ValueError: as in `check`.
    """
    geometry = None if preprocessing is None else _Geometry(preprocessing.size, preprocessing.resize)
    there = isinstance(source, ArraySource) and (geometry is None or geometry.is_that_of(source))
    small = not there and _bytes(source, geometry) <= memory_bytes
    remembered = _decoded.setdefault(source, {})
    if small and geometry not in remembered:
        remembered[geometry], _bad[source] = _decode(source, geometry, where)
    left = check({where: source}, on_bad_image=on_bad_image)[where]
    ready = remembered[geometry] if small else cast(ImageSource, left)  # what was decoded never had the bad ones
    return ready, geometry is not None and (there or small)


def _report(bad: Mapping[int, BadExampleError], source: Source, where: str) -> str:
    first = [str(bad[index]) for index in sorted(bad)[:_LISTED]]
    more = f"\n  … and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    return (
        f"{len(bad)} of the {len(source)} {what_of(source)} of {where} cannot be read:\n  "
        + "\n  ".join(first)
        + f"{more}\n"
    )


def _bytes(source: ImageSource, geometry: _Geometry | None) -> float:
    """Bytes of the decoded source, estimated from the sizes of a few images where they keep their own."""
    if geometry is not None:
        return len(source) * geometry.size**2 * 3
    pixels = []
    for index in np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int)):
        try:
            pixels.append(np.prod(source.size(index)))
        except BadImageError:
            continue  # the check will name it
    return len(source) * float(np.mean(pixels)) * 3 if pixels else 0


def _decode(
    source: ImageSource, geometry: _Geometry | None, where: str
) -> tuple[ArraySource, dict[int, BadExampleError]]:
    def read(index: int) -> tuple[np.ndarray, int]:
        image, label = source[index]
        return (np.asarray(image) if geometry is None else resize_center_crop(image, *geometry)), label

    examples, bad = _in_threads(read, len(source), where)
    rows = np.array([index for index, example in enumerate(examples) if example is not None], int)
    images = [examples[index][0] for index in rows]
    labels = np.array([examples[index][1] for index in rows], np.int32)
    stackable = images and len({image.shape for image in images}) == 1
    return ArraySource(np.stack(images) if stackable else images, labels, where, rows), bad


def _in_threads(
    read: Callable[[int], object], count: int, where: str
) -> tuple[list[object | None], dict[int, BadExampleError]]:
    """`read(i)` for every i < count, None where the image is bad, and the bad ones."""
    bad_images: dict[int, BadExampleError] = {}
    bad_labels: dict[int, BadLabelError] = {}

    def attempt(index: int) -> object | None:
        try:
            return read(index)
        except BadImageError as error:
            bad_images[index] = error
        except BadLabelError as error:
            bad_labels[index] = error
        return None

    announce(count, "images", where)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        results = list(threads.map(attempt, range(count)))
    if bad_labels:
        first = bad_labels[min(bad_labels)]
        raise ValueError(
            f"{len(bad_labels)} of the {count} labels of {where} lie outside the class list. First: {first}"
        )
    return results, bad_images

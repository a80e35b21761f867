"""Captioned images for contrastive pre-training: the synthetic world, and labelled natural images."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tajax.data.memory import ready
from tajax.data.sources import ArraySource, RecordSource

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


class CaptionedImages(NamedTuple):
    """Images with captions, several of which may share one caption.

    Attributes:
        images: uint8 [N, H, W, 3].
        captions: the distinct captions, without a template around them.
        caption_index: int32 [N], which caption belongs to each image.
        mirrored: whether a mirrored image still fits its caption (not for letters and arrows).
        skipped: how many images could not be read and were left out.
    """

    images: np.ndarray
    captions: tuple[str, ...]
    caption_index: np.ndarray
    mirrored: bool
    skipped: int = 0


def load_scenes(split: str, *, data_dir: str | Path, size: str = "large") -> CaptionedImages:
    """The captioned scenes of the bundled synthetic world, prepared on first use.

    Args:
        split: `train` or `val`.
        data_dir: where TFDS keeps prepared data sets.
        size: the builder's config, `large` or `small`.

    Returns:
        All images of the split, in memory.
    """
    from tajax.data.builders import prepare

    source = prepare(f"tajax_scenes/{size}", data_dir=data_dir).as_data_source(split=split)
    images = np.empty((len(source), 32, 32, 3), np.uint8)
    captions: list[str] = []
    for row, example in enumerate(source):
        images[row] = example["image"]
        captions.append(
            example["caption"].decode() if isinstance(example["caption"], bytes) else str(example["caption"])
        )
    distinct, index = np.unique(captions, return_inverse=True)
    return CaptionedImages(images, tuple(map(str, distinct)), index.astype(np.int32), mirrored=False)


def load_natural(path: str | Path, *, on_bad_image: str = "error") -> CaptionedImages:
    """Labelled natural images kept as JPEG bytes in one `.npz`; the caption is the class name with an article.

    Args:
        path: a file with `train_jpeg` (uint8, all files one after the other), `train_offsets` [N + 1],
            `train_labels` [N] and `class_names`.
        on_bad_image: "error", or "skip" to leave unreadable images out with a warning that counts them.

    Returns:
        The training images, decoded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an array is missing; images that cannot be read, counted and named, or of differing sizes; a label
            outside the class names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"natural images for pre-training: no file {path}. Pass --config.pretrain.natural=FILE.npz, "
            "or --config.pretrain.natural=None to pre-train on synthetic scenes alone."
        )
    with np.load(path, allow_pickle=False) as arrays:
        missing = {"train_jpeg", "train_offsets", "train_labels", "class_names"} - set(arrays.files)
        if missing:
            raise ValueError(f"{path} lacks {sorted(missing)}; it has {sorted(arrays.files)}")
        jpeg, offsets = arrays["train_jpeg"], arrays["train_offsets"]
        labels, names = arrays["train_labels"], arrays["class_names"]
    files = (jpeg[a:b].tobytes() for a, b in zip(offsets[:-1], offsets[1:], strict=True))
    records = [{"image": file, "label": label} for file, label in zip(files, labels, strict=True)]
    encoded = RecordSource(records, "image", "label", len(names), str(path))
    source = ready(encoded, size=None, where=str(path), on_bad_image=on_bad_image, memory_bytes=sys.maxsize)
    assert isinstance(source, ArraySource)  # as all of it may be kept in memory
    if not isinstance(source.images, np.ndarray):
        sizes = sorted({image.shape for image in source.images})
        raise ValueError(f"images of {path} have {len(sizes)} sizes, such as {sizes[0]} and {sizes[-1]}; want one")
    captions = tuple(with_article(str(name)) for name in names)
    skipped = len(records) - len(source)
    return CaptionedImages(source.images, captions, source.labels, mirrored=True, skipped=skipped)


def with_article(name: str) -> str:
    """The class name as a noun phrase: `goldfish` → `a goldfish`, `orange` → `an orange`."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


class MixedRows(NamedTuple):
    """Rows of one batch: for each, which source it comes from, the image and the caption (source-local indices)."""

    images: np.ndarray
    groups: np.ndarray
    template: np.ndarray
    mirrored: np.ndarray


def mixed_batches(
    sources: Sequence[CaptionedImages],
    rows: Sequence[int],
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
        seed: of the orders and of the templates drawn.
        num_templates: templates to draw from.
        start_batch: the number of the first batch.

    Yields:
        Rows whose `groups` number the distinct captions over all sources, in the order of `sources`.
    """
    offsets = np.cumsum([0] + [len(s.captions) for s in sources[:-1]])
    orders: dict[tuple[int, int], np.ndarray] = {}

    def order(which: int, epoch: int) -> np.ndarray:
        if (which, epoch) not in orders:
            for old in [key for key in orders if key[0] == which and key[1] < epoch - 1]:
                del orders[old]
            rng = np.random.default_rng([seed, which, epoch])
            orders[which, epoch] = rng.permutation(len(sources[which].images))
        return orders[which, epoch]

    batch = start_batch
    while True:
        picked = []
        for which, (source, count) in enumerate(zip(sources, rows, strict=True)):
            size = len(source.images)
            positions = batch * count + np.arange(count)
            picked.append([order(which, p // size)[p % size] for p in positions.tolist()])
        template = np.random.default_rng([seed, len(sources), batch]).integers(num_templates, size=sum(rows))
        yield MixedRows(
            np.concatenate([s.images[i] for s, i in zip(sources, picked, strict=True)]),
            np.concatenate([s.caption_index[i] + o for s, i, o in zip(sources, picked, offsets, strict=True)]).astype(
                np.int32
            ),
            template.astype(np.int32),
            np.repeat([s.mirrored for s in sources], rows),
        )
        batch += 1

"""Captioned images for contrastive pre-training: the synthetic world, and labelled natural images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tajax.data.memory import ready
from tajax.data.phrases import phrasings
from tajax.data.sources import ArraySource, RecordSource


class CaptionedImages(NamedTuple):
    """Images of classes, each of which several phrases describe.

    Attributes:
        name: of the source.
        images: uint8 [N, H, W, 3].
        phrases: for each class, what may be said of its images, without a template around it.
        labels: int32 [N], the class of each image.
        mirrored: whether a mirrored image still fits what is said of it (not for letters and arrows).
        skipped: how many images could not be read and were left out.
    """

    name: str
    images: np.ndarray
    phrases: tuple[tuple[str, ...], ...]
    labels: np.ndarray
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
    phrases = tuple((str(caption),) for caption in distinct)
    return CaptionedImages("scenes", images, phrases, index.astype(np.int32), mirrored=False)


def load_natural(path: str | Path, *, on_bad_image: str = "error") -> list[CaptionedImages]:
    """Labelled natural images kept as JPEG bytes in one `.npz`, one entry for each source they come from.

    Captions are made of the class names, as `tajax.data.phrases` has it.

    Args:
        path: a file with `train_jpeg` (uint8, all files one after the other), `train_offsets` [N + 1],
            `train_labels` [N] and `class_names`. It may say of each image where it comes from, `train_source` [N] and
            `source_names`, and whether a mirrored one still fits its name, `train_mirror` [N]; without them all are of
            one source and may be mirrored.
        on_bad_image: "error", or "skip" to leave unreadable images out with a warning that counts them.

    Returns:
        The training images, decoded; images of a source that differ in whether they may be mirrored are two entries.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an array is missing or of another length; images that cannot be read, counted and named, or of
            differing sizes; a label or source without a name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"natural images for pre-training: no file {path}")
    with np.load(path, allow_pickle=False) as arrays:
        missing = {"train_jpeg", "train_offsets", "train_labels", "class_names"} - set(arrays.files)
        if missing:
            raise ValueError(f"{path} lacks {sorted(missing)}; it has {sorted(arrays.files)}")
        jpeg, offsets = arrays["train_jpeg"], arrays["train_offsets"]
        labels, names = arrays["train_labels"], [str(name) for name in arrays["class_names"]]
        count = len(labels)
        origin = arrays["train_source"] if "train_source" in arrays else np.zeros(count, np.int32)
        mirror = arrays["train_mirror"] if "train_mirror" in arrays else np.ones(count, bool)
        sources = [str(name) for name in arrays["source_names"]] if "source_names" in arrays else [path.stem]
    lengths = {"labels": count, "offsets": count + 1, "source": count, "mirror": count}
    for (name, want), array in zip(lengths.items(), (labels, offsets, origin, mirror), strict=True):
        if array.shape != (want,):
            raise ValueError(
                f"{path}: train_{name} has shape {array.shape}, want ({want},) as train_labels has {count}"
            )
        if array.dtype.kind not in "biu":
            raise ValueError(f"{path}: train_{name} has dtype {array.dtype}, want whole numbers")
    if not count:
        raise ValueError(f"{path} has no images: train_labels is empty")
    of = {"labels": (labels, "class_names", len(names)), "source": (origin, "source_names", len(sources))}
    for name, (array, table, size) in (of | {"mirror": (mirror, "true and false", 2)}).items():
        if not 0 <= array.min() <= array.max() < size:
            raise ValueError(f"{path}: train_{name} has {array.min()} to {array.max()}, {table} has {size}")
    files = (jpeg[a:b].tobytes() for a, b in zip(offsets[:-1], offsets[1:], strict=True))
    records = [{"image": file, "label": row} for row, file in enumerate(files)]
    encoded = RecordSource(records, "image", "label", count, str(path))  # rows as labels: they say what was left out
    source, _ = ready(encoded, preprocessing=None, where=str(path), on_bad_image=on_bad_image, memory_bytes=sys.maxsize)
    assert isinstance(source, ArraySource)  # as all of it may be kept in memory
    if not isinstance(source.images, np.ndarray):
        sizes = sorted({image.shape for image in source.images})
        raise ValueError(f"images of {path} have {len(sizes)} sizes, such as {sizes[0]} and {sizes[-1]}; want one")
    kept = source.labels
    labels, origin, mirror = labels[kept], origin[kept], mirror[kept].astype(bool)
    found = []
    for number, name in enumerate(sources):
        for mirrored in (True, False):
            rows = np.flatnonzero((origin == number) & (mirror == mirrored))
            if len(rows):
                present, index = np.unique(labels[rows], return_inverse=True)
                phrases = tuple(phrasings(names[label]) for label in present)
                found.append(CaptionedImages(name, source.images[rows], phrases, index.astype(np.int32), mirrored))
    return [found[0]._replace(skipped=count - len(kept)), *found[1:]]

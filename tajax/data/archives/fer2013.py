"""FER2013, faces with seven expressions, in any of the forms in which it is handed around.

- `fer2013.csv` of the official archive, or `icml_face_data.csv`: columns emotion, Usage and pixels, which are 48 × 48
  grey values in one cell;
- `train.csv` and `test.csv` with the columns emotion and pixels (the competition's own `test.csv` has no emotions);
- folders `train/angry/*.jpg` and `test/angry/*.jpg`.

The test split is PublicTest and PrivateTest together, 7,178 images, as in the folders and in the twenty-task suite.

Source: Goodfellow et al. 2013, "Challenges in representation learning".
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from tajax.data.archives.official import (
    Examples,
    Found,
    OfficialArchives,
    Part,
    check_every_class,
    check_label,
    labelled_images,
)
from tajax.data.archives.stores import BadArchiveError, describe, read
from tajax.data.builders.datasets import encode_png

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # index = the official number
SIZE = 48  # pixels a side
_DIRECTORIES = {name: label for label, name in enumerate(CLASSES)} | {
    "anger": 0, "disgusted": 1, "fearful": 2, "happiness": 3, "sadness": 4, "surprised": 5,
}  # fmt: skip
_USAGE = {"Training": "train", "PublicTest": "test", "PrivateTest": "test"}
_WHOLE = (r"fer2013\.csv", r"icml_face_data\.csv")  # one table with both splits
_FORMS = 4  # these two, a table a split, a folder a split


def _part(split: str) -> Part:
    return Part(
        f"{split} images: fer2013.csv, icml_face_data.csv, {split}.csv with emotions, or {split}/angry/*.jpg",
        (*_WHOLE, rf"{split}\.csv", rf"{split}/([^/]+)/([^/]+\.(?:png|jpe?g))"),
        "fer2013.tar.gz",
    )


class TajaxFer2013(OfficialArchives):
    """Seven expressions of grey faces, 28,709 images for training and 7,178 for testing."""

    VERSION = tfds.core.Version("1.0.0")
    PLACE = re.compile(
        r"fer[-_]?2013|icml_face_data|challenges-in-representation-learning-facial-expression", re.IGNORECASE
    )
    DIRECTORY = "fer2013"
    PARTS = {split: _part(split) for split in ("train", "test")}
    SOURCE = (
        "It needs a login at https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-"
        "recognition-challenge/data."
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = SOURCE

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format="png")
        label = tfds.features.ClassLabel(names=CLASSES)
        return self.described(
            image,
            label,
            homepage="https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
        )

    def _splits(self, found: Mapping[str, Found]) -> dict[str, Examples]:
        if len({place.pattern for place in found.values()}) > 1:
            forms = " and ".join(describe(place.store, place.name) for place in found.values())
            raise BadArchiveError(f"FER2013 lies here in two forms, {forms}: keep one of them")
        if found["train"].pattern == _FORMS - 1:
            return {split: labelled_images(place.store, _folder_labels(place)) for split, place in found.items()}
        return {split: _table_examples(place, split) for split, place in found.items()}


def _folder_labels(found: Found) -> dict[str, int]:
    labels = {}
    for name, (directory, _) in found.matches.items():
        if directory.lower() not in _DIRECTORIES:
            where = describe(found.store, name)
            raise BadArchiveError(f"{where} lies in {directory!r}; the expressions are {', '.join(CLASSES)}")
        labels[name] = _DIRECTORIES[directory.lower()]
    check_every_class(labels, CLASSES, f"the split of {describe(found.store, found.name)}")
    return labels


def _table_examples(found: Found, split: str) -> Examples:
    """The rows of a split."""
    where, whole = describe(found.store, found.name), found.pattern < len(_WHOLE)
    count = 0
    for line, row in _rows(read(found.store, found.name), where, usage=whole):
        place = f"{where} line {line}"
        label = check_label(row["emotion"], len(CLASSES), place)
        usage = (row["usage"] or "").strip() if whole else ""
        if whole and usage not in _USAGE:
            raise BadArchiveError(f"{place} has Usage {usage!r}; expected one of {', '.join(_USAGE)}")
        if not whole or _USAGE[usage] == split:
            count += 1
            yield f"{line:05d}", {"image": encode_png(_pixels(row["pixels"], place)), "label": label}
    if not count:
        raise BadArchiveError(f"{where} has no row of the {split} split")


def _rows(content: bytes, where: str, *, usage: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with their lines; names of columns in small letters, without the spaces some releases have."""
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")  # decodes as it goes: 300 MB
    reader = csv.DictReader(text)
    try:
        columns = [column.strip().lower() for column in reader.fieldnames or ()]
        lacking = [column for column in ("emotion", "pixels", *(["usage"] if usage else [])) if column not in columns]
        if lacking:
            raise BadArchiveError(
                f"{where} lacks the column {' and '.join(lacking)}; it has {', '.join(columns) or 'none'}. The "
                "competition's own test.csv hides the emotions: take fer2013.csv or icml_face_data.csv, which have all."
            )
        reader.fieldnames = columns
        for row in reader:
            yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadArchiveError(f"{where} cannot be read after line {reader.line_num}: {error}") from error


def _pixels(cell: str | None, place: str) -> np.ndarray:
    """The picture in a cell, uint8 [48, 48]."""
    words = (cell or "").split()
    try:
        values = np.array(words, np.int64)
    except (ValueError, OverflowError) as error:
        raise BadArchiveError(f"{place} has pixels that are no whole numbers: {error}") from error
    if values.size != SIZE * SIZE:
        raise BadArchiveError(f"{place} has {values.size} pixels; expected {SIZE} × {SIZE} = {SIZE * SIZE}")
    if values.min() < 0 or values.max() > 255:
        raise BadArchiveError(f"{place} has pixels from {values.min()} to {values.max()}; expected 0 to 255")
    return values.astype(np.uint8).reshape(SIZE, SIZE)

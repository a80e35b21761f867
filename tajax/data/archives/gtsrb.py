"""GTSRB, the German Traffic Sign Recognition Benchmark, from its official archives.

Training images lie in a directory a class with one CSV each, test images in one directory with one CSV; columns are
separated by semicolons. Whole images are used, as in the protocol, and not the boxes of the signs that the CSVs give.

Two training sets were published. The protocol's is `GTSRB-Training_fixed.zip` with 26,640 images in `GTSRB/Training`
(the one of the online competition, which torchvision and the papers' code load); `GTSRB_Final_Training_Images.zip` with
39,209 images in `GTSRB/Final_Training/Images` holds these and the online competition's test images. If both are there,
the protocol's is used.

Source: Stallkamp et al. 2012, "Man vs. computer: benchmarking machine learning algorithms for traffic sign
recognition".
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import numpy as np
import tensorflow_datasets as tfds

from tajax.data.archives.official import Examples, Found, OfficialArchives, Part, check_label, labelled_images
from tajax.data.archives.stores import BadArchiveError, Store, check_plain, describe, read
from tajax.data.builders.datasets import encode_png

logger = logging.getLogger(__name__)

CLASSES = tuple(f"{number:05d}" for number in range(43))  # names of the training directories
_ADDRESS = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
_CLASS_FILE = r"(\d+)/([^/]+\.(?:ppm|csv))"


def _part(what: str, patterns: tuple[str, ...], file: str, md5: str) -> Part:
    return Part(what, patterns, file, _ADDRESS + file, md5)


class TajaxGtsrb(OfficialArchives):
    """43 classes of German traffic signs, 26,640 images for training and 12,630 for testing."""

    VERSION = tfds.core.Version("1.0.0")
    PLACE = re.compile(r"gtsrb|gt-final_test", re.IGNORECASE)
    DIRECTORY = "gtsrb"
    PARTS = {
        "train": _part(
            "training images GTSRB/Training/00000/*.ppm to 00042 with GT-00000.csv in each directory",
            (rf"Training/{_CLASS_FILE}", rf"Final_Training/Images/{_CLASS_FILE}"),
            "GTSRB-Training_fixed.zip",
            "513f3c79a4c5141765e10e952eaa2478",
        ),
        "test": _part(
            "test images GTSRB/Final_Test/Images/*.ppm",
            (r"Final_Test/Images/([^/]+\.ppm)",),
            "GTSRB_Final_Test_Images.zip",
            "c7e4e6327067d32654124b0fe9e82185",
        ),
        "labels": _part(
            "labels of the test images, GT-final_test.csv (GT-final_test.test.csv has none)",
            (r"GT-final_test\.csv",),
            "GTSRB_Final_Test_GT.zip",
            "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
        ),
    }
    RELEASES = (
        "26,640 training images are those of GTSRB-Training_fixed.zip, which the papers used; 39,209 those of "
        "GTSRB_Final_Training_Images.zip."
    )
    SOURCE = "All three are public and are downloaded by themselves where there is a network."
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The three archives of tajax.data.archives.gtsrb, as they are or unpacked."

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        label = tfds.features.ClassLabel(names=CLASSES)
        return self.described(image, label, homepage="https://benchmark.ini.rub.de/")

    def _splits(self, found: Mapping[str, Found]) -> dict[str, Examples]:
        train, test, labels = found["train"], found["test"], found["labels"]
        if train.pattern:
            logger.warning("GTSRB is prepared from the final training set in %s. %s", train.store.path, self.RELEASES)
        return {
            "train": labelled_images(train.store, _train_labels(train), convert=_png),
            "test": labelled_images(test.store, _test_labels(test, labels), convert=_png),
        }


def _png(image: object) -> io.BytesIO:
    return encode_png(np.asarray(image))


def _train_labels(train: Found) -> dict[str, int]:
    """Label of each training image: its directory's number, with which the directory's CSV has to agree."""
    images: dict[str, dict[str, str]] = {}  # directory → file name → name in the store
    tables: dict[str, str] = {}
    for name, (_, file) in train.matches.items():
        directory = str(PurePosixPath(name).parent)
        if file.lower().endswith(".csv"):
            tables[directory] = name
        else:
            images.setdefault(directory, {})[file] = name
    labels: dict[str, int] = {}
    for directory in sorted(images.keys() | tables.keys()):
        number, where = PurePosixPath(directory).name, describe(train.store, directory)
        label = check_label(number, len(CLASSES), f"directory {where}")
        if directory not in tables:
            raise BadArchiveError(f"directory {where} has no GT-{number}.csv: unpack the archive anew")
        labels |= _listed(train.store, tables[directory], images.get(directory, {}), label)
    absent = sorted(set(range(len(CLASSES))) - set(labels.values()))
    if absent:
        missing = ", ".join(CLASSES[label] for label in absent[:5])
        raise BadArchiveError(f"the training images in {train.store.path} lack {len(absent)} of 43 classes: {missing}")
    return labels


def _test_labels(test: Found, labels: Found) -> dict[str, int]:
    return _listed(labels.store, labels.name, {file: name for name, (file,) in test.matches.items()}, None)


def _listed(store: Store, table: str, images: Mapping[str, str], directory_label: int | None) -> dict[str, int]:
    """Name in the store → label of the images of one CSV; exactly the images that are there have to be listed."""
    labels: dict[str, int] = {}
    seen: dict[str, str] = {}
    for where, row in _rows(store, table):
        file = check_plain(row["Filename"].strip(), where)
        label = check_label(row["ClassId"], len(CLASSES), where)
        if directory_label is not None and label != directory_label:
            raise BadArchiveError(f"{where} gives {file} class {label}, but it lies in directory {directory_label:05d}")
        if file not in images:
            raise BadArchiveError(f"{where} names the image {file}, which is not there: fetch or unpack it anew")
        if file in seen:
            raise BadArchiveError(f"{where} names the image {file} a second time, first in {seen[file]}")
        seen[file] = where
        labels[images[file]] = label
    unlisted = sorted(images.keys() - seen.keys())
    if unlisted:
        raise BadArchiveError(
            f"{len(unlisted)} images are not listed in {describe(store, table)}: {', '.join(unlisted[:3])}. "
            "Remove what does not belong there, or fetch the CSV anew."
        )
    return labels


def _rows(store: Store, table: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV, each with its place for messages."""
    where = describe(store, table)
    try:
        text = read(store, table).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadArchiveError(f"{where} is not text: {error}") from error
    reader = csv.DictReader(text.splitlines(), delimiter=";", skipinitialspace=True)
    lacking = [column for column in ("Filename", "ClassId") if column not in (reader.fieldnames or ())]
    if lacking:
        raise BadArchiveError(
            f"{where} lacks the column {' and '.join(lacking)}; it has {', '.join(reader.fieldnames or ('none',))}, "
            "separated by semicolons"
        )
    for row in reader:
        place = f"{where} line {reader.line_num}"
        if row["Filename"] is None or row["ClassId"] is None:
            raise BadArchiveError(f"{place} is incomplete: {';'.join(str(cell) for cell in row.values() if cell)}")
        yield place, row

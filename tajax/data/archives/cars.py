"""Stanford Cars from its official archives, whose addresses are dead, or from a mirror in the same layout.

`cars_train/*.jpg` and `cars_test/*.jpg` with annotations in MATLAB files: `cars_meta.mat` has the 196 class names,
`cars_train_annos.mat` and `cars_test_annos_withlabels.mat` file names and classes from 1. Mirrors nest the directories
once more (`cars_train/cars_train/*.jpg`), which is the same here. Whole images are used, as in the protocol.

Source: Krause et al. 2013, "3D object representations for fine-grained categorization".
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from tajax.data.archives.official import Examples, Found, OfficialArchives, Part, check_label, labelled_images
from tajax.data.archives.stores import BadArchiveError, check_plain, describe, read

NUM_CLASSES = 196


class TajaxCars(OfficialArchives):
    """196 makes, models and years of cars, 8,144 images for training and 8,041 for testing."""

    VERSION = tfds.core.Version("1.0.0")
    PLACE = re.compile(r"stanford[-_ ]?cars?|cars?[-_]|cars?(196)?(\.|$)|devkit", re.IGNORECASE)
    DIRECTORY = "stanford_cars"
    PARTS = {
        "train": Part("training images cars_train/*.jpg", (r"cars_train/([^/]+\.jpe?g)",), "cars_train.tgz"),
        "test": Part("test images cars_test/*.jpg", (r"cars_test/([^/]+\.jpe?g)",), "cars_test.tgz"),
        "names": Part("class names devkit/cars_meta.mat", (r"cars_meta\.mat",), "car_devkit.tgz"),
        "train_labels": Part(
            "training labels devkit/cars_train_annos.mat", (r"cars_train_annos\.mat",), "car_devkit.tgz"
        ),
        "test_labels": Part(
            "test labels cars_test_annos_withlabels.mat (the devkit's cars_test_annos.mat has none)",
            (r"cars_test_annos_withlabels[^/]*\.mat", r"cars_test_annos\.mat"),
            "cars_test_annos_withlabels.mat",
        ),
    }
    SOURCE = (
        "The publisher's site is gone. Mirrors: images at https://www.kaggle.com/datasets/jessicali9530/"
        "stanford-cars-dataset, the devkit at https://github.com/pytorch/vision/files/11644847/car_devkit.tgz, the "
        "test labels as in https://github.com/pytorch/vision/issues/7545#issuecomment-1631441616."
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = SOURCE

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        label = tfds.features.ClassLabel(num_classes=NUM_CLASSES)  # names come from cars_meta.mat
        return self.described(image, label, homepage="https://ai.stanford.edu/~jkrause/cars/car_dataset.html")

    def _splits(self, found: Mapping[str, Found]) -> dict[str, Examples]:
        names = _class_names(found["names"])
        train, test = (_labels(found[split], found[f"{split}_labels"]) for split in ("train", "test"))
        self.info.features["label"].names = names
        return {
            "train": labelled_images(found["train"].store, train),
            "test": labelled_images(found["test"].store, test),
        }


def _variable(found: Found, key: str) -> np.ndarray:
    """One variable of a MATLAB file, as an array of at least one dimension."""
    where = describe(found.store, found.name)
    try:
        variables = scipy.io.loadmat(io.BytesIO(read(found.store, found.name)), squeeze_me=True)
    except BadArchiveError:
        raise
    except Exception as error:  # SciPy meets damaged files with errors of every kind
        raise BadArchiveError(f"{where} is not a readable MATLAB file ({error}): fetch it anew") from error
    if key not in variables:
        present = ", ".join(name for name in variables if not name.startswith("__")) or "nothing"
        raise BadArchiveError(f"{where} has no variable {key!r}; it has {present}")
    return np.atleast_1d(variables[key])


def _class_names(found: Found) -> list[str]:
    names = [str(name) for name in _variable(found, "class_names")]
    if len(names) != NUM_CLASSES or len(set(names)) != NUM_CLASSES:
        raise BadArchiveError(
            f"{describe(found.store, found.name)} has {len(names)} class names, {len(set(names))} of them distinct; "
            f"expected {NUM_CLASSES}"
        )
    return names


def _labels(images: Found, annotations: Found) -> dict[str, int]:
    """Name in the store → label of the annotated images."""
    where = describe(annotations.store, annotations.name)
    rows = _variable(annotations, "annotations")
    fields = rows.dtype.names or ()
    if "class" not in fields:
        raise BadArchiveError(
            f"{where} has no classes, only {', '.join(fields) or 'no fields'}. The test images need "
            "cars_test_annos_withlabels.mat, a file beside the devkit and not in it."
        )
    if "fname" not in fields:
        raise BadArchiveError(f"{where} has no file names (fname), only {', '.join(fields)}")
    present: dict[str, str] = {}
    for name, (file,) in images.matches.items():
        present.setdefault(file, name)
    labels: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        place = f"{where} row {number}"
        file = check_plain(str(row["fname"]), place)
        label = check_label(row["class"], NUM_CLASSES, place, first=1)
        if file not in present:
            raise BadArchiveError(
                f"{place} names the image {file}, which is not among the {len(present)} beside "
                f"{describe(images.store, images.name)}. Annotations and images must be of one release."
            )
        if present[file] in labels:
            raise BadArchiveError(f"{place} names the image {file} a second time")
        labels[present[file]] = label
    return labels

"""Rendered SST2, OpenAI's pictures of sentences that praise or blame, from the official archive.

`rendered-sst2/{train,valid,test}/{negative,positive}/*.png`.

Source: Radford et al. 2021, appendix A.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import tensorflow_datasets as tfds

from tajax.data.archives.official import (
    Examples,
    Found,
    OfficialArchives,
    Part,
    check_every_class,
    labelled_images,
)
from tajax.data.archives.stores import BadArchiveError, describe

CLASSES = ("negative", "positive")
_SPLITS = {"train": "train", "validation": "valid", "test": "test"}  # as TFDS names them: as the archive does


def _part(directory: str) -> Part:
    return Part(
        f"images rendered-sst2/{directory}/negative/*.png and …/positive/*.png",
        (rf"{directory}/([^/]+)/([^/]+\.png)",),
        "rendered-sst2.tgz",
        "https://openaipublic.azureedge.net/clip/data/rendered-sst2.tgz",
        "2384d08e9dcfa4bd55b324e610496ee5",
    )


class TajaxRenderedSst2(OfficialArchives):
    """Sentences of film reviews as pictures, negative or positive: 6,920 for training, 872 and 1,821 for testing."""

    VERSION = tfds.core.Version("1.0.0")
    PLACE = re.compile(r"rendered[-_]?sst2", re.IGNORECASE)
    DIRECTORY = "rendered-sst2"
    PARTS = {split: _part(directory) for split, directory in _SPLITS.items()}
    SOURCE = "The archive is public and is downloaded by itself where there is a network."
    MANUAL_DOWNLOAD_INSTRUCTIONS = "rendered-sst2.tgz of tajax.data.archives.rendered_sst2, as it is or unpacked."

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        label = tfds.features.ClassLabel(names=CLASSES)
        return self.described(image, label, homepage="https://github.com/openai/CLIP/blob/main/data/rendered-sst2.md")

    def _splits(self, found: Mapping[str, Found]) -> dict[str, Examples]:
        labels = {split: _labels(found[split]) for split in _SPLITS}
        return {split: labelled_images(found[split].store, labels[split]) for split in _SPLITS}


def _labels(found: Found) -> dict[str, int]:
    labels = {}
    for name, (directory, _) in found.matches.items():
        if directory not in CLASSES:
            where = describe(found.store, name)
            raise BadArchiveError(f"{where} lies in {directory!r}; the classes are {' and '.join(CLASSES)}")
        labels[name] = CLASSES.index(directory)
    check_every_class(labels, CLASSES, f"the split of {describe(found.store, found.name)}")
    return labels

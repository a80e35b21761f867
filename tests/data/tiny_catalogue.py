"""Tiny data sets in exactly the format of TFDS's builders: their features, class names and splits, few pictures."""

import io
from dataclasses import replace

import tensorflow_datasets as tfds
from PIL import Image

from tajax.data.manifests import SplitRule
from tests.data.conftest import encoded, picture

IMAGES = {"train": 24, "test": 9, "validation": 7, "extra": 5, "unlabelled": 5}


def tiny_rule(rule: SplitRule) -> SplitRule:
    """The same with five files a class and one of each class where the rule takes hundreds."""
    return replace(rule, files=dict.fromkeys(rule.files, 5), take=dict.fromkeys(rule.take, 1))


def write_tiny(row, data_dir, monkeypatch):
    """A tiny data set with the features and class names of the row's builder, in TFDS's own format.

    Splits that the row does not use are written, too: they must not show up.
    """
    builder_class = tfds.builder_cls(row.tfds.split("/")[0])
    files = [
        (row.manifest.pattern.format(name=name, number=number), label)
        for label, name in enumerate(row.class_names)
        for number in range(1, 6)
        if row.manifest
    ]
    sizes = {"train": len(files)} if files else IMAGES

    def value(key, feature, split, index):
        label = files[index][1] if files else index % len(row.class_names)
        if isinstance(feature, tfds.features.Image):
            image = drawn(split, index)
            return io.BytesIO(encoded(image.convert("L") if feature.shape[-1] == 1 else image))
        if isinstance(feature, tfds.features.BBoxFeature):
            return tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
        if isinstance(feature, tfds.features.ClassLabel):
            return label if key == "label" else 0
        return files[index][0] if key == "filename" else f"{split}_{index}"

    def split_generators(self, *_):
        features = self.info.features
        if features["label"].names[0] == "0":  # CIFAR and STL: the names come from the archive
            features["label"].names = list(row.class_names)
        return {split: examples(features, split, count) for split, count in sizes.items()}

    def examples(features, split, count):
        for index in range(count):
            yield f"{split}_{index}", {key: value(key, feature, split, index) for key, feature in features.items()}

    monkeypatch.setattr(builder_class, "_split_generators", split_generators)
    tfds.builder(row.tfds, data_dir=data_dir).download_and_prepare(file_format="array_record")


def drawn(split: str, index: int) -> Image.Image:
    return picture(100 * list(IMAGES).index(split) + index, width=12, height=12)

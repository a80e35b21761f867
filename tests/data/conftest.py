"""Small tasks of every kind, made on the spot: arrays, folders, a TFDS data set of our own."""

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tajax.types import Preprocessing

SIZES = ((40, 30), (25, 60), (32, 32), (90, 33))  # width, height of the pictures in folders


def picture(number: int, *, width: int = 32, height: int = 32) -> Image.Image:
    """A picture that no other number has, smooth enough for JPEG."""
    rng = np.random.Generator(np.random.Philox(number))
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """The picture as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture
def preprocessing() -> Preprocessing:
    """Of a model for 32 pixels."""
    return Preprocessing(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """The contents of a sound .npz file: 40 training and 11 test images of 3 classes."""
    rng = np.random.Generator(np.random.Philox(0))
    return {
        "train_images": rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8),
        "train_labels": np.arange(40, dtype=np.int16) % 3,
        "test_images": rng.integers(0, 256, (11, 32, 32, 3), dtype=np.uint8),
        "test_labels": np.arange(11, dtype=np.int16) % 3,
        "class_names": np.array(["red_fox", "owl", "hare"]),
    }


@pytest.fixture
def npz(tmp_path, arrays) -> Path:
    """`arrays` as a file."""
    np.savez(tmp_path / "animals.npz", **arrays)
    return tmp_path / "animals.npz"


@pytest.fixture
def folder(tmp_path) -> Path:
    """24 training and 9 test images of 2 classes, of several sizes and formats."""
    root = tmp_path / "birds"
    number = 0
    for split, count in (("train", 12), ("test", 5)):
        for name in ("barn_owl", "wren"):
            (root / split / name).mkdir(parents=True)
            for index in range(count - (split == "test" and name == "wren")):
                kind = ("PNG", "JPEG", "BMP", "WEBP")[index % 4]
                width, height = SIZES[number % len(SIZES)]
                path = root / split / name / f"{index:02d}.{kind.lower()}"
                path.write_bytes(encoded(picture(number, width=width, height=height), kind))
                number += 1
    return root


class PipelineSample(tfds.core.GeneratorBasedBuilder):
    """What the TFDS catalogue can hold: usual splits, one split, hidden labels, no image at all."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {
        "usual": {"train": 25, "test": 7},
        "whole": {"train": 30},
        "checked": {"train": 12, "validation": 5},
        "hidden": {"train": 12, "test": 6},
        "truncated": {"train": 12, "test": 6},
    }
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SPLITS]

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(None, None, 3)),
            "kind": tfds.features.ClassLabel(names=["palm_tree", "/s/sea/rocky"]),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS[self.builder_config.name]}

    def _generate_examples(self, split):
        for index in range(self.SPLITS[self.builder_config.name][split]):
            data = encoded(picture(100 * len(split) + index, width=36), ("PNG", "JPEG")[index % 2])
            hidden = self.builder_config.name == "hidden" and split == "test"
            if self.builder_config.name == "truncated" and index in (3, 8):
                data = data[: len(data) // 2]
            yield index, {"picture": io.BytesIO(data), "kind": -1 if hidden else index % 2, "id": str(index)}


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory) -> Path:
    """A data directory with every config of `pipeline_sample`."""
    directory = tmp_path_factory.mktemp("catalogue")
    tfds.display_progress_bar(False)
    for name in PipelineSample.SPLITS:
        PipelineSample(config=name, data_dir=directory).download_and_prepare(file_format="array_record")
    return directory

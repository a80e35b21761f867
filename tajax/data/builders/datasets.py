"""The TFDS builders: captioned scenes, and (soon) the bundled tasks; PNG in array_record files, written without TensorFlow."""

from __future__ import annotations

import contextlib
import difflib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from tajax.data.builders.drawing import SIZE
from tajax.data.builders.scenes import render_scene

SCENE_SIZES = {"large": {"train": 120_000, "val": 2_000}, "small": {"train": 2_000, "val": 200}}
SCENE_SEEDS = {"train": 0, "val": 1}

Examples = Iterator[tuple[int, dict[str, object]]]


def encode_png(picture: np.ndarray) -> io.BytesIO:
    """The picture as a PNG file object, which is what TFDS stores without TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    file.seek(0)
    return file


class TajaxScenes(tfds.core.GeneratorBasedBuilder):
    """Captioned scenes of the synthetic world: `large` for pre-training, `small` for tests."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=f"{sizes['train']} training scenes")
        for name, sizes in SCENE_SIZES.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                    "caption": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        return {split: self._generate_examples(split) for split in SCENE_SEEDS}

    def _generate_examples(self, split: str) -> Examples:
        for index in range(SCENE_SIZES[self.builder_config.name][split]):
            picture, caption = render_scene(index, SCENE_SEEDS[split])
            yield index, {"image": encode_png(picture), "caption": caption}


BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {"tajax_scenes": TajaxScenes}


def prepare(name: str, *, data_dir: str | Path, quiet: bool = True) -> tfds.core.DatasetBuilder:
    """A builder of ours whose data are in `data_dir`, generated there first if they are not.

    TFDS writes into a temporary directory and renames it at the end, so an interrupted run leaves nothing half done.

    Args:
        name: a key of `BUILDERS`, or `"name/config"`, such as `"tajax_scenes/small"`.
        data_dir: where TFDS keeps prepared data sets.
        quiet: without TFDS's messages and progress bars.

    Returns:
        The builder, ready for `.as_data_source(split)`.

    Raises:
        ValueError: the name is none of ours, or the config is none of the builder's.
    """
    family, _, config = name.partition("/")
    if family not in BUILDERS:
        near = difflib.get_close_matches(family, BUILDERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"bundled data set {name!r} does not exist; choose from {sorted(BUILDERS)}.{hint}")
    configs = tuple(BUILDERS[family].builder_configs)
    if config and config not in configs:
        raise ValueError(f"{family} has no config {config!r}; choose from {configs}")
    builder = BUILDERS[family](data_dir=str(data_dir), config=config or None, file_format="array_record")
    if builder.is_prepared():
        return builder
    with contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            tfds.display_progress_bar(False)
            stack.callback(tfds.display_progress_bar, True)
        builder.download_and_prepare()
    return builder

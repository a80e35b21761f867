"""The TFDS builders of the synthetic world: PNG in array_record files, written without TensorFlow."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from tajax.data import preparation
from tajax.data.builders import tasks
from tajax.data.builders.drawing import SIZE
from tajax.data.builders.scenes import render_scene
from tajax.data.builders.tasks import TaskSpec

SCENE_SIZES = {"large": {"train": 120_000, "val": 2_000}, "small": {"train": 2_000, "val": 200}}
SCENE_SEEDS = {"train": 0, "val": 1}
_POLLED = 0.2  # seconds between looks at the child processes

Examples = Iterator[tuple[int, dict[str, object]]]


def encode_png(picture: np.ndarray) -> io.BytesIO:
    """The picture as a PNG file object, which is what TFDS stores without TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    file.seek(0)
    return file


class _TaskBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # untyped TFDS
    """What the builders of the tasks have in common: everything but the record that describes the task."""

    SPEC: TaskSpec

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png")
        label = tfds.features.ClassLabel(names=list(self.SPEC.class_names))
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The bundled task {self.SPEC.name!r} of tajax's synthetic visual world.",
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        return {split: self._generate_examples(split) for split in tasks.SPLIT_SIZES}

    def _generate_examples(self, split: str) -> Examples:
        for index in range(tasks.SPLIT_SIZES[split]):
            picture, label = tasks.render_example(self.SPEC.name, split, index)
            yield index, {"image": encode_png(picture), "label": label}


def _task_builder(spec: TaskSpec) -> type[_TaskBuilder]:
    """The builder `tajax_NAME` of a task; TFDS takes the data set's name from that of the class."""
    members = {"SPEC": spec, "VERSION": tfds.core.Version(spec.version), "__module__": __name__}
    return type(f"Tajax{spec.name.title()}", (_TaskBuilder,), members)


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


_ALL: tuple[type[tfds.core.GeneratorBasedBuilder], ...] = (TajaxScenes, *map(_task_builder, tasks.ALL.values()))
BUILDERS = {builder.name: builder for builder in _ALL}
TASK_NAMES = tuple(f"tajax_{name}" for name in tasks.SPECS)


def _builder(name: str, data_dir: str | Path) -> tfds.core.DatasetBuilder:
    family, _, config = name.partition("/")
    if family not in BUILDERS:
        near = difflib.get_close_matches(family, BUILDERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"bundled data set {name!r} does not exist; choose from {sorted(BUILDERS)}.{hint}")
    configs = tuple(BUILDERS[family].builder_configs)
    if config and config not in configs:
        raise ValueError(f"{family} has no config {config!r}; choose from {configs}")
    directory = os.path.expanduser(data_dir)  # TFDS would make a directory that is called ~
    return BUILDERS[family](data_dir=directory, config=config or None, file_format="array_record")


def prepare(name: str, *, data_dir: str | Path, quiet: bool = True) -> tfds.core.DatasetBuilder:
    """A builder of ours whose data are in `data_dir`, generated there first if they are not.

    TFDS writes into a temporary directory and renames it at the end: an interrupted run leaves nothing.

    Args:
        name: a key of `BUILDERS`, or `"name/config"`, such as `"tajax_scenes/small"`.
        data_dir: where TFDS keeps prepared data sets.
        quiet: without TFDS's messages and progress bars.

    Returns:
        The builder, ready for `.as_data_source(split)`.

    Raises:
        ValueError: the name is none of ours, or the config is none of the builder's.
    """
    builder = _builder(name, data_dir)
    if preparation.is_prepared(builder):
        return builder
    with preparation.alone(builder) as needed, contextlib.ExitStack() as stack:
        if needed and quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            tfds.display_progress_bar(False)
            stack.callback(tfds.display_progress_bar, True)
        if needed:
            builder.download_and_prepare()
    return _builder(name, data_dir)  # reads what is there now, whoever prepared it


def prepare_all(
    *, data_dir: str | Path, names: Sequence[str] = TASK_NAMES, on_each: Callable[[int], object] | None = None
) -> None:
    """Several data sets of ours in `data_dir`, those missing generated there, on up to four processors.

    Child processes only save time: whatever one of them leaves undone is done here afterwards, or fails here.

    Args:
        data_dir: where TFDS keeps prepared data sets.
        names: as for `prepare`; by default the eight tasks.
        on_each: is told how many of the missing ones are there by now.

    Raises:
        ValueError: as `prepare`.
    """
    missing = [name for name in names if not preparation.is_prepared(_builder(name, data_dir))]
    workers = max(1, min(len(missing), os.cpu_count() or 1, 4))
    command = [sys.executable, "-m", "tajax.data.builders", str(data_dir)]
    children = [
        subprocess.Popen([*command, *missing[k::workers]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for k in range(1, workers)
    ]

    def tell() -> None:
        if on_each:
            on_each(sum(preparation.is_prepared(_builder(name, data_dir)) for name in missing))

    try:
        for name in missing[::workers]:
            prepare(name, data_dir=data_dir)
            tell()
        while any(child.poll() is None for child in children):
            tell()
            time.sleep(_POLLED)
    except BaseException:
        for child in children:
            child.terminate()
        raise
    finally:
        for child in children:
            child.wait()
    tell()
    for name in missing:
        prepare(name, data_dir=data_dir)

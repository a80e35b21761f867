"""The bundled tasks: deterministic, balanced, disjoint; prepared without TensorFlow, once, whole or not at all."""

import hashlib
import io
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tajax.data.builders import datasets, prepare, prepare_all, tasks
from tajax.data.builders.colors import sample_color
from tajax.data.builders.concepts import COLORS
from tajax.data.builders.randomness import stream
from tajax.data.builders.tasks import ALL, CONTROL, SPECS, render_example

SIZES = {"train": 63, "val": 13, "test": 20}
# Mean pixel value of the first 40 training pictures by version: whoever changes pictures changes the version too.
MEANS = {
    "shapes": ("1.0.2", 76.45),
    "colors": ("1.0.0", 72.1),
    "digits": ("1.0.1", 110.94),
    "letters": ("1.0.1", 155.35),
    "textures": ("1.0.0", 110.86),
    "counting": ("1.0.1", 182.95),
    "signs": ("1.0.0", 92.87),
    "arrows": ("1.0.0", 41.39),
    "objects": ("1.0.0", 126.61),
}  # fmt: skip


def _digest(pictures):
    return hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tasks, "SPLIT_SIZES", SIZES)


@pytest.mark.parametrize("task", ALL)
def test_splits_share_no_picture(task):
    pictures = [render_example(task, split, index)[0].tobytes() for split in tasks.SPLIT_SIZES for index in range(80)]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("task", ALL)
def test_pictures_of_a_version_stay_the_same(task):
    mean = np.mean([render_example(task, "train", index)[0] for index in range(40)])
    # Tolerance: another version of Pillow's rasteriser may move single pixels, not the mean of 40 pictures.
    assert (ALL[task].version, round(mean, 2)) == (MEANS[task][0], pytest.approx(MEANS[task][1], abs=0.15))


@pytest.mark.parametrize("task", ALL)
def test_specs_describe_the_task(task):
    spec = ALL[task]
    assert spec.name == task and 2 <= len(spec.templates) <= 4
    assert all(template.count("{}") == 1 for template in spec.templates)
    picture, label = render_example(task, "test", len(spec.class_names) + 2)
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8 and label == 2


def test_control_is_every_colour_of_every_shape_and_none_of_the_eight():
    assert CONTROL.name not in SPECS and "tajax_objects" not in datasets.TASK_NAMES
    names = CONTROL.class_names
    assert len(set(names)) == 100 and (names[0], names[15]) == ("a red circle", "an orange heart")
    words = np.stack([np.mean([sample_color(stream("test", k), word) for k in range(50)], axis=0) for word in COLORS])
    for label in range(0, 100, 10):  # circles: of the colour that their names say where a ring of it shows the cloth
        middles = {}
        for figure in (0, 8):
            pictures = [render_example("objects", "train", 100 * k + label + figure)[0] for k in range(12)]
            middles[figure] = np.mean([picture[14:18, 14:18] for picture in pictures], axis=(0, 1, 2)) / 255
        distances = {figure: np.abs(words - middle).sum(axis=1) for figure, middle in middles.items()}
        assert distances[0].argmin() == label // 10
        assert distances[0][label // 10] < distances[8][label // 10]


def test_another_process_prepares_the_same_data_without_tensorflow(tmp_path):
    script = f"""
import sys, hashlib
from tajax.data.builders import prepare, tasks
tasks.SPLIT_SIZES = {SIZES}
for name in ("tajax_letters", "tajax_counting"):
    source = prepare(name, data_dir={str(tmp_path)!r}).as_data_source("test")
    pictures = sorted(example["image"].tobytes() for example in source)
    print(hashlib.sha256(b"".join(pictures)).hexdigest())
assert "tensorflow" not in sys.modules
"""
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = []
    for task in ("letters", "counting"):
        pictures = sorted(render_example(task, "test", index)[0].tobytes() for index in range(SIZES["test"]))
        expected.append(hashlib.sha256(b"".join(pictures)).hexdigest())
    assert done.stdout.split() == expected


def test_prepared_splits_are_png_balanced_and_named(small, tmp_path, capfd):
    builder = prepare("tajax_shapes", data_dir=tmp_path)
    assert builder.info.features["label"].names == list(SPECS["shapes"].class_names)
    for split, size in SIZES.items():
        source = builder.as_data_source(split)
        labels = Counter(int(source[index]["label"]) for index in range(len(source)))
        assert len(source) == size and len(labels) == 10
        assert max(labels.values()) - min(labels.values()) <= 1
    assert capfd.readouterr().out == ""


def test_preparing_again_touches_nothing(small, tmp_path):
    first = prepare("tajax_arrows", data_dir=tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    prepare("tajax_arrows", data_dir=tmp_path)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert first.as_data_source("train[:50%]")[0]["image"].shape == (32, 32, 3)


def test_an_interrupted_preparation_leaves_no_data_set(small, tmp_path, monkeypatch):
    def failing(task, split, index):
        if (split, index) == ("val", 5):
            raise KeyboardInterrupt
        return render_example(task, split, index)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "render_example", failing)
        with pytest.raises(KeyboardInterrupt):
            prepare("tajax_colors", data_dir=tmp_path)
    assert not list(tmp_path.rglob("dataset_info.json"))
    assert len(prepare("tajax_colors", data_dir=tmp_path).as_data_source("val")) == SIZES["val"]


def test_runs_that_start_together_prepare_a_data_set_once(small, tmp_path):
    with ThreadPoolExecutor(2) as together:  # a lock of one thread holds for another as for another process
        builders = list(together.map(lambda _: prepare("tajax_textures", data_dir=tmp_path), range(2)))
    assert [len(builder.as_data_source("test")) for builder in builders] == [SIZES["test"]] * 2


def test_preparing_all_does_not_depend_on_child_processes(small, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.sys, "executable", "/bin/false")
    names, seen = ("tajax_digits", "tajax_textures", "tajax_signs"), []
    prepare_all(data_dir=tmp_path, names=names, on_each=seen.append)
    assert seen[0] == 1 and seen == sorted(seen) and seen[-1] <= len(names)
    for name in names:
        assert (tmp_path / name / SPECS[name.removeprefix("tajax_")].version / "dataset_info.json").exists()


def test_scenes_are_prepared_with_their_captions(tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.SCENE_SIZES, "small", {"train": 30, "val": 10})
    source = prepare("tajax_scenes/small", data_dir=tmp_path).as_data_source("val")
    stored = {example["image"].tobytes(): example["caption"].decode() for example in source}
    for index in range(10):
        picture, caption = datasets.render_scene(index, datasets.SCENE_SEEDS["val"])
        assert stored[picture.tobytes()] == caption


@pytest.mark.parametrize(
    ("name", "words"), [("tajax_shape", "tajax_shapes"), ("tajax_scenes/huge", "large"), ("mnist", "tajax_digits")]
)
def test_unknown_names_tell_the_choices(name, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        prepare(name, data_dir=tmp_path)


def test_png_keeps_every_pixel():
    picture, _ = render_example("colors", "train", 3)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(datasets.encode_png(picture).getvalue()))), picture)


def test_the_home_directory_is_meant_by_its_sign(small, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    builder = prepare("tajax_shapes", data_dir="~/data")
    assert builder.data_path.is_relative_to(tmp_path / "home" / "data")
    assert not list((tmp_path / "elsewhere").iterdir())

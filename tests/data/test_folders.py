"""Every entry of a folder is a split, a class or an image, or is refused, or is named."""

import builtins
import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tajax import data
from tajax.data import open_task, sources
from tests.data.conftest import PipelineSample, encoded, picture
from tests.data.test_class_names import fill

CLASSES = ("owl", "wren")


def names(task, split):
    source = task.splits[split]
    return sorted("/".join(source.describe(i).split("/")[-3:]) for i in range(len(source)))


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Validation"])
def test_a_validation_directory_is_used_by_all_its_names(tmp_path, validation):
    folder = fill(tmp_path / "birds", CLASSES, **{validation: 5})
    task = open_task(folder)
    assert task.validation == {"seed": None, "count": 10} and task.warnings == ()
    assert all(name.startswith(f"{validation}/") for name in names(task, "val"))
    shutil.rmtree(folder / "test")  # as ImageNet lies
    assert all(name.startswith(f"{validation}/") for name in names(open_task(folder), "test"))


def test_training_and_testing_are_train_and_test(tmp_path):
    folder = fill(tmp_path / "scans", CLASSES)
    (folder / "train").rename(folder / "Training")
    (folder / "test").rename(folder / "Testing")
    assert [len(open_task(folder).splits[split]) for split in ("train", "val", "test")] == [11, 1, 10]


def test_two_names_of_a_split_are_refused(tmp_path):
    folder = fill(tmp_path / "birds", CLASSES, val=1, valid=1)
    with pytest.raises(ValueError, match="birds has val and valid, which are both the val split; keep one"):
        open_task(folder)


def test_a_table_task_may_lie_in_a_folder_with_other_names(tmp_path):
    folder = fill(tmp_path / "eurosat", ["SeaLake", "Forest"])
    (folder / "train").rename(folder / "training")
    assert open_task("eurosat", data_dir=tmp_path).class_names == ("forest", "lake or sea")


def test_arrays_have_the_same_names_of_splits_and_none_is_passed_over(tmp_path, arrays):
    own = {"validation_images": arrays["test_images"][:5], "validation_labels": arrays["test_labels"][:5]}
    np.savez(tmp_path / "own.npz", **arrays, **own, notes=np.arange(3))
    task = open_task(tmp_path / "own.npz")
    assert task.validation == {"seed": None, "count": 5}
    assert task.warnings[0] == f"own: 1 arrays of {tmp_path / 'own.npz'} are not read: notes"
    np.savez(tmp_path / "own.npz", **arrays, **own, valid_images=own["validation_images"])
    with pytest.raises(ValueError, match="own.npz has valid and validation, which are both the val split"):
        open_task(tmp_path / "own.npz")


def test_splits_of_a_data_set_that_are_not_read_are_named(tmp_path):
    tfds.display_progress_bar(False)
    PipelineSample(config="usual", data_dir=tmp_path).download_and_prepare(file_format="array_record")
    info = tmp_path / "pipeline_sample" / "usual" / "1.0.0" / "dataset_info.json"
    known = json.loads(info.read_text())
    known["splits"].append(known["splits"][0] | {"name": "extra"})
    info.write_text(json.dumps(known))
    task = open_task("pipeline_sample/usual", data_dir=tmp_path)
    assert task.warnings[0] == "pipeline_sample_usual: splits of pipeline_sample/usual that are not read: extra"


@pytest.mark.parametrize(
    "kind, suffix",
    [("JPEG", ".jfif"), ("JPEG", ".JPE"), ("JPEG", ""), ("PNG", ""), ("GIF", ".gif"), ("TIFF", ".TIF"), ("PNG", ".dat")]
    + [("PPM", ".ppm"), ("WEBP", ".img"), ("BMP", ".jpg"), ("TIFF", "")],
)
def test_an_image_is_one_whatever_it_is_called(tmp_path, kind, suffix, preprocessing):
    folder = fill(tmp_path / "birds", CLASSES, val=5)
    for index in range(5):
        (folder / "train" / "owl" / f"{index}.png").unlink()
        (folder / "train" / "owl" / f"{index}{suffix}").write_bytes(encoded(picture(index), kind))
    task = open_task(folder)
    assert task.warnings == () and len(task.splits["train"]) == 12
    data.check_images(task)
    assert sum(batch.mask.sum() for batch in data.load(task, "train", batch_size=4, preprocessing=preprocessing)) == 12


def test_what_is_not_an_image_is_named_and_counted_in_one_line(tmp_path):
    folder = fill(tmp_path / "birds", CLASSES, val=5)
    for place in ("README.md", "train/owl/Thumbs.db", "train/owl/.DS_Store", "train/list.csv", "classes.txt"):
        (folder / place).write_text("P1 is no picture")
    (folder / "annotations").mkdir()
    (folder / "test" / ".ipynb_checkpoints").mkdir()
    (line,) = open_task(folder).warnings
    assert line == (
        f"birds: 7 entries of {folder} are not images of a class and left out: train/owl/Thumbs.db, "
        "train/owl/.DS_Store, train/list.csv, test/.ipynb_checkpoints, annotations/, …"
    )


@pytest.mark.parametrize("content, found", [(None, "is empty"), (b"words", "has 1.xyz, which are not images")])
def test_a_class_without_images_is_refused_by_name(tmp_path, content, found):
    folder = fill(tmp_path / "birds", CLASSES)
    (folder / "train" / "robin").mkdir()
    if content:
        (folder / "train" / "robin" / "1.xyz").write_bytes(content)
    with pytest.raises(ValueError, match=rf"1 class directories of .*train have no image: robin. .*robin {found}"):
        open_task(folder)


@pytest.mark.parametrize("suffix", [".heic", ".npy", ".NEF"])
def test_images_in_formats_that_are_not_read_are_refused(tmp_path, suffix):
    folder = fill(tmp_path / "birds", CLASSES)
    (folder / "train" / "owl" / f"photo{suffix}").write_bytes(encoded(picture(1), "TIFF"))  # raw files hold such a one
    with pytest.raises(ValueError, match=rf"photo{suffix} has a format that is not read here; convert it"):
        open_task(folder)


@pytest.mark.parametrize("kind, suffix", [("GIF", ".gif"), ("TIFF", ".tiff"), ("WEBP", ".webp"), ("PNG", ".png")])
def test_animations_and_pages_are_not_an_image(tmp_path, kind, suffix):
    folder = fill(tmp_path / "birds", CLASSES)
    several = folder / "train" / "owl" / f"several{suffix}"
    picture(0).save(several, kind, save_all=True, append_images=[picture(1), picture(2)])
    with pytest.raises(
        data.BadImageError, match=rf"several{suffix} cannot be decoded: it holds 3 images, an animation"
    ):
        data.check_images(open_task(folder))


def test_a_photograph_with_a_preview_is_one_image(tmp_path):
    photograph = tmp_path / "photo.jpg"
    picture(0).save(photograph, "MPO", save_all=True, append_images=[picture(1)])
    assert sources.decode(photograph.read_bytes(), "photo").size == (32, 32)


def test_no_file_with_an_image_suffix_is_opened_to_list_it(tmp_path, monkeypatch):
    folder = fill(tmp_path / "birds", CLASSES)
    (folder / "train" / "owl" / "0").write_bytes(encoded(picture(7)))
    opened, original = [], builtins.open
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", lambda path, *mode: opened.append(str(path)) or original(path, *mode))
        open_task(folder)
    assert opened == [str(folder / "train" / "owl" / "0")]


def unsplit(root, count=10):
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"bird_{index:02d}.png").write_bytes(encoded(picture(100 * number + index)))
    return root


def test_a_folder_without_splits_is_divided_by_class(tmp_path):
    folder = unsplit(tmp_path / "birds")
    task = open_task(folder)
    assert task.test_cut == {"seed": 0, "count": 4} and task.validation == {"seed": 0, "count": 1}
    assert np.bincount(task.splits["test"].labels).tolist() == [2, 2]
    every = [path for split in ("train", "val", "test") for path in names(task, split)]
    assert len(every) == len(set(every)) == 20
    assert task.warnings[0] == (
        "birds: without train/ and test/, 4 of 20 images, 20% of each class, are the test split (by a hash of their "
        "names, seed 0)"
    )


def test_that_cut_is_the_same_for_ever_and_everywhere(tmp_path, monkeypatch):
    # Golden: a change here changes every test figure of such a folder.
    folder = unsplit(tmp_path / "birds")
    cut = names(open_task(folder), "test")
    assert cut == [f"birds/{name}/bird_{index}.png" for name in CLASSES for index in ("04", "06")]
    scandir = os.scandir

    class Backwards:
        def __init__(self, place):
            self.entries = list(scandir(place))[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr("os.scandir", Backwards)
    assert names(open_task(folder), "test") == cut
    (folder / "crow").mkdir()  # another class, and its name before the others
    for index in range(10):
        shutil.copy(folder / "owl" / f"bird_{index:02d}.png", folder / "crow" / f"bird_{index:02d}.png")
    assert set(cut) < set(names(open_task(folder), "test"))


def test_that_cut_does_not_see_how_a_file_system_writes_accents(tmp_path):
    cuts = []
    for form in ("NFC", "NFD"):
        folder = tmp_path / form / "birds"
        for name in CLASSES:
            (folder / name).mkdir(parents=True)
            for letter in "äöüéèêçñåø":
                (folder / name / unicodedata.normalize(form, f"{letter}.png")).write_bytes(
                    encoded(picture(ord(letter)))
                )
        cuts.append([unicodedata.normalize("NFC", name) for name in names(open_task(folder), "test")])
    assert sorted(cuts[0]) == sorted(cuts[1])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: shutil.rmtree(folder / "wren"), r"lacks train/ and test/. It has the directory owl. Expected"),
        (
            lambda folder: [path.unlink() for path in list((folder / "owl").iterdir())[1:]],
            "one image cannot be divided",
        ),
        (lambda folder: (folder / "train").mkdir(), r"lacks test/. It has the directories owl, train, wren"),
        (lambda folder: (folder / "robin").mkdir(), "1 class directories of .*birds have no image: robin"),
    ],
)
def test_folders_without_splits_that_cannot_be_divided(tmp_path, change, message):
    folder = unsplit(tmp_path / "birds")
    change(folder)
    with pytest.raises(ValueError, match=message):
        open_task(folder)

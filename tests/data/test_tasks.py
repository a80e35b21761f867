"""What an entry opens as: names, splits, prompts, and the validation split that is cut from train."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tajax.config import default_config
from tajax.data import BUNDLED, TASKS, find_overlap, open_task, open_tasks
from tajax.data.prompts import GENERIC
from tajax.data.tasks import data_directory
from tests.data.conftest import encoded, picture


def pixels(source) -> list[bytes]:
    return [source[index][0].tobytes() for index in range(len(source))]


def test_validation_is_cut_from_train_and_loses_nothing(npz, arrays):
    task = open_task(npz)
    assert task.name == "animals"
    assert task.class_names == ("red fox", "owl", "hare")
    assert task.templates == GENERIC and task.epochs is None
    assert task.validation == {"seed": 0, "count": 4}
    train, val, test = (pixels(task.splits[split]) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (36, 4, 11)
    assert sorted(train + val) == sorted(image.tobytes() for image in arrays["train_images"])
    assert test == [image.tobytes() for image in arrays["test_images"]]
    stored = zip(arrays["train_images"], arrays["train_labels"], strict=True)
    label_of = {image.tobytes(): label for image, label in stored}
    for split in ("train", "val"):
        source = task.splits[split]
        assert [label_of[image] for image in pixels(source)] == source.labels.tolist()


def test_the_cut_is_the_same_for_ever(npz):
    # Golden: a change here changes every validation figure ever recorded.
    val = open_task(npz).splits["val"]
    assert [val.describe(i) for i in range(4)] == [f"{npz}: train_images[{row}]" for row in (6, 24, 29, 33)]


def test_validation_holds_at_most_5000(tmp_path, arrays):
    many = {"train_images": np.zeros((60_000, 1, 1), np.uint8), "train_labels": np.arange(60_000) % 3}
    np.savez(tmp_path / "many.npz", **{**arrays, **many})
    task = open_task(tmp_path / "many.npz")
    assert task.validation["count"] == len(task.splits["val"]) == 5000
    assert len(task.splits["train"]) == 55_000


def test_a_validation_split_of_its_own_is_kept(tmp_path, arrays):
    own = {"val_images": arrays["test_images"][:5], "val_labels": arrays["test_labels"][:5]}
    np.savez(tmp_path / "own.npz", **arrays, **own, templates=np.array(["an etching of a {}."]))
    task = open_task(tmp_path / "own.npz")
    assert task.validation == {"seed": None, "count": 5}
    assert [len(task.splits[split]) for split in ("train", "val", "test")] == [40, 5, 11]
    assert task.templates == ("an etching of a {}.",)


def test_a_folder_is_a_task(folder):
    task = open_task(folder)
    assert (task.name, task.class_names) == ("birds", ("barn owl", "wren"))
    assert [len(task.splits[split]) for split in ("train", "val", "test")] == [22, 2, 9]
    image, label = task.splits["test"][8]
    assert (image.mode, image.size, label) == ("RGB", (40, 30), 1)
    assert task.splits["test"].describe(8).endswith("test/wren/03.webp")


def test_grey_images_get_three_channels(tmp_path, arrays):
    grey = {split: arrays[split][..., 0] for split in ("train_images", "test_images")}
    np.savez(tmp_path / "grey.npz", **{**arrays, **grey})
    image = np.asarray(open_task(tmp_path / "grey.npz").splits["test"][3][0])
    np.testing.assert_array_equal(image, arrays["test_images"][3][..., :1].repeat(3, axis=-1))


def test_a_table_task_can_stand_in_the_data_directory(tmp_path):
    for number, split in enumerate(("train", "test")):
        for index, name in enumerate(("AnnualCrop", "SeaLake")):
            (tmp_path / "eurosat" / split / name).mkdir(parents=True)
            for copy in range(3):
                path = tmp_path / "eurosat" / split / name / f"{copy}.png"
                path.write_bytes(encoded(picture(10 * number + 3 * index + copy)))
    task = open_task("eurosat", data_dir=tmp_path)
    assert task.class_names == ("annual crop land", "lake or sea")
    assert task.epochs == 12 and task.templates[0] == "a centered satellite photo of {}."


@pytest.fixture
def row(monkeypatch, catalogue):
    """Puts a row into the table in place of mnist, with the two classes of `pipeline_sample/usual` where not told."""

    def put(**changes):
        names = {"palm_tree": "a palm", "/s/sea/rocky": "a rocky shore"}
        fields = {"tfds": "pipeline_sample/usual", "class_names": names} | changes
        monkeypatch.setitem(TASKS, "mnist", replace(TASKS["mnist"], **fields))
        return catalogue / "mnist"

    return put


def test_the_table_names_what_tfds_stores(row, catalogue):
    row()
    assert open_task("mnist", data_dir=catalogue).class_names == ("a palm", "a rocky shore")
    row(class_names={"Rocky sea": "a rocky shore", "PALM-TREE": "a palm", "/s/sea/rocky": "rocks"})
    with pytest.raises(ValueError, match="2 classes .'palm_tree' to '/s/sea/rocky'., and the table has 3 .'Rocky sea'"):
        open_task("mnist", data_dir=catalogue)
    row(class_names={"PALM-TREE": "a palm", "sea rocky": "a rocky shore"})  # as people and file systems write them
    assert open_task("mnist", data_dir=catalogue).class_names == ("a palm", "a rocky shore")
    row(class_names={"palm_tree": "a palm", "/s/sea/rokcy": "a rocky shore"})
    with pytest.raises(
        ValueError, match=r"1 classes of pipeline_sample/usual .*: '/s/sea/rocky'\. Did you mean '/s/sea/r"
    ):
        open_task("mnist", data_dir=catalogue)


def test_a_class_list_of_ones_own_wins_if_it_is_as_long(row, catalogue):
    folder = row(class_names={"another": "data set"})
    folder.mkdir()
    try:
        (folder / "class_names.txt").write_text("one palm\none shore\n")
        assert open_task("mnist", data_dir=catalogue).class_names == ("one palm", "one shore")
        (folder / "class_names.txt").write_text("one palm\none shore\none sea\n")
        with pytest.raises(
            ValueError, match=r"class_names.txt has 3 names, one a line, for 2 classes \('palm_tree' to"
        ):
            open_task("mnist", data_dir=catalogue)
        (folder / "class_names.txt").write_text("a palm\na_palm\n")
        with pytest.raises(ValueError, match=r"classes of .*class_names.txt share a name.*: a palm"):
            open_task("mnist", data_dir=catalogue)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "names", [("AnnualCrop", "SeaLake"), ("annual-crop land", "Lake_or_Sea"), ("annualcrop", "SEALAKE")]
)
def test_class_directories_may_be_named_as_stored_or_as_in_prompts(tmp_path, folder, names):
    shutil.move(folder, tmp_path / "eurosat")
    for split in ("train", "test"):
        for old, new in zip(("barn_owl", "wren"), names, strict=True):
            (tmp_path / "eurosat" / split / old).rename(tmp_path / "eurosat" / split / new)
    task = open_task("eurosat", data_dir=tmp_path)
    expected = dict(zip(names, ("annual crop land", "lake or sea"), strict=True))
    assert task.class_names == tuple(expected[directory] for directory in sorted(names))  # labels number directories


def test_class_directories_that_the_table_does_not_know(tmp_path, folder):
    shutil.move(folder, tmp_path / "eurosat")
    with pytest.raises(
        ValueError, match="2 classes of .*eurosat are not among the 10 of the table: 'barn_owl', 'wren'"
    ):
        open_task("eurosat", data_dir=tmp_path)
    for split in ("train", "test"):
        (tmp_path / "eurosat" / split / "barn_owl").rename(tmp_path / "eurosat" / split / "AnualCrop")
        (tmp_path / "eurosat" / split / "wren").rename(tmp_path / "eurosat" / split / "annual_crop_land")
    with pytest.raises(ValueError, match=r"'AnualCrop'\. Did you mean 'AnnualCrop'\? .*a line directory<TAB>name for"):
        open_task("eurosat", data_dir=tmp_path)
    for split in ("train", "test"):
        (tmp_path / "eurosat" / split / "AnualCrop").rename(tmp_path / "eurosat" / split / "AnnualCrop")
    with pytest.raises(ValueError, match="directories 'AnnualCrop' and 'annual_crop_land' of .* mean the same class"):
        open_task("eurosat", data_dir=tmp_path)
    (tmp_path / "eurosat" / "class_names.txt").write_text("a field\nanother field\n")
    assert open_task("eurosat", data_dir=tmp_path).class_names == ("a field", "another field")


def test_class_names_can_stand_in_a_file(folder):
    (folder / "class_names.txt").write_text("a barn owl, facing you\na wren\n")
    assert open_task(folder).class_names == ("a barn owl, facing you", "a wren")


def test_tfds_data_sets_open_by_name(catalogue):
    task = open_task("pipeline_sample/usual", data_dir=catalogue)
    assert task.name == "pipeline_sample_usual"
    assert task.class_names == ("palm tree", "sea rocky")
    assert task.validation == {"seed": 0, "count": 2}
    seen = [pixels(task.splits[split]) for split in ("train", "val")]
    expected = [picture(500 + i, width=36) for i in range(25)]
    lossless = {image.tobytes() for image in expected[::2]}  # the others are JPEG
    assert len(seen[0] + seen[1]) == 25 and lossless <= set(seen[0] + seen[1])
    assert {task.splits["test"][i][1] for i in range(7)} == {0, 1}


def test_tfds_without_a_test_split_tests_on_validation(catalogue):
    task = open_task("pipeline_sample/checked:1.0.0", data_dir=catalogue)
    assert [len(task.splits[split]) for split in ("train", "val", "test")] == [11, 1, 5]


def test_tensorflow_is_never_imported(catalogue):
    # The builder of the data set is not defined there: what is prepared opens without its code.
    code = f"""
import sys
from tajax import data
from tajax.types import Preprocessing
task = data.open_task("pipeline_sample/usual", data_dir={str(catalogue)!r})
stream = data.load(task, "test", batch_size=4, preprocessing=Preprocessing(32, (0.5,) * 3, (0.5,) * 3))
print(sum(int(batch.mask.sum()) for batch in stream), "tensorflow" in sys.modules)
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["7", "False"], done.stderr


def test_names_of_several_tasks_differ(npz, folder, tmp_path, arrays):
    assert [task.name for task in open_tasks([npz, str(folder)])] == ["animals", "birds"]
    (tmp_path / "elsewhere").mkdir()
    np.savez(tmp_path / "elsewhere" / "animals.npz", **arrays)
    with pytest.raises(ValueError, match=r"two tasks are called 'animals': .*elsewhere.*rename"):
        open_tasks([npz, tmp_path / "elsewhere" / "animals.npz"])
    with pytest.raises(ValueError, match="give a sequence of at least one entry"):
        open_tasks("mnist")
    with pytest.raises(ValueError, match="give a sequence of at least one entry"):
        open_tasks(())


def test_overlap_between_splits_is_found_in_other_formats(folder):
    assert find_overlap(open_task(folder)) == []
    source = folder / "train" / "wren" / "04.png"
    copy = folder / "test" / "barn_owl" / "copy.bmp"
    copy.write_bytes(encoded(Image.open(source), "BMP"))
    (overlap,) = find_overlap(open_task(folder))
    assert overlap.names == (str(source), str(copy))
    assert overlap.second[0] == "test" and overlap.first[0] in ("train", "val")


def test_overlap_inside_train_is_no_leak_unless_the_cut_parts_it(tmp_path, arrays):
    arrays["train_images"][:] = arrays["train_images"][0]  # 40 times the same
    np.savez(tmp_path / "same.npz", **arrays)
    task = open_task(tmp_path / "same.npz")
    assert {(o.first[0], o.second[0]) for o in find_overlap(task)} == {("train", "val")}


def test_bundled_tasks_are_prepared_once_with_a_word_about_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tajax.data.builders.tasks.SPLIT_SIZES", {"train": 20, "val": 12, "test": 10})
    task = open_task("digits", data_dir=tmp_path)
    assert capsys.readouterr().err == f"Drawing the images of a bundled task, once; they are kept in {tmp_path}\n"
    assert (task.name, task.validation) == ("digits", {"seed": None, "count": 12})
    assert len(task.class_names) == 10 and task.templates == BUNDLED["digits"].templates
    again = open_task("digits", data_dir=tmp_path)
    assert capsys.readouterr().err == ""
    for split, count in (("train", 20), ("val", 12), ("test", 10)):
        assert pixels(again.splits[split]) == pixels(task.splits[split]) and len(task.splits[split]) == count
    assert find_overlap(task) == []


@pytest.mark.parametrize("named", ["/somewhere/else", None])
def test_without_a_directory_tasks_are_where_those_of_runs_are(monkeypatch, named):
    # A notebook that opens a task of a run would otherwise prepare it a second time, elsewhere.
    monkeypatch.setenv("TAJAX_DATA_DIR", named) if named else monkeypatch.delenv("TAJAX_DATA_DIR", raising=False)
    assert data_directory(None) == Path(default_config().data_dir).expanduser()
    assert data_directory("~/given") == Path.home() / "given"

"""A split that says little about a class, or about any, is told before anybody reads its accuracy."""

import numpy as np

from tajax.data import open_task
from tajax.data.__main__ import main


def test_classes_that_a_split_lacks_and_small_splits_are_told(tmp_path, arrays, capsys):
    arrays["class_names"] = np.array(["red_fox", "owl", "hare", "elk"])
    arrays["test_labels"] = np.arange(11) % 2
    np.savez(tmp_path / "animals.npz", **arrays)
    task = open_task(tmp_path / "animals.npz")
    assert task.warnings == (
        "animals: 1 of 4 classes have no image in the train split: elk",
        "animals: 2 of 4 classes have no image in the val split: owl, elk",
        "animals: the val split has 4 images of 4 classes, 1.0 a class on average; with fewer than 5, what is tuned on "
        "it is chosen by chance",
        "animals: 2 of 4 classes have no image in the test split: hare, elk",
        "animals: the test split has 11 images of 4 classes, 2.8 a class on average; with fewer than 5, accuracy on it "
        "says little",
    )
    assert main(["--check", str(tmp_path / "animals.npz"), "--data-dir", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(line in printed for line in task.warnings)


def test_small_splits_of_records_are_told_and_their_labels_not_read(catalogue):
    task = open_task("pipeline_sample/usual", data_dir=catalogue)
    assert [line.split(",")[0] for line in task.warnings] == [
        "pipeline_sample_usual: the val split has 2 images of 2 classes",
        "pipeline_sample_usual: the test split has 7 images of 2 classes",
    ]

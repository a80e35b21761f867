"""The four tasks of an analogy are halves of one task, as they are and inverted, and nothing of it is lost."""

import argparse

import numpy as np

from experiments.task_analogies import run as analogies
from tajax import data


def test_halves_and_their_inversions(tmp_path):
    draw, arrays = np.random.default_rng([20230522, 400]), {"class_names": list("vwxyz"), "templates": ["a {}."]}
    for split, count in {"train": 40, "val": 10, "test": 20}.items():
        images = draw.integers(256, size=(count, 8, 8, 3), dtype=np.uint8)
        arrays |= {f"{split}_images": images, f"{split}_labels": np.arange(count) % 5}
    np.savez(tmp_path / "signs.npz", **arrays)
    options = argparse.Namespace(data=tmp_path, runs=tmp_path / "runs", benchmark="real", few=False)
    name, paths = analogies.make_quadruple(options, "{data}/signs.npz")
    assert name == "signs" and analogies.make_quadruple(options, "{data}/signs.npz") == (name, paths)
    whole, tasks = data.open_task(tmp_path / "signs.npz"), data.open_tasks(paths)
    assert [task.class_names for task in tasks] == [("v", "w"), ("v", "w"), ("x", "y", "z"), ("x", "y", "z")]
    assert {task.templates for task in tasks} == {("a {}.",)}
    for split in ("train", "val", "test"):
        expected = {}
        for index in range(len(whole.split(split))):
            image, label = whole.split(split)[index]
            expected.setdefault(whole.class_names[label], []).append(np.asarray(image))
        for plain, inverted in (tasks[:2], tasks[2:]):
            found = {}
            for index in range(len(plain.split(split))):
                (image, label), (turned, same) = plain.split(split)[index], inverted.split(split)[index]
                np.testing.assert_array_equal(np.asarray(turned), 255 - np.asarray(image))
                assert label == same
                found.setdefault(plain.class_names[label], []).append(np.asarray(image))
            for word, images in found.items():
                np.testing.assert_array_equal(images, expected.pop(word))
        assert not expected

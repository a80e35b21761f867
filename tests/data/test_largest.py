"""The batch that memory is measured with has the shapes of those that training sees."""

import itertools

import numpy as np
import pytest

from tajax import data
from tajax.types import Preprocessing, Tokenization


def lengths(texts):
    return [np.arange(len(text.split()), dtype=np.int32) for text in texts]


def shapes(batch):
    return [(leaf.shape, leaf.dtype) for leaf in batch]


@pytest.mark.parametrize("share", [(0, 1), (1, 2)])
def test_of_texts_it_is_as_wide_as_the_longest_of_all_tasks(tmp_path, share):
    tokenization = Tokenization(split=lengths, max_length=40, ending=0, facts={})
    tasks, batches = [], []
    for name, most in {"short": 7, "long": 18, "middling": 12}.items():
        texts = np.array(["word " * (1 + n % most) for n in range(60)])
        parts = {
            f"{split}_{what}": values
            for split in ("train", "test")
            for what, values in {"texts": texts, "labels": np.arange(60) % 2}.items()
        }
        np.savez(tmp_path / f"{name}.npz", **parts, class_names=np.array(["one", "two"]))
        tasks.append(data.open_task(tmp_path / f"{name}.npz"))
        stream = data.load(tasks[-1], "train", batch_size=8, preprocessing=tokenization, epochs=None, share=share)
        batches += itertools.islice(stream, 14)
    blank = data.largest_batch(tasks, "train", batch_size=8, preprocessing=tokenization, share=share)
    assert not blank.mask.any()
    widest = max(batches, key=lambda batch: batch.inputs.shape[1])
    assert shapes(blank) == shapes(widest)


def test_of_images_it_is_as_any(tmp_path):
    images = np.zeros((9, 8, 8, 3), np.uint8)
    parts = {
        f"{split}_{what}": values
        for split in ("train", "test")
        for what, values in {"images": images, "labels": np.arange(9) % 2}.items()
    }
    np.savez(tmp_path / "dots.npz", **parts, class_names=np.array(["one", "two"]))
    task, prepared = data.open_task(tmp_path / "dots.npz"), Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
    (batch,) = itertools.islice(data.load(task, "train", batch_size=4, preprocessing=prepared, epochs=None), 1)
    assert shapes(data.largest_batch([task], "train", batch_size=4, preprocessing=prepared)) == shapes(batch)

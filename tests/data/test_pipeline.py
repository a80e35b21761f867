"""Laws of the stream: every example once, padding masked, order a function of seed and epoch, any batch reachable."""

import itertools

import numpy as np
import pytest
from PIL import Image

from tajax import data
from tajax.data.preprocess import random_resized_crop, resize_center_crop
from tajax.types import Batch, Preprocessing, Resize


def collected(batches) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the real rows."""
    images, labels = zip(*((batch.inputs[batch.mask], batch.label[batch.mask]) for batch in batches), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        assert type(one) is type(other) is Batch
        for a, b in zip(one, other, strict=True):
            assert type(a) is type(b) is np.ndarray and a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.fixture(params=["npz", "folder", "catalogue"])
def task(request):
    """The same laws for every kind of source."""
    if request.param == "catalogue":
        return data.open_task("pipeline_sample/usual", data_dir=request.getfixturevalue("catalogue"))
    return data.open_task(request.getfixturevalue(request.param))


@pytest.mark.parametrize("memory_bytes", [0, 2**28])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_evaluation_reads_every_example_once_in_order(task, batch_size, memory_bytes, preprocessing):
    source = task.splits["test"]
    stream = data.load(task, "test", batch_size=batch_size, preprocessing=preprocessing, memory_bytes=memory_bytes)
    batches = list(stream)
    assert len(stream) == len(batches) == -(-len(source) // batch_size)
    for batch in batches:
        assert batch.inputs.shape == (batch_size, 32, 32, 3) and batch.inputs.dtype == np.uint8
        assert batch.label.dtype == np.int32 and batch.mask.dtype == bool
        assert not batch.inputs[~batch.mask].any()
    assert all(batch.mask.all() for batch in batches[:-1])
    images, labels = collected(batches)
    expected = [source[index] for index in range(len(source))]
    np.testing.assert_array_equal(labels, [label for _, label in expected])
    np.testing.assert_array_equal(images, [resize_center_crop(image, 32) for image, _ in expected])
    assert_same(batches, stream)  # a second pass is the first


@pytest.mark.parametrize("augment", [False, True])
def test_training_reads_every_example_once_an_epoch_and_drops_none(npz, preprocessing, augment):
    task = data.open_task(npz)  # 36 training images, batches of 8: four full ones an epoch and one of 4 images
    stream = data.load(task, "train", batch_size=8, preprocessing=preprocessing, epochs=None, augment=augment, seed=3)
    batches = list(itertools.islice(stream, 10))
    assert [batch.mask.sum() for batch in batches] == 2 * [8, 8, 8, 8, 4]
    images, labels = collected(batches)
    source = task.splits["train"]
    orders = []
    for epoch in (0, 1):
        rows = slice(36 * epoch, 36 * (epoch + 1))
        if augment:
            made = [random_resized_crop(source[i][0], 32, seed=3, epoch=epoch, index=i).tobytes() for i in range(36)]
        else:
            made = [np.asarray(source[i][0]).tobytes() for i in range(36)]
        orders.append([made.index(image.tobytes()) for image in images[rows]])
        assert sorted(orders[-1]) == list(range(36))
        np.testing.assert_array_equal(labels[rows], source.labels[orders[-1]])
    assert orders[0] != orders[1] and orders[0] != list(range(36))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_shares_of_a_batch_make_the_batch(task, parts, preprocessing):
    """In training and at the ragged end of a split, where some shares are nothing but padding."""
    for split, options in (("train", {"epochs": None, "augment": True, "start_batch": 2}), ("test", {})):
        options = {"batch_size": 8, "preprocessing": preprocessing, "memory_bytes": 0} | options
        streams = [data.load(task, split, share=(part, parts), **options) for part in range(parts)]
        shares = itertools.islice(zip(*streams, strict=True), 4)
        together = [Batch(*map(np.concatenate, zip(*each, strict=True))) for each in shares]
        assert_same(together, itertools.islice(data.load(task, split, **options), 4))


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 3)])
def test_shares_that_are_none_are_refused(npz, preprocessing, share):
    with pytest.raises(ValueError, match=r"share is \(.* of a batch of 8; give \(i, n\)"):
        data.load(data.open_task(npz), "test", batch_size=8, preprocessing=preprocessing, share=share)


def test_order_and_crops_follow_the_seed_and_nothing_else(npz, preprocessing):
    def images(**changes):
        options = {"batch_size": 8, "seed": 0, "augment": True} | changes
        stream = data.load(data.open_task(npz), "train", preprocessing=preprocessing, epochs=None, **options)
        per_epoch = -(-36 // options["batch_size"])
        return collected(itertools.islice(stream, 2 * per_epoch))[0]

    first = images()
    np.testing.assert_array_equal(first, images())
    np.testing.assert_array_equal(first, images(batch_size=48))  # larger than an epoch
    np.testing.assert_array_equal(first, images(memory_bytes=0))
    assert (first != images(seed=1)).any(axis=(1, 2, 3)).mean() > 0.9


@pytest.mark.parametrize("start", [1, 7, 1000])
def test_a_stream_started_later_continues_bit_for_bit(task, preprocessing, start):
    options = {"batch_size": 4, "preprocessing": preprocessing, "augment": True, "epochs": None}
    whole = data.load(task, "train", **options)
    expected = [whole.batch(start + number) for number in range(3)]
    if start < 10:
        assert_same(expected, itertools.islice(whole, start, start + 3))
    late = data.load(task, "train", **options, start_batch=start)
    assert_same(expected, itertools.islice(late, 3))


def test_evaluation_can_start_later_too(npz, preprocessing):
    options = {"batch_size": 4, "preprocessing": preprocessing}
    whole = list(data.load(data.open_task(npz), "test", **options))
    assert_same(whole[2:], data.load(data.open_task(npz), "test", **options, start_batch=2))
    after = data.load(data.open_task(npz), "test", **options, start_batch=9)
    assert (len(after), list(after)) == (0, [])


def test_worker_processes_change_nothing(catalogue, preprocessing):
    options = {"batch_size": 4, "preprocessing": preprocessing, "augment": True, "epochs": None, "memory_bytes": 0}
    here = data.load("pipeline_sample/usual", "train", data_dir=catalogue, **options)
    there = data.load("pipeline_sample/usual", "train", data_dir=catalogue, **options, workers=1)
    assert_same(list(itertools.islice(here, 8)), itertools.islice(there, 8))


def test_an_endless_stream_has_no_length(npz, preprocessing):
    stream = data.load(npz, "train", batch_size=4, preprocessing=preprocessing, epochs=None)
    with pytest.raises(TypeError, match="endless"):
        len(stream)


def test_small_splits_are_decoded_once(folder, preprocessing, monkeypatch):
    task = data.open_task(folder)
    expected = list(data.load(task, "test", batch_size=4, preprocessing=preprocessing))
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    assert_same(expected, data.load(task, "test", batch_size=4, preprocessing=preprocessing))


def test_other_sizes_of_model_are_served_beside_each_other(npz):
    task = data.open_task(npz)
    for size in (24, 32, 48):
        options = {"batch_size": 11, "preprocessing": Preprocessing(size, (0.5,) * 3, (0.5,) * 3)}
        (batch,) = data.load(task, "test", **options)
        np.testing.assert_array_equal(batch.inputs[4], resize_center_crop(task.splits["test"][4][0], size))


@pytest.mark.parametrize("resize", [Resize(40), Resize(32, squash=True), Resize(32, interpolation="bilinear")], ids=str)
@pytest.mark.parametrize("memory_bytes", [0, 2**28], ids=["read", "in memory"])
def test_images_are_resized_as_the_model_wants_it(npz, folder, resize, memory_bytes):
    """Those of .npz are an array of the model's size, which another side than that size changes all the same."""
    for task in map(data.open_task, (npz, folder)):
        images = [task.splits["test"][index][0] for index in range(len(task.splits["test"]))]
        for own in (resize, None, resize):  # what is kept in memory is not taken for that of another geometry
            preprocessing = Preprocessing(32, (0.5,) * 3, (0.5,) * 3, own)
            (batch,) = data.load(
                task, "test", batch_size=len(images), preprocessing=preprocessing, memory_bytes=memory_bytes
            )
            np.testing.assert_array_equal(batch.inputs, [resize_center_crop(image, 32, own) for image in images])
        by_default = [resize_center_crop(image, 32) for image in images]
        assert np.array_equal(batch.inputs, by_default) == (task.name == "animals" and resize.side == 32)

"""Tasks of texts: what is a sound file, and what becomes of texts as rows of tokens."""

import itertools

import numpy as np
import pytest

from tajax import data
from tajax.data import fingerprint, tokens
from tajax.types import Preprocessing, Tokenization

CLS, SEP = 101, 102


def split(texts):
    """A token for each word, its length, between two special ones."""
    return [np.array([CLS, *map(len, text.split()), SEP], np.int32) for text in texts]


@pytest.fixture
def tokenization():
    return Tokenization(split=split, max_length=20, ending=1, facts={"vocabulary": "lengths of words"})


@pytest.fixture
def texts():
    """The contents of a sound .npz file: 40 training and 11 test texts of 3 classes, of 1 to 30 words."""
    rng = np.random.default_rng(0)

    def drawn(count):
        return np.array([" ".join("x" * n for n in rng.integers(1, 9, rng.integers(1, 31))) for _ in range(count)])

    return {
        "train_texts": drawn(40),
        "train_labels": np.arange(40) % 3,
        "test_texts": drawn(11),
        "test_labels": np.arange(11) % 3,
        "class_names": np.array(["a question", "a command", "an answer"]),
    }


@pytest.fixture
def npz(tmp_path, texts):
    np.savez(tmp_path / "speech.npz", **texts)
    return tmp_path / "speech.npz"


def test_a_file_of_texts_is_a_task(npz, texts):
    task = data.open_task(npz)
    assert (task.name, task.modality, task.templates) == ("speech", "texts", ("{}", "This is {}."))
    assert [task.split("test")[i] for i in range(11)] == list(
        zip(texts["test_texts"].tolist(), texts["test_labels"].tolist(), strict=True)
    )
    rows = [task.split(name)[i][0] for name in ("train", "val") for i in range(len(task.split(name)))]
    assert sorted(rows) == sorted(texts["train_texts"].tolist()) and len(task.split("val")) == 4
    first = int(task.split("val").describe(0).rpartition("[")[2].rstrip("]"))
    assert texts["train_texts"][first] == task.split("val")[0][0]


def test_a_file_of_the_data_directory_opens_by_its_name(npz):
    assert data.open_task("speech", data_dir=npz.parent).origin == str(npz)
    data.check_entry("speech", data_dir=npz.parent)
    with pytest.raises(ValueError, match=r"unknown task 'speeches'.*put speeches.npz into"):
        data.open_task("speeches", data_dir=npz.parent)


def expected(text, tokenization):
    ids = split([text])[0]
    if len(ids) <= tokenization.max_length:
        return ids
    return np.concatenate([ids[: tokenization.max_length - 1], [SEP]])


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 11, 16])
def test_a_pass_has_every_text_once_cut_and_padded(npz, texts, tokenization, batch_size, by_length):
    stream = data.load(npz, "test", batch_size=batch_size, preprocessing=tokenization, by_length=by_length)
    rows, labels = [], []
    for batch in stream:
        assert batch.inputs.dtype == np.int32 and batch.inputs.shape[1] in (8, 16, 20)
        longest = max(int((row >= 0).sum()) for row in batch.inputs[batch.mask])
        assert batch.inputs.shape[1] == tokens.padded_length(longest, 20)
        assert (batch.inputs[~batch.mask] == -1).all() and len(batch.label) == batch_size
        for row in batch.inputs[batch.mask]:
            count = int((row >= 0).sum())
            assert (row[count:] == -1).all()
            rows.append(row[:count].tolist())
        labels += batch.label[batch.mask].tolist()
    want = [expected(text, tokenization).tolist() for text in texts["test_texts"].tolist()]
    order = np.argsort([len(ids) for ids in want], kind="stable") if by_length else np.arange(11)
    assert rows == [want[i] for i in order] and labels == texts["test_labels"][order].tolist()


def test_an_endless_stream_shuffles_and_is_the_same_from_any_batch(npz, tokenization):
    options = {"batch_size": 7, "preprocessing": tokenization, "epochs": None, "seed": 3}
    whole = list(itertools.islice(data.load(npz, "train", **options), 9))
    late = list(itertools.islice(data.load(npz, "train", **options, start_batch=5), 4))
    for one, other in zip(whole[5:], late, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.label, other.label)
    assert [batch.mask.sum() for batch in whole[:7]] == [7, 7, 7, 7, 7, 1, 7]
    seen = [tuple(row[row >= 0].tolist()) for batch in whole[:6] for row in batch.inputs[batch.mask]]
    task = data.open_task(npz)
    assert sorted(seen) == sorted(tuple(expected(text, tokenization).tolist()) for text in task.split("train").texts)


def test_shares_of_several_processes_are_the_batch_in_parts_of_one_length(npz, tokenization):
    options = {"batch_size": 6, "preprocessing": tokenization, "epochs": None}
    whole = itertools.islice(data.load(npz, "train", **options), 5)
    parts = [itertools.islice(data.load(npz, "train", **options, share=(part, 3)), 5) for part in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(batch.inputs, np.concatenate([share.inputs for share in shares]))
        np.testing.assert_array_equal(batch.label, np.concatenate([share.label for share in shares]))


def test_texts_are_tokenised_once_whatever_they_are_cut_to(npz):
    calls = []

    def counted(texts):
        calls.append(len(texts))
        return split(texts)

    task = data.open_task(npz)
    for max_length in (20, 9):
        short = Tokenization(counted, max_length, 1, {})
        for _ in range(2):
            (batch,) = data.load(task, "test", batch_size=11, preprocessing=short)
            assert batch.inputs.shape[1] == max_length
    assert calls == [11]
    assert data.count_cut(task.split("test"), short) == sum(len(ids) > 9 for ids in split(task.split("test").texts))


def test_rows_of_tokens_are_joined_and_pixels_too():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    assert data.join(images, images).shape == (4, 4, 4, 3)
    np.testing.assert_array_equal(data.join(np.array([[5, 6, 7]]), np.array([[8]])), [[5, 6, 7], [8, -1, -1]])


def test_a_blank_text_is_refused_or_left_out(tmp_path, texts, tokenization):
    texts["test_texts"][4] = " \t"
    np.savez(tmp_path / "blank.npz", **texts)
    task = data.open_task(tmp_path / "blank.npz")
    with pytest.raises(data.BadTextError, match=r"1 of the 11 texts of blank/test cannot be read:\n.*\[4\] is empty"):
        data.check_images(task)
    with pytest.raises(data.BadTextError, match="is empty"):
        data.load(task, "test", batch_size=4, preprocessing=tokenization)
    left = data.check_images(task, on_bad_image="skip")
    assert len(left.split("test")) == 10 and any("1 of 11 in test" in line for line in left.warnings)


def test_a_model_of_images_takes_no_texts_and_the_other_way_round(npz, tmp_path, tokenization):
    pixels = Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match=r"task 'speech' \(.*speech.npz\) is of texts, and the model takes images"):
        data.load(npz, "test", batch_size=4, preprocessing=pixels)
    images = np.zeros((4, 8, 8, 3), np.uint8)
    content = {
        f"{split}_{what}": value
        for split in ("train", "test")
        for what, value in (("images", images), ("labels", np.arange(4) % 2))
    }
    np.savez(tmp_path / "pictures.npz", class_names=np.array(["a", "b"]), **content)
    with pytest.raises(ValueError, match="task 'pictures' .* is of images, and the model takes texts"):
        data.load(tmp_path / "pictures.npz", "test", batch_size=4, preprocessing=tokenization)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_texts": np.arange(40)}, r"train_texts of .* has dtype int64 .*; expected unicode strings"),
        ({"train_texts": np.array([["a", "b"]] * 40)}, r"shape \(40, 2\); expected unicode strings, \[N\]"),
        ({"train_texts": np.array([b"bytes"] * 40)}, "expected unicode strings"),
        ({"train_labels": np.arange(39) % 3}, "one for each of the 40 texts"),
        ({"test_labels": np.full(11, 3)}, "lie outside the 3 classes"),
        ({"train_texts": np.array(["a", object()], object)}, "pickled objects, which are never loaded"),
        ({"test_texts": None}, r"lacks test_texts"),
        ({"train_images": np.zeros((40, 4, 4), np.uint8)}, "has train_images and train_texts; a task is of images or"),
    ],
)
def test_files_that_are_no_texts(tmp_path, texts, change, words):
    content = {key: value for key, value in (texts | change).items() if value is not None}
    np.savez(tmp_path / "broken.npz", **content)
    with pytest.raises(ValueError, match=words):
        data.open_task(tmp_path / "broken.npz")


def test_another_text_is_another_task(npz, tmp_path, texts):
    before = fingerprint.of_task(data.open_task(npz))
    texts["test_texts"][2] += "!"
    (tmp_path / "edited").mkdir()
    np.savez(tmp_path / "edited" / "speech.npz", **texts)
    after = fingerprint.of_task(data.open_task(tmp_path / "edited" / "speech.npz"))
    assert before["splits"]["train"] == after["splits"]["train"]
    (line,) = fingerprint.differences(before, after)
    assert line.startswith("test: 11")


def test_the_same_text_in_two_splits_is_found(tmp_path, texts):
    texts["test_texts"][0] = texts["train_texts"][7] = "the same words"
    np.savez(tmp_path / "leak.npz", **texts)
    (found,) = data.find_overlap(data.open_task(tmp_path / "leak.npz"))
    assert found.second == ("test", 0) and found.names[0].endswith("[7]")

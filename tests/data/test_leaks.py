"""Images of a task in a corpus for pre-training, exact ones, re-compressed ones, and none."""

import io

import numpy as np
import pytest
from PIL import Image

from tajax import data
from tajax.data import captions
from tajax.data.__main__ import main
from tajax.data.leaks import NEAR, Corpus, find_leaks


@pytest.fixture
def images():
    """Forty smooth pictures [40, 32, 32, 3], none like another."""
    small = np.random.default_rng(77).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC)) for each in small])


@pytest.fixture
def task(tmp_path, images):
    """Twenty of them for training, two of these cut off for val, ten for test."""
    labels = {"train_labels": np.arange(20) % 2, "test_labels": np.arange(10) % 2}
    np.savez(
        tmp_path / "task.npz", train_images=images[:20], test_images=images[20:30], class_names=["a", "b"], **labels
    )
    return data.open_task(tmp_path / "task.npz")


def recompressed(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file))


def by_hand(image, corpus):
    small = [each.reshape(16, 2, 16, 2, 3).mean((1, 3)) for each in (image, *corpus)]
    return min(np.sqrt(np.mean((small[0] - other) ** 2)) for other in small[1:])


def test_a_sound_corpus_leaks_nothing_and_says_how_near_it_comes(task, images):
    val, test = find_leaks(task, Corpus([images[30:35], images[35:]]))
    assert (val.images, test.images) == (len(task.split("val")), 10)
    assert (val.exact, val.near, test.exact, test.near, test.names) == (0, 0, 0, 0, ())
    want = min(by_hand(image, images[30:]) for image in images[20:30])
    np.testing.assert_allclose(test.nearest, want, rtol=1e-4)
    assert test.nearest > NEAR


def test_copies_are_counted_and_named(task, images):
    copies = np.stack([images[22], recompressed(images[25])])
    assert not np.array_equal(copies[1], images[25])
    _, test = find_leaks(task, Corpus([images[30:], copies]))
    assert (test.exact, test.near, test.nearest) == (1, 2, 0.0)
    assert [name.rpartition("[")[2] for name in test.names] == ["2]", "5]"]


def test_training_images_may_stand_in_it(task, images):
    in_val = {task.split("val")[index][0].tobytes() for index in range(len(task.split("val")))}
    trained_on = [image for image in images[:20] if image.tobytes() not in in_val]
    assert all(leak.near == 0 for leak in find_leaks(task, Corpus([np.stack(trained_on)])))


def test_a_corpus_of_another_shape_is_refused(images):
    with pytest.raises(ValueError, match="images of the corpus are 30×32; want one size, a multiple of 16"):
        Corpus([images[:, 1:31]])
    with pytest.raises(ValueError, match="images of the corpus are 16×16, 32×32"):
        Corpus([images[:, :16, :16], images])
    with pytest.raises(ValueError, match="images of the corpus are nothing"):
        Corpus([images[:0]])


def test_the_command_names_what_leaks_and_what_it_did_not_look_at(task, images, tmp_path, monkeypatch, capsys):
    scenes = captions.CaptionedImages("scenes", images[30:], (("a scene",),), np.zeros(10, np.int32), mirrored=False)
    monkeypatch.setattr(captions, "load_scenes", lambda split, *, data_dir: scenes)

    def write(pictures):
        files = []
        for picture in pictures:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            files.append(file.getvalue())
        parts = {
            "train_jpeg": np.frombuffer(b"".join(files), np.uint8),
            "train_offsets": np.cumsum([0, *map(len, files)]),
        }
        np.savez(tmp_path / "corpus.npz", **parts, train_labels=np.zeros(len(files), int), class_names=["owl"])

    def command(*tasks, corpus="corpus.npz"):
        line = ["--check", *tasks, "--data-dir", str(tmp_path / "data"), "--corpus", str(tmp_path / corpus)]
        return main(line), capsys.readouterr().out

    place = str(tmp_path / "task.npz")
    write(images[30:33])
    code, printed = command(place)
    assert code == 0 and "in a corpus of 13" in printed
    write(images[20:25])
    code, printed = command(place)
    assert code == 1 and "… and 2 more" in printed
    code, printed = command("mnist")
    assert code == 1 and "not looked at: missing" in printed
    with pytest.raises(SystemExit) as stopped:
        command(place, corpus="nothing.npz")
    assert stopped.value.code == 2 and "no file" in capsys.readouterr().err

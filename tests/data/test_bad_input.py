"""Every wrong input ends in an error that names it, the choices and the way out, before any batch."""

import io
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from tajax import data
from tajax.data import captions, fingerprint
from tests.data.conftest import encoded, picture


def broken_npz(path, arrays, **changes):
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return path


@pytest.mark.parametrize(
    "entry, words",
    [
        ("minst", ["unknown task 'minst'", "'mnist'", "svhn", "path of a folder or .npz file"]),
        ("colours", ["Did you mean 'colors'"]),
        ("cifar_10", ["'cifar10'"]),
        ("sun397/standard-part99", ["'sun397' has no config 'standard-part99'", "standard-part9-120k"]),
        ("mnist/small", ["'mnist' has no config 'small'; it has none"]),
        ("bccd", ["not classification of images or of texts", "image (Image), image/filename (Text)"]),
        ("div2k", ["not classification of images or of texts", "lr (Image), hr (Image)"]),
        ("trec", ["not classification", "one class label", "label-fine (ClassLabel)", "trec#text=FEATURE,label=FEAT"]),
        ("mnist_corrupted#label=label", ["is of images, of which no columns are chosen"]),
        ("mnist#text=a", ["'mnist#text=a' chooses columns (text=a), and the task 'mnist' of the table has none"]),
        ("OxfordIIITPet", ["unknown task 'OxfordIIITPet'", "Did you mean 'oxford_iiit_pet'"]),
    ],
)
def test_names_that_are_no_task(entry, words, tmp_path):
    with pytest.raises(ValueError) as error:
        data.open_task(entry, data_dir=tmp_path)
    assert all(word in str(error.value) for word in words), error.value


def test_without_a_network_the_error_says_what_to_download_and_where(tmp_path, monkeypatch):
    def unresolved(*arguments):
        raise OSError("no such host")

    monkeypatch.setattr("socket.getaddrinfo", unresolved)
    monkeypatch.setattr("tajax.data.network.getproxies", dict)
    with pytest.raises(ValueError) as error:
        data.open_task("svhn", data_dir=tmp_path)
    message = str(error.value)
    for word in ("svhn_cropped", "no network", "download_and_prepare", "downloads/manual", "train_32x32.mat", ".npz"):
        assert word in message, message
    with pytest.raises(ValueError, match="files fetched by hand, put into .*manual.*OneDrive"):
        data.open_task("resisc45", data_dir=tmp_path)


def test_tfds_sets_that_do_not_fit(catalogue, tmp_path):
    with pytest.raises(ValueError, match="has no split for test; it has train. Export it to a folder"):
        data.open_task("pipeline_sample/whole", data_dir=catalogue)
    shutil.copytree(catalogue / "pipeline_sample", tmp_path / "pipeline_sample")
    info = tmp_path / "pipeline_sample" / "usual" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="stored in .* as tfrecord, which has no random access. Convert it"):
        data.open_task("pipeline_sample/usual", data_dir=tmp_path)


def test_hidden_labels_are_counted(catalogue, preprocessing):
    task = data.open_task("pipeline_sample/hidden", data_dir=catalogue)
    options = {"batch_size": 4, "preprocessing": preprocessing}
    with pytest.raises(ValueError, match=r"6 of the 6 labels of .*hidden/test lie outside .*\[0\] has label -1"):
        data.load(task, "test", **options)
    with pytest.raises(ValueError, match=r"\[0\] has label -1, outside the 2 classes"):
        next(iter(data.load(task, "test", **options, memory_bytes=0)))


def test_a_directory_that_may_not_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="tajax_shapes cannot be prepared in .*file.*--config.data_dir"):
        data.open_task("shapes", data_dir=tmp_path / "file")


@pytest.mark.parametrize("entry, near", [("./animls.npz", "animals.npz"), ("./brids", "birds"), ("./a/b/c", "birds")])
def test_paths_that_do_not_exist_name_their_neighbours(entry, near, npz, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"does not exist. {tmp_path} has: .*{near}"):
        data.open_task(entry)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"test_labels": None, "class_names": None}, "lacks test_labels, class_names. It has: train_images"),
        ({"train_images": np.zeros((40, 8, 8, 3), np.float32)}, "train_images of .* dtype float32; expected uint8"),
        ({"test_images": np.zeros((11, 8, 8, 4), np.uint8)}, r"test_images of .* shape \(11, 8, 8, 4\)"),
        ({"test_labels": np.zeros(10, int)}, r"test_labels of .* shape \(10,\); expected whole numbers, one for each"),
        ({"test_labels": np.zeros(11)}, "test_labels of .* dtype float64 .*expected whole numbers"),
        (
            {"train_labels": np.arange(40) % 4},
            r"10 of the 40 labels of train_labels .* the 3 classes \(0 to 2\): 3. First",
        ),
        ({"train_labels": np.arange(40) - 7}, "37 of the 40 labels.*First at index 0"),
        ({"class_names": np.array(["owl", "a_hare", "a hare"])}, "share a name.*: a hare"),
        ({"class_names": np.array(["owl", None, "hare"], object)}, "class_names of .* holds pickled objects"),
        ({"class_names": np.arange(3)}, "class_names of .* dtype int64 .*expected at least one string"),
        (
            {"test_images": np.zeros((0, 8, 8, 3), np.uint8), "test_labels": np.zeros(0, int)},
            "split 'test' of .* is empty",
        ),
        ({"train_labels": np.arange(40) % 2}, "1 classes of split 'test' of .* have no training image: 'hare'"),
        ({"val_images": np.zeros((5, 8, 8, 3), np.uint8)}, "lacks val_labels"),
        ({"templates": np.array(["a photo"])}, "template 'a photo' of .* exactly one {}"),
        (
            {
                "train_images": np.zeros((1, 8, 8), np.uint8),
                "train_labels": np.zeros(1, int),
                "test_labels": np.zeros(11, int),
            },
            "too few to cut a validation split",
        ),
    ],
)
def test_npz_files_that_are_no_task(changes, message, arrays, tmp_path):
    path = broken_npz(tmp_path / "broken.npz", arrays, **changes)
    with pytest.raises(ValueError, match=message):
        data.open_task(path)


def test_files_that_are_no_npz(tmp_path):
    for name, content in {"text.npz": b"hello", "empty.npz": b"", "pickle.npz": b"\x80\x04K\x01."}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not an .npz archive"):
            data.open_task(tmp_path / name)
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="array.npz holds a single array"):
        data.open_task(tmp_path / "array.npz")


def test_folders_that_are_no_task(folder, tmp_path):
    def refused(message):
        with pytest.raises(ValueError, match=message):
            data.open_task(folder)

    (folder / "train" / "wren" / "deeper").mkdir()
    refused("deeper is a directory inside a class directory. Expected: train/class name")
    (folder / "train" / "wren" / "deeper").rmdir()
    (folder / "test" / "robin").mkdir()
    refused("1 class directories of .*test are not in .*train: robin. Classes of train: barn_owl, wren")
    (folder / "test" / "robin").rmdir()
    (folder / "class_names.txt").write_text("owl\n")
    refused("class_names.txt has 1 names, one a line, for 2 classes")
    (folder / "class_names.txt").unlink()
    (folder / "train" / "wren").rename(tmp_path / "kept")
    (folder / "train" / "wren").mkdir()
    refused("1 class directories of .*train have no image: wren. .*train/wren is empty")
    shutil.copytree(tmp_path / "kept", folder / "train" / "wren", dirs_exist_ok=True)
    shutil.rmtree(folder / "test" / "wren")
    shutil.rmtree(folder / "test" / "barn_owl")
    refused("test has no class directories. Expected")
    (folder / "test" / "loose.png").touch()
    refused("no class directories, but 1 loose images")
    (folder / "test" / "loose.png").unlink()
    (folder / "test" / "wren").mkdir()
    refused("split 'test' of .* is empty")
    (folder / "test").rename(folder / "tests")
    refused("lacks test/. It has the directories tests, train.")
    with pytest.raises(ValueError, match="kept/00.png is a file; give a folder"):
        data.open_task(tmp_path / "kept" / "00.png")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"split": "tests"}, r"has no split 'tests'; choose from \('train', 'val', 'test'\). Did you mean 'test'"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"epochs": 2}, r"epochs is 2; choose 1 \(one pass in order\) or None"),
        ({"start_batch": -1}, "start_batch is -1"),
        ({"workers": -2}, "workers is -2"),
        ({"seed": -1}, "seed -1 does not fit"),
        ({"on_bad_image": "ignore"}, r"on_bad_image 'ignore' is not known; choose from \('error', 'skip'\)"),
    ],
)
def test_arguments_out_of_range(changes, message, npz, preprocessing):
    options = {"split": "test", "batch_size": 4, "preprocessing": preprocessing} | changes
    with pytest.raises(ValueError, match=message):
        data.load(data.open_task(npz), **options)


@pytest.mark.parametrize("memory_bytes", [0, 2**28])
def test_unreadable_images_are_named_and_counted(folder, preprocessing, memory_bytes, caplog):
    wrens = folder / "train" / "wren"
    jpeg, whole = wrens / "01.jpeg", encoded(picture(0, width=300, height=200), "JPEG")
    jpeg.write_bytes(whole[: len(whole) - 200])
    (wrens / "02.bmp").write_bytes(b"")
    (wrens / "03.webp").write_text("not an image")
    (wrens / "04.png").write_bytes((wrens / "04.png").read_bytes()[:-40])
    task = data.open_task(folder)
    options = {"batch_size": 5, "preprocessing": preprocessing, "memory_bytes": memory_bytes}
    with pytest.raises(data.BadImageError) as error:
        data.load(task, "train", **options)
    message = str(error.value)
    assert "4 of the 22 images of birds/train cannot be read" in message
    assert all(str(wrens / name) in message for name in ("01.jpeg", "02.bmp", "03.webp", "04.png"))
    assert "on_bad_image='skip'" in message
    with pytest.raises(data.BadImageError, match="4 of the 22"):
        data.check_images(task)

    with caplog.at_level(logging.WARNING):
        stream = data.load(task, "train", **options, on_bad_image="skip")
    assert "4 of the 22 images of birds/train cannot be read" in caplog.text
    assert sum(batch.mask.sum() for batch in stream) == len(stream.source) == 18
    assert all(
        str(wrens / name) not in [stream.source.describe(i) for i in range(18)] for name in ("01.jpeg", "02.bmp")
    )


@pytest.mark.parametrize("memory_bytes", [0, 2**28])
def test_unreadable_records_are_named_by_their_place(catalogue, preprocessing, memory_bytes):
    task = data.open_task("pipeline_sample/truncated", data_dir=catalogue)
    options = {"batch_size": 6, "preprocessing": preprocessing, "memory_bytes": memory_bytes}
    with pytest.raises(
        data.BadImageError, match=r"image pipeline_sample/truncated/1.0.0:test\[\d\] cannot be decoded"
    ) as error:
        list(data.load(task, "test", **options))
    assert "on_bad_image='skip'" in str(error.value)
    stream = data.load(task, "test", **options, on_bad_image="skip")
    assert [batch.mask.tolist() for batch in stream] == [[True] * 5 + [False]]


def test_bad_images_of_all_splits_are_named_at_once_and_left_out_of_the_task(folder, preprocessing, caplog):
    names = ("train/wren/00.png", "train/wren/01.jpeg", "test/barn_owl/02.bmp")
    for name in names:
        (folder / name).write_text("not an image")
    task = data.open_task(folder)
    with pytest.raises(data.BadImageError) as error:
        data.check_images(task, option="--skip")
    message = str(error.value)
    assert message.count("images of birds/") == 2 and message.endswith("pass --skip.")
    assert all(str(folder / name) in message for name in names)
    with caplog.at_level(logging.WARNING):
        left = data.check_images(task, on_bad_image="skip")
    assert all(str(folder / name) in caplog.text for name in names)
    assert len(left.split("test")) == 8 and len(left.split("train")) + len(left.split("val")) == 22
    assert (
        sum(int(batch.mask.sum()) for batch in data.load(left, "test", batch_size=3, preprocessing=preprocessing)) == 8
    )
    assert data.check_images(left) is left
    for name in names:
        (folder / name).unlink()
    assert fingerprint.of_task(left)["splits"]["test"] == fingerprint.of_task(data.open_task(folder))["splits"]["test"]


def test_a_class_without_one_readable_training_image_is_an_error_even_when_skipping(folder):
    for path in (folder / "train" / "wren").iterdir():
        path.write_text("not an image")
    shutil.copytree(folder / "test", folder / "val")
    with pytest.raises(ValueError, match="birds, without the images that cannot be read, .*no training image: 'wren'"):
        data.check_images(data.open_task(folder), on_bad_image="skip")


def test_images_whose_white_is_not_known_are_bad_ones(folder, preprocessing):
    path = folder / "test" / "wren" / "00.png"
    path.write_bytes(encoded(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "TIFF"))
    words = "1 of the 9 images of birds/test cannot be read:\n  image .*00.png cannot be decoded: its pixels are floats"
    with pytest.raises(data.BadImageError, match=words):
        data.load(data.open_task(folder), "test", batch_size=2, preprocessing=preprocessing)


def test_natural_images_that_cannot_be_read_are_listed_or_left_out(tmp_path):
    files = [encoded(picture(number), "JPEG") for number in range(4)]
    files[1], files[2] = files[1][:100], b"no"

    def save(files):
        offsets = np.cumsum([0, *map(len, files)])
        parts = {"train_jpeg": np.frombuffer(b"".join(files), np.uint8), "train_offsets": offsets}
        np.savez(tmp_path / "natural.npz", **parts, train_labels=[0, 1, 1, 0][: len(files)], class_names=["owl", "fox"])

    save(files)
    with pytest.raises(
        data.BadImageError, match=r"2 of the 4 images of .*:\n.*natural.npz\[1\] .*\n.*natural.npz\[2\]"
    ):
        captions.load_natural(tmp_path / "natural.npz")
    (found,) = captions.load_natural(tmp_path / "natural.npz", on_bad_image="skip")
    assert (found.skipped, found.phrases, found.labels.tolist()) == (2, (("an owl", "the owl", "owl"),), [0, 0])
    np.testing.assert_array_equal(found.images[1], np.asarray(Image.open(io.BytesIO(files[3]))))
    save([files[0], encoded(picture(1, width=40), "JPEG")])
    with pytest.raises(ValueError, match=r"have 2 sizes, such as \(32, 32, 3\) and \(32, 40, 3\)"):
        captions.load_natural(tmp_path / "natural.npz")


def test_a_split_without_one_readable_image_is_an_error_even_when_skipping(folder, preprocessing):
    for path in (folder / "test").glob("*/*"):
        path.write_text("not an image")
    with pytest.raises(ValueError, match="9 of the 9 images of birds/test cannot be read"):
        data.load(data.open_task(folder), "test", batch_size=2, preprocessing=preprocessing, on_bad_image="skip")

"""A plain folder of images: each row of what is computed is the picture of one name, prepared as in a task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import data
from tajax.types import Resize
from tests.data.conftest import SIZES, encoded, picture


@pytest.fixture
def pictures(tmp_path):
    """Seven images of several sizes and formats, and one without a suffix, named against the order of their making."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, kind in enumerate(("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")):
        width, height = SIZES[number % len(SIZES)]
        name = f"{'gfedcba'[number]}.{kind.lower()}" if number else "g"
        (folder / name).write_bytes(encoded(picture(number, width=width, height=height), kind))
    return folder


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_rows_are_those_of_a_task_on_the_same_files_in_the_order_of_their_names(
    pictures, tmp_path, preprocessing, batch_size
):
    images = data.open_images(pictures)
    assert images.names == ("a.ppm", "b.tiff", "c.gif", "d.webp", "e.bmp", "f.jpeg", "g") and images.warnings == ()
    for split in ("train", "test"):
        (tmp_path / "task" / split).mkdir(parents=True)
        (tmp_path / "task" / split / "only").symlink_to(pictures)
    (whole,) = data.load(tmp_path / "task", "test", batch_size=7, preprocessing=preprocessing)
    stream = images.batches(preprocessing, batch_size=batch_size)
    batches = list(stream)
    assert len(batches) == len(stream) == -(-7 // batch_size)
    assert {len(batch.mask) for batch in batches} == {min(batch_size, 7)}
    np.testing.assert_array_equal(np.concatenate([batch.inputs[batch.mask] for batch in batches]), whole.inputs)
    assert len(images) == 7 and not any(batch.label.any() for batch in batches)


def test_images_are_seen_at_their_own_size(pictures):
    images = data.open_images(str(pictures))
    assert [image.size for image in images] == [SIZES[number % len(SIZES)] for number in range(6, -1, -1)]
    assert {image.mode for image in images} == {"RGB"} and images[-1].size == images[6].size


def test_kernel_and_features_come_in_two_lines(pictures, preprocessing):
    def apply(params, inputs):
        return inputs.reshape(len(inputs), -1) / 255.0 @ params["kernel"]

    params = {"kernel": jnp.ones((32 * 32 * 3, 2)) / 3072}
    (batch,) = data.open_images(pictures).batches(preprocessing)
    pixels = batch.inputs.reshape(7, -1) / 255.0
    np.testing.assert_allclose(
        jax.jit(apply)(params, batch.inputs), np.repeat(pixels.mean(1)[:, None], 2, 1), rtol=1e-5
    )
    kernel = tajax.empirical_ntk(apply, params, batch.inputs)
    np.testing.assert_allclose(kernel, 2 * pixels @ pixels.T, rtol=1e-5)  # of a linear model, by hand


def test_images_that_cannot_be_read_are_named_or_left_out_with_their_names(pictures, preprocessing):
    cut = (pictures / "f.jpeg").read_bytes()[:200]
    (pictures / "f.jpeg").write_bytes(cut)
    (pictures / "c.gif").write_bytes(b"")
    with pytest.raises(data.BadImageError) as error:
        data.open_images(pictures)
    said = [
        "2 of the 7 images",
        f"image {pictures / 'c.gif'} is empty",
        str(pictures / "f.jpeg"),
        "on_bad_image='skip'",
    ]
    assert all(word in str(error.value) for word in said), error.value
    images = data.open_images(pictures, on_bad_image="skip")
    assert images.names == ("a.ppm", "b.tiff", "d.webp", "e.bmp", "g")
    assert images.warnings == (f"2 of 7 images of {pictures} cannot be read and are left out: c.gif, f.jpeg",)
    (batch,) = images.batches(preprocessing)
    want = [data.preprocess.resize_center_crop(image, 32) for image in images]
    np.testing.assert_array_equal(batch.inputs, np.stack(want))
    with pytest.raises(ValueError, match="on_bad_image 'ignore' is not known; choose from"):
        data.open_images(pictures, on_bad_image="ignore")


def test_what_is_no_image_of_the_folder_itself_is_named(pictures):
    (pictures / "notes.txt").write_text("of the sea")
    (pictures / ".thumbnails").mkdir()
    (pictures / "originals").mkdir()
    (pictures / "originals" / "a.png").write_bytes(encoded(picture(9)))
    images = data.open_images(pictures)
    assert len(images) == 7
    left_out = "originals/, notes.txt, .thumbnails"
    assert images.warnings == (f"3 entries of {pictures} are not images and left out: {left_out}",)


def test_places_that_are_no_plain_folder_are_refused_with_a_way_out(folder, tmp_path, npz):
    (tmp_path / "empty").mkdir()
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "1.heic").write_bytes(b"ftypheic")
    refusals = {
        "brids": (FileNotFoundError, ["brids does not exist", "birds"]),
        "animals.npz": (ValueError, ["animals.npz is a file", "open_task"]),
        "empty": (ValueError, ["empty has no images itself. It has: nothing."]),
        "birds": (ValueError, ["It has: test/, train/.", f"open_task({str(folder)!r})"]),
        "birds/train": (ValueError, ["It has: barn_owl/, wren/.", f"open_task({str(folder / 'train')!r})"]),
        "phone": (ValueError, ["1.heic has a format that is not read here; convert it to PNG or JPEG"]),
    }
    for name, (error, words) in refusals.items():
        with pytest.raises(error) as caught:
            data.open_images(tmp_path / name)
        assert all(word in str(caught.value) for word in words), caught.value


def test_batches_that_there_cannot_be_are_refused(pictures, preprocessing):
    images = data.open_images(pictures)
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        images.batches(preprocessing, batch_size=0)
    with pytest.raises(ValueError, match="preprocessing.size is 0; it must be at least 1 pixel"):
        images.batches(preprocessing._replace(size=0))
    with pytest.raises(ValueError, match="resize.side is 24: 32 pixels cannot be cut out of it"):
        images.batches(preprocessing._replace(resize=Resize(24)))
    with pytest.raises(ValueError, match="'cubic'; choose from nearest, .*bicubic"):
        images.batches(preprocessing._replace(resize=Resize(32, interpolation="cubic")))

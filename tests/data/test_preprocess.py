"""The geometry is the reference's, pixel for pixel; crops stay inside, upright and repeatable."""

import io
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tajax.data.preprocess import crop_box, normalize, random_resized_crop, resize_center_crop, to_rgb
from tajax.types import Preprocessing

CLIP = Preprocessing(size=224, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


def reference(image: Image.Image, size: int, **options) -> np.ndarray:
    """What Hugging Face's processor makes of an image, channels last."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return np.moveaxis(processor(image, return_tensors="np", **options)["pixel_values"][0], 0, -1)


def noise(mode: str, width: int, height: int) -> Image.Image:
    """An image in which every pixel matters."""
    rng = np.random.Generator(np.random.Philox(width * 1000 + height))
    bands = {"RGB": 3, "RGBA": 4, "LA": 2, "CMYK": 4, "RGBX": 4, "PA": 2, "YCbCr": 3, "HSV": 3, "LAB": 3}.get(mode, 1)
    pixels = rng.integers(0, 256, (height, width, bands), dtype=np.uint8)
    if mode in ("P", "P with transparency"):
        image = Image.fromarray(pixels[..., 0]).convert("P")
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        if mode != "P":
            image.info["transparency"] = 7
        return image
    if mode == "PA":
        image = Image.merge("LA", [Image.fromarray(pixels[..., band].copy()) for band in range(2)]).convert("PA")
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        return image
    if mode == "1":
        return Image.fromarray(pixels[..., 0]).convert("1")
    return Image.frombytes(mode, (width, height), pixels.tobytes())


MODES = ["RGB", "L", "RGBA", "LA", "P", "P with transparency", "1", "CMYK", "PA", "RGBX", "YCbCr", "HSV", "LAB"]


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_image_becomes_rgb_as_in_the_reference(mode):
    image = noise(mode, 41, 35)
    ours = resize_center_crop(to_rgb(image), 32)
    np.testing.assert_array_equal(ours, reference(image, 32, do_rescale=False, do_normalize=False))


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours 0 to 255 over white."""
    return colour * (alpha / 255) + 255 * (1 - alpha / 255)


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_alpha_that_is_multiplied_in_is_composited_onto_white_as_well(mode):
    alpha = np.full((4, 5), 128, np.uint8)
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5) * 6  # at most alpha: these are colours times alpha
    bands = [grey] * (1 if mode == "La" else 3) + [alpha]
    image = Image.frombytes(mode, (5, 4), np.stack(bands, -1).tobytes())
    expected = on_white(grey[..., None].astype(float) * 255 / alpha[..., None], alpha[..., None].astype(float))
    # The colour is rounded once when alpha comes out of it and once when it is composited.
    np.testing.assert_allclose(np.asarray(to_rgb(image)).astype(float), expected.repeat(3, -1), rtol=0, atol=1.5)


def reread(image: Image.Image, kind: str, **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


WIDE = np.arange(65536, dtype=np.uint16).reshape(256, 256)  # every value of 16 bits
HIGH_BYTE = WIDE.astype(">u2").view(np.uint8).reshape(*WIDE.shape, 2)[..., 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_grey_of_16_bits_is_scaled_by_its_depth(kind):
    image = reread(Image.fromarray(WIDE), kind)
    found = np.asarray(to_rgb(image))
    assert image.mode == ("I" if kind == "PPM" else "I;16")
    np.testing.assert_array_equal(found, HIGH_BYTE[..., None].repeat(3, -1))
    assert found.min() == 0 and found.max() == 255 and found.mean() == 127.5
    assert np.abs(found[..., 0] - WIDE / 65535 * 255).max() < 1


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_the_order_of_bytes_does_not_matter(mode):
    dtype = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, WIDE.shape[::-1], WIDE.astype(dtype).tobytes())
    np.testing.assert_array_equal(np.asarray(to_rgb(image))[..., 0], HIGH_BYTE)


def png(pixels: np.ndarray, *, transparent: int | None = None) -> bytes:
    """A PNG of 16 bits a channel, grey [H, W] or colour [H, W, 3]; Pillow writes no such colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    (height, width), colour = pixels.shape[:2], pixels.ndim == 3
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2 if colour else 0, 0, 0, 0))
    key = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + header + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_grey_picture_has_the_same_pixels_in_grey_and_in_colour_of_16_bits():
    grey, colour = (to_rgb(Image.open(io.BytesIO(png(p)))) for p in (WIDE, WIDE[..., None].repeat(3, -1)))
    np.testing.assert_array_equal(np.asarray(colour)[..., 1], HIGH_BYTE)  # Pillow takes the high byte
    np.testing.assert_array_equal(grey, colour)


def test_the_transparent_value_of_a_16_bit_image_is_white():
    pixels = np.array([[0, 1000, 1001, 65535]])
    found = np.asarray(to_rgb(Image.open(io.BytesIO(png(pixels, transparent=1000)))))
    assert found[0, :, 0].tolist() == [0, 255, 3, 255]


def test_tiff_says_how_many_bits_there_are_and_which_end_is_white():
    twelve = reread(Image.fromarray(np.array([[0, 4095, 2048, 255]], np.uint16)), "TIFF")
    twelve.tag_v2[258] = (12,)
    assert np.asarray(to_rgb(twelve))[0, :, 0].tolist() == [0, 255, 128, 15]
    white_is_zero = reread(Image.fromarray(np.array([[0, 65535, 256]], np.uint16)), "TIFF", tiffinfo={262: 0})
    assert np.asarray(to_rgb(white_is_zero))[0, :, 0].tolist() == [255, 0, 254]


@pytest.mark.parametrize(
    "pixels, words",
    [
        (np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3), r"floats from 0 to 1 \(mode F\)"),
        (np.linspace(-3, 1200.5, 6, dtype=np.float32).reshape(2, 3), r"floats from -3 to 1200\.5 \(mode F\)"),
        (np.arange(6, dtype=np.int32).reshape(2, 3) * 20000, r"integers from 0 to 100000 \(mode I\)"),
        (np.arange(-3, 3, dtype=np.int32).reshape(2, 3), r"integers from -3 to 2 \(mode I\)"),
    ],
)
def test_numbers_without_a_known_white_are_refused_by_their_range(pixels, words):
    for image in (Image.fromarray(pixels), reread(Image.fromarray(pixels), "TIFF")):
        with pytest.raises(ValueError, match=f"{words}, and nothing tells which number is white. Save it with 8 or 16"):
            to_rgb(image)


@pytest.mark.parametrize("size", [32, 33, 224])
@pytest.mark.parametrize(
    "width, height", [(32, 32), (500, 375), (375, 501), (33, 47), (10, 13), (301, 40), (9, 130), (224, 225), (1, 5)]
)
def test_evaluation_geometry_is_the_references(width, height, size):
    image = noise("RGB", width, height)
    ours = resize_center_crop(image, size)
    assert ours.shape == (size, size, 3) and ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, reference(image, size, do_rescale=False, do_normalize=False))


def test_normalization_is_the_references():
    ramp = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)  # every value in every channel
    expected = reference(Image.fromarray(ramp), 16)
    preprocessing = CLIP._replace(size=16)
    for function in (normalize, jax.jit(normalize, static_argnums=1)):
        # Values reach 2.6 and both sides round a few times in float32: 2e-7 each.
        np.testing.assert_allclose(function(jnp.asarray(ramp[None]), preprocessing)[0], expected, rtol=0, atol=1e-6)


def test_normalization_refuses_what_it_would_get_wrong():
    with pytest.raises(TypeError, match="float32, expected uint8"):
        normalize(jnp.zeros((1, 8, 8, 3)), CLIP)
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\); expected channels last"):
        normalize(jnp.zeros((1, 3, 8, 8), jnp.uint8), CLIP)


@pytest.mark.parametrize("width, height", [(500, 375), (32, 32), (64, 90), (5, 6)])
def test_crop_boxes_keep_to_the_protocol(width, height):
    boxes = [crop_box(height, width, seed=1, epoch=e, index=i) for e in range(2) for i in range(400)]
    left, top, right, bottom = np.array(boxes, float).T
    assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
    shares = (right - left) * (bottom - top) / (width * height)
    ratios = (right - left) / (bottom - top)
    pixel = 1 / width + 1 / height  # sides are rounded to whole pixels
    assert 0.9 - pixel <= shares.min() and shares.max() <= 1
    assert (ratios >= 0.75 * (1 - pixel)).all() and (ratios <= 4 / 3 * (1 + pixel)).all()
    if width * height > 100:
        assert len(set(boxes)) > 20  # a random box, not always the same


def test_without_a_fitting_box_the_crop_is_the_largest_in_the_centre():
    assert crop_box(30, 300, seed=0, epoch=0, index=0) == (130, 0, 170, 30)
    assert crop_box(300, 30, seed=0, epoch=0, index=0) == (0, 130, 30, 170)


def test_a_crop_depends_on_seed_epoch_and_index_alone():
    image = noise("RGB", 60, 45)
    here = {"seed": 3, "epoch": 2, "index": 5}
    crop = random_resized_crop(image, 32, **here)
    np.testing.assert_array_equal(crop, random_resized_crop(image, 32, **here))
    for changed in ("seed", "epoch", "index"):
        assert (crop != random_resized_crop(image, 32, **{**here, changed: 9})).any()


def test_a_crop_is_cut_before_it_is_resized():
    image = noise("RGB", 60, 45)
    left, top, right, bottom = crop_box(45, 60, seed=0, epoch=0, index=0)
    inside = Image.fromarray(np.asarray(image)[top:bottom, left:right].copy())
    expected = np.asarray(inside.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(random_resized_crop(image, 32, seed=0, epoch=0, index=0), expected)


def test_crops_are_never_mirrored():
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 5, dtype=np.uint8)[:, None], (48, 1, 3)))
    for index in range(100):
        crop = random_resized_crop(ramp, 32, seed=0, epoch=0, index=index).astype(int)
        assert (np.diff(crop[..., 0], axis=1) >= 0).all()

"""The geometry is the reference's, pixel for pixel; crops stay inside, upright and repeatable."""

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
    bands = {"RGB": 3, "RGBA": 4, "LA": 2, "CMYK": 4}.get(mode, 1)
    pixels = rng.integers(0, 256, (height, width, bands), dtype=np.uint8)
    if mode in ("P", "P with transparency"):
        image = Image.fromarray(pixels[..., 0]).convert("P")
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        if mode != "P":
            image.info["transparency"] = 7
        return image
    if mode == "1":
        return Image.fromarray(pixels[..., 0]).convert("1")
    return Image.frombytes(mode, (width, height), pixels.tobytes())


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "P with transparency", "1", "CMYK"])
def test_every_kind_of_image_becomes_rgb_as_in_the_reference(mode):
    image = noise(mode, 41, 35)
    ours = resize_center_crop(to_rgb(image), 32)
    np.testing.assert_array_equal(ours, reference(image, 32, do_rescale=False, do_normalize=False))


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

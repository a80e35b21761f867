"""The geometry of images on the host and their normalisation on the device.

The geometry for evaluation is pixel for pixel that of Hugging Face's processors (their Pillow backend). CLIP's: RGB,
shorter side resized to the model's size, centre crop; of others what `types.Resize` says. The one for training is that
of open_clip: a random resized crop.
Images stay uint8 until they are on the device, so that a quarter of the bytes travels.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from tajax.data import draws
from tajax.types import Preprocessing, Resize

CROP_SCALE = (0.9, 1.0)  # share of the image's area, as in the protocol (papers use open_clip's training transform)
CROP_RATIO = (3 / 4, 4 / 3)  # width over height
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value of the second
INTERPOLATIONS = tuple(filter_.name.lower() for filter_ in Image.Resampling)
_ATTEMPTS = 10  # boxes tried before the fallback to the centre


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, 8 bits a channel, transparency composited onto white, as Hugging Face's processors do since 5.

    Grey images of more than 8 bits are scaled by their depth d: v becomes ⌊v / 2^(d−8)⌋, so that 65535 of 16 bits is
    255. These are the high bits, which Pillow keeps of 16-bit colour, too: a picture has the same pixels whether it is
    stored as 16-bit grey or as 16-bit RGB. (The reference cuts off at 255 there, which makes nearly all of it white.)

    The EXIF orientation is not applied, as in the reference.

    Args:
        image: of any of Pillow's modes; its format tells the depth of grey images with more than 8 bits.

    Raises:
        ValueError: integers or floats of which nothing tells what is white. The message has their range.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _grey_of_8_bits(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("La", "RGBa"):  # alpha multiplied in: the colours have to come out of it first
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def _grey_of_8_bits(image: Image.Image) -> Image.Image:
    """A grey image with more than 8 bits in mode L, its transparent value white."""
    values, depth = np.asarray(image), _depth(image)
    if depth is None:
        low, high = values.min(), values.max()
        raise ValueError(
            f"its pixels are {'floats' if image.mode == 'F' else 'integers'} from {low:.6g} to {high:.6g} (mode "
            f"{image.mode}), and nothing tells which number is white. Save it with 8 or 16 bits a channel"
        )
    grey = (values.astype(np.uint32) >> (depth - 8)).clip(max=255).astype(np.uint8)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey  # Pillow does so for 8 bits alone
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _depth(image: Image.Image) -> int | None:
    """Bits of a grey image with more than 8 of them, None if they are not known."""
    if image.mode.startswith("I;16"):
        if isinstance(image, TiffImageFile):
            return int(image.tag_v2[_BITS_PER_SAMPLE][0])
        return 16 if image.format in (None, "PNG", "JPEG2000") else None
    # Pillow scales to 16 bits what a PGM holds, and took 16-bit PNG for this mode before version 11.
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def resize_center_crop(image: Image.Image, size: int, resize: Resize | None = None) -> UInt8[np.ndarray, "size size 3"]:
    """The evaluation geometry: shorter side to `size` by bicubic interpolation, then the centre square.

    The longer side becomes ⌊size · long / short⌋ and the crop starts at ⌊(long − size) / 2⌋.

    Args:
        image: RGB, any size.
        size: pixels on a side of the model's input.
        resize: another length of the shorter side, another filter, or both sides squashed to that length.
    """
    side, squash, interpolation = resize or Resize(size)
    width, height = image.size
    resized_long = side if squash else int(side * max(width, height) / min(width, height))
    resized = (side, resized_long) if width <= height else (resized_long, side)
    image = image.resize(resized, Image.Resampling[interpolation.upper()])
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def crop_box(height: int, width: int, *, seed: int, epoch: int, index: int) -> tuple[int, int, int, int]:
    """A random box (left, top, right, bottom) of open_clip's training crop.

    Area share uniform in `CROP_SCALE`, aspect ratio log-uniform in `CROP_RATIO`, position uniform. After ten boxes that
    do not fit, the largest centred box whose ratio lies in `CROP_RATIO` (the whole image if it has such a ratio).

    Args:
        height: pixels.
        width: pixels.
        seed: of the run.
        epoch: how often the data set was read before.
        index: of the example in its split. Box = function of (seed, epoch, index) alone.
    """
    numbers = draws.uniforms(2 * _ATTEMPTS + 2, seed=seed, purpose=draws.CROP, epoch=epoch, index=index)
    log_low, log_high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for attempt in range(_ATTEMPTS):
        area = height * width * (CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * numbers[2 * attempt])
        ratio = math.exp(log_low + (log_high - log_low) * numbers[2 * attempt + 1])
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(numbers[-2] * (width - crop_width + 1))
            top = int(numbers[-1] * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
    crop_width = min(width, max(1, round(height * ratio)))
    crop_height = min(height, max(1, round(width / ratio)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def random_resized_crop(
    image: Image.Image, size: int, resize: Resize | None = None, *, seed: int, epoch: int, index: int
) -> UInt8[np.ndarray, "size size 3"]:
    """The training geometry: the box of `crop_box`, resized to a square by bicubic interpolation. No flips.

    Args:
        image: RGB, any size.
        size: pixels on a side of the model's input.
        resize: its filter is taken.
        seed: see `crop_box`.
        epoch: see `crop_box`.
        index: see `crop_box`.
    """
    # Cropped first: `resize(box=…)` would let the filter see pixels outside the box, which the reference does not.
    image = image.crop(crop_box(image.height, image.width, seed=seed, epoch=epoch, index=index))
    interpolation = resize.interpolation if resize else "bicubic"
    return np.asarray(image.resize((size, size), Image.Resampling[interpolation.upper()]))


def normalize(images: UInt8[Array, "*B H W 3"], preprocessing: Preprocessing) -> Float[Array, "*B H W 3"]:
    """What the image encoder takes: (x / 255 − mean) / std per channel, in float32.

    Runs on the device and can be traced; XLA fuses it into the patch embedding's input.

    Args:
        images: uint8, channels last.
        preprocessing: its `mean` and `std` have one number a channel.

    Raises:
        TypeError: the images are not uint8. Floats are refused because nothing tells whether they were scaled before.
        ValueError: the last axis is not the channels.

    Example:
        >>> half = Preprocessing(size=1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> normalize(jnp.array([[[[0, 255, 255]]]], jnp.uint8), half)
        Array([[[[-1.,  1.,  1.]]]], dtype=float32)
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"images have dtype {images.dtype}, expected uint8 of 0 to 255 (data.load gives it)")
    if images.shape[-1:] != (len(preprocessing.mean),):
        raise ValueError(
            f"images have shape {tuple(images.shape)}; expected channels last, {len(preprocessing.mean)} of them"
        )
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(values, jnp.float32).reshape(shape) for values in (preprocessing.mean, preprocessing.std))
    return (images.astype(jnp.float32) / 255.0 - mean) / std

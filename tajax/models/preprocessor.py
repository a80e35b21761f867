"""`preprocessor_config.json`: how Hugging Face writes down what happens to an image before the encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from tajax.models.files import describe, read_json
from tajax.types import Preprocessing

__all__ = ["OPENAI_MEAN", "OPENAI_STD", "preprocessor_config", "read_preprocessing"]

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3  # PIL's number


def preprocessor_config(preprocessing: Preprocessing) -> dict:
    """What `transformers.CLIPImageProcessor` reads: bicubic resize of the shorter side, centre crop, scaling."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.size},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": preprocessing.size, "width": preprocessing.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def read_preprocessing(directory: Path, *, image_size: int) -> Preprocessing:
    """The preprocessing written down beside a model's weights; OpenAI's where nothing is.

    Args:
        directory: Where `preprocessor_config.json` or `open_clip_config.json` may lie.
        image_size: Side of the encoder's input, in pixels.

    Raises:
        ValueError: it is another than "bicubic resize of the shorter side to `image_size`, centre crop, mean and
            deviation", which alone is implemented.
    """
    huggingface, open_clip = directory / "preprocessor_config.json", directory / "open_clip_config.json"
    path = huggingface if huggingface.is_file() else open_clip
    if not path.is_file():
        return Preprocessing(size=image_size, mean=OPENAI_MEAN, std=OPENAI_STD)
    return describe(path, lambda: _read(path, image_size, open_clip=path == open_clip))


def _read(path: Path, image_size: int, *, open_clip: bool) -> Preprocessing:
    found = read_json(path)
    if not open_clip:
        mean, std = found.get("image_mean", OPENAI_MEAN), found.get("image_std", OPENAI_STD)
        sizes = _sides(found.get("size", image_size)) | _sides(found.get("crop_size", image_size))
        bicubic = found.get("resample", _BICUBIC) == _BICUBIC
        steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
        whole = all(found.get(step, True) for step in steps)
        shorter_side = "height" not in found["size"] if isinstance(found.get("size"), Mapping) else True
        scaled = abs(found.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6
    else:
        found = found.get("preprocess_cfg") or {}
        mean, std = found.get("mean", OPENAI_MEAN), found.get("std", OPENAI_STD)
        sizes = _sides(found.get("size", image_size))
        bicubic, whole, scaled = found.get("interpolation", "bicubic") == "bicubic", True, True
        shorter_side = found.get("resize_mode", "shortest") == "shortest"
    if sizes != {image_size}:
        raise ValueError(f"it makes images of {sorted(sizes, key=str)} pixels, but the image tower takes {image_size}.")
    usable = len(mean) == len(std) == 3 and all(map(math.isfinite, [*mean, *std])) and min(std) > 0
    if not (bicubic and whole and shorter_side and scaled and usable):
        raise ValueError(
            "it asks for other preprocessing than CLIP's (bicubic resize of the shorter side, centre crop, "
            f"1/255, mean and deviation of 3 channels), which alone can be done: {found}."
        )
    return Preprocessing(size=image_size, mean=tuple(map(float, mean)), std=tuple(map(float, std)))


def _sides(size: int | list[int] | Mapping[str, int]) -> set[int]:
    """The lengths in a size, which may be a number, a list, or a mapping."""
    return set(size.values()) if isinstance(size, Mapping) else set(size) if isinstance(size, list) else {size}

"""How a ViT's images are prepared: what its files say, which `tajax.data` does.

Files of ViTs ask for more than CLIP's: to squash images into a square, to resize to 256 pixels and cut out 224, to
interpolate bilinearly. What cannot be done is refused by name.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tajax.models.files import describe, read_json
from tajax.models.layout import PREPROCESSOR, PROCESSOR, is_there
from tajax.models.preprocessor import INERT, OPENAI_MEAN, OPENAI_STD, channels, same_value
from tajax.types import JsonObject, Preprocessing, Resize

__all__ = ["Prepared", "read_prepared"]

_VIT, _BIT = "ViTImageProcessor", "BitImageProcessor"
_KINDS = {name: _VIT for name in (_VIT, f"{_VIT}Fast", f"{_VIT}Pil", "ViTFeatureExtractor")}
_KINDS |= {name: _BIT for name in (_BIT, f"{_BIT}Fast", f"{_BIT}Pil")}
_KINDS |= {f"CLIP{name}": _BIT for name in ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil")}
"""What the classes of transformers do, which CLIP's does as BiT's."""

_HALF = (0.5, 0.5, 0.5)
_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    _VIT: {"size": 224, "resample": 2, "do_center_crop": False, "image_mean": list(_HALF), "image_std": list(_HALF)},
    _BIT: {
        "size": {"shortest_edge": 224},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": 224,
        "image_mean": list(OPENAI_MEAN),
        "image_std": list(OPENAI_STD),
    },
}
"""What they take where a file says nothing."""

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_MUST_BE: Mapping[str, tuple[object, ...]] = {
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "do_convert_rgb": (True, False),  # images are RGB here in any case
    "do_pad": (False,),
    "rescale_factor": (1 / 255,),
    "default_to_square": (True, False),
}
_READ = {"size", "crop_size", "resample", "do_center_crop", "image_mean", "image_std"}
_READ |= {"image_processor_type", "feature_extractor_type"}


class Prepared(NamedTuple):
    """How images are prepared.

    Attributes:
        preprocessing: Size, mean, deviation, and what is done before the centre is cut out.
        resize: The last of it, in words.
        source: Which file says so.
        written: All such files, by name, as `save` writes them back.
    """

    preprocessing: Preprocessing
    resize: str
    source: str
    written: Mapping[str, JsonObject]


def read_prepared(directory: Path, *, model_type: str) -> Prepared | None:
    """What the files beside a model say of how its images are prepared; None if there are none.

    Args:
        directory: Where `processor_config.json` (transformers 5) and `preprocessor_config.json` are looked for.
        model_type: Of the model, which tells the class where a file does not.

    Raises:
        FileNotFoundError, PermissionError: a file is a link to nothing, or may not be read.
        ValueError: a file is damaged, asks for what is not done here, or contradicts the other.
    """
    written = {name: read_json(path) for name in (PROCESSOR, PREPROCESSOR) if is_there(path := directory / name)}
    sections = {name: found.get("image_processor") if name == PROCESSOR else found for name, found in written.items()}
    told = {
        name: describe(directory / name, functools.partial(_read, section, model_type))
        for name, section in sections.items()
        if section is not None
    }
    if not told:
        return None
    (source, (preprocessing, resize)), *others = told.items()
    for name, other in others:
        if other != told[source]:
            raise ValueError(
                f"{source} and {name} in {directory} disagree: {preprocessing} and '{resize}' in the one, {other[0]} "
                f"and '{other[1]}' in the other. Remove the one that is not meant."
            )
    return Prepared(preprocessing, resize, source, written)


def _read(section: object, model_type: str) -> tuple[Preprocessing, str]:
    if not isinstance(section, Mapping):
        raise ValueError(f"image_processor must be an object, got {section!r}.")
    stated = {name: value for name, value in section.items() if value is not None}
    named = stated.get("image_processor_type", stated.get("feature_extractor_type"))
    kind = (_VIT if model_type == "vit" else _BIT) if named is None else _KINDS.get(named)
    if kind is None:
        raise ValueError(f"image_processor_type {named!r} is not known. Known are {', '.join(_KINDS)}.")
    other = [
        f"{name}={value!r}"
        for name, value in stated.items()
        if name not in _READ | INERT and not any(same_value(value, choice) for choice in _MUST_BE.get(name, ()))
    ]
    if other:
        raise ValueError(
            f"it asks for {', '.join(other)}, which is not done here. Done are resize, centre crop, 1/255, and mean "
            "and deviation of 3 channels."
        )
    said = {**_DEFAULTS[kind], **stated}
    mean, std = channels("image_mean", said["image_mean"]), channels("image_std", said["image_std"], positive=True)
    resample = said["resample"]
    if isinstance(resample, str):
        resample = next((number for number, name in _FILTERS.items() if name == resample.lower()), resample)
    if isinstance(resample, bool) or resample not in _FILTERS:
        raise ValueError(f"resample {said['resample']!r} is unknown; it is a number of {_FILTERS}.")
    short, square = _size(said["size"], squash=kind == _VIT)
    crop = _square("crop_size", said.get("crop_size", short)) if said["do_center_crop"] is True else None
    if said["do_center_crop"] not in (True, False):
        raise ValueError(f"do_center_crop must be true or false, got {said['do_center_crop']!r}.")
    if crop is None and not square:
        raise ValueError(
            f"it resizes the shorter side to {short} pixels and crops nothing: images would not be square."
        )
    side = short if crop is None else crop
    if side > short:
        raise ValueError(f"it cuts {side} pixels out of {short}, which pads images: that is not done here.")
    filter_name = _FILTERS[resample]
    resize = f"{'squashed to' if square else 'shorter side to'} {short}, {filter_name}"
    resize += "" if crop is None else f", centre {crop} cut out"
    assert mean is not None and std is not None  # noqa: S101
    own = Resize(short, square, filter_name)
    return Preprocessing(side, mean, std, None if own == Resize(side) else own), resize


def _size(value: object, *, squash: bool) -> tuple[int, bool]:
    """The side that images are resized to, and whether both sides are."""
    if isinstance(value, Mapping) and value.keys() == {"shortest_edge"}:
        return _square("size", value["shortest_edge"]), False
    return _square("size", value), squash or not isinstance(value, int)


def _square(name: str, value: object) -> int:
    sides = [value]
    if isinstance(value, Mapping):
        sides = [value.get("height"), value.get("width")] if value.keys() == {"height", "width"} else [None]
    elif isinstance(value, list):
        sides = value
    if len(set(map(repr, sides))) != 1 or isinstance(sides[0], bool) or not isinstance(sides[0], int) or sides[0] < 1:
        raise ValueError(f"{name} {value!r} is not one side, in pixels: only square images can be loaded.")
    return sides[0]

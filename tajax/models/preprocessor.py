"""How images are prepared before the encoder, in the files in which transformers and open_clip write it down."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tajax.models.files import describe, read_json
from tajax.models.layout import DEFAULT, OPEN_CLIP_CONFIG, PREPROCESSOR, PROCESSOR, is_there
from tajax.types import JsonObject, Preprocessing

__all__ = [
    "INERT",
    "OPENAI_MEAN",
    "OPENAI_STD",
    "channels",
    "default_preprocessing",
    "preprocessor_config",
    "read_preprocessing",
    "same_value",
]

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_log = logging.getLogger(__name__)
_BICUBIC = 3  # PIL's number

_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
_DEFAULT_SIZES = {"size": 224, "crop_size": 224}  # of these classes, whatever the model
INERT = frozenset(
    ["processor_class", "_processor_class", "transformers_version", "_valid_processor_keys", "_valid_kwargs_names"]
    + ["return_tensors", "data_format", "input_data_format", "device", "disable_grouping", "image_seq_length"]
    + ["pad_size"]  # without do_pad
)
"""Keys of transformers that change no pixel."""


def preprocessor_config(preprocessing: Preprocessing) -> JsonObject:
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


def read_preprocessing(directory: Path, *, image_size: int) -> tuple[Preprocessing, str] | None:
    """The preprocessing written down beside a model's weights, and which file says so; None if none does.

    All files that say how images are prepared are read, and must agree: `processor_config.json` (transformers 5),
    `preprocessor_config.json` (earlier ones), and the `preprocess_cfg` of `open_clip_config.json`. What a file leaves
    out is what its library takes then; where that is mean or deviation, a line in the log and what is returned say so.

    Args:
        directory: Where the files are looked for.
        image_size: Side of the encoder's input, in pixels.

    Raises:
        FileNotFoundError, PermissionError: a file is a link to nothing, or may not be read.
        ValueError: a file is damaged, asks for anything but "bicubic resize of the shorter side to `image_size`, centre
            crop, mean and deviation", which alone is implemented, or contradicts another.
    """
    found = {
        name: describe(path, functools.partial(read, read_json(path), image_size))
        for name, read in _FORMS.items()
        if is_there(path := directory / name)
    }
    told = {name: settings for name, settings in found.items() if settings is not None}
    if PROCESSOR in found and not told:
        raise ValueError(
            f"{directory / PROCESSOR} has no image_processor, and no {PREPROCESSOR} lies beside it: nothing says how "
            f"images are prepared. Put the model's {PREPROCESSOR} there."
        )
    if not told:
        return None
    (source, settings), *others = told.items()
    for name, other in others:
        if not np.allclose(settings.filled(), other.filled(), rtol=0, atol=1e-6):
            raise ValueError(
                f"{source} and {name} in {directory} disagree: mean and deviation are {settings} in the one and "
                f"{other} in the other. Remove the one that is not meant."
            )
    lacking = " and ".join(f"image {what}" for what, value in settings._asdict().items() if value is None)
    if lacking:
        _log.warning("%s has no %s: OpenAI's is taken, as transformers and open_clip do.", directory / source, lacking)
        source += f"; {lacking}: {DEFAULT}"
    return Preprocessing(image_size, *settings.filled()), source


def default_preprocessing(directory: Path, *, image_size: int) -> tuple[Preprocessing, str]:
    """OpenAI's preprocessing, for a directory in which nothing says another, and `DEFAULT`; the log says so."""
    _log.warning(
        "No %s in %s: images are prepared with OpenAI's mean and deviation. If the model was trained with others, put "
        "its %s beside the weights.",
        " or ".join((PREPROCESSOR, PROCESSOR)),
        directory,
        PREPROCESSOR,
    )
    return Preprocessing(image_size, OPENAI_MEAN, OPENAI_STD), DEFAULT


class _Settings(NamedTuple):
    """Mean and deviation of three channels as a file says them; None where it leaves them to its library."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def filled(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Both, with what transformers and open_clip take where nothing is said."""
        return self.mean or OPENAI_MEAN, self.std or OPENAI_STD

    def __str__(self) -> str:
        return " and ".join(str(list(values)) for values in self.filled())


def _of_processor(found: JsonObject, side: int) -> _Settings | None:
    """Of `processor_config.json`; None where it is of a time when it held nothing about images."""
    section = found.get("image_processor")
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise ValueError(f"image_processor must be an object, got {section!r}.")
    return _of_transformers(section, side)


def _of_transformers(found: Mapping[str, object], side: int) -> _Settings:
    accepted: dict[str, Sequence[object]] = {}
    accepted |= dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), (True,))
    accepted |= dict.fromkeys(("do_pad", "use_square_size", "default_to_square"), (False,))
    accepted |= dict.fromkeys(("image_processor_type", "feature_extractor_type"), _PROCESSORS)
    accepted |= {
        "size": (side, {"shortest_edge": side}),  # a list or height and width squash the image
        "crop_size": (side, [side, side], {"height": side, "width": side}),
        "resample": (_BICUBIC, "bicubic"),
        "rescale_factor": (1 / 255,),
    }
    stated = _DEFAULT_SIZES | {name: value for name, value in found.items() if value is not None}
    return _settings(stated, accepted, INERT, side, mean="image_mean", std="image_std")


def _of_open_clip(found: JsonObject, side: int) -> _Settings | None:
    """Of `open_clip_config.json`; None where it leaves all to open_clip."""
    section = found.get("preprocess_cfg")
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise ValueError(f"preprocess_cfg must be an object, got {section!r}.")
    accepted: dict[str, Sequence[object]] = {
        "size": (side, [side, side]),
        "mode": ("RGB",),
        "interpolation": ("bicubic", "random"),  # random is bicubic when nothing is trained
        "resize_mode": ("shortest",),
    }
    stated = {name: value for name, value in section.items() if value is not None}
    return _settings(stated, accepted, {"fill_color"}, side, mean="mean", std="std")  # it fills what 'longest' leaves


def _settings(
    stated: Mapping[str, object],
    accepted: Mapping[str, Sequence[object]],
    inert: Collection[str],
    side: int,
    *,
    mean: str,
    std: str,
) -> _Settings:
    """Mean and deviation among what is stated, once nothing else in it asks for other pixels."""
    other = [
        f"{name}={value!r}"
        for name, value in stated.items()
        if name not in {mean, std, *inert} and not any(same_value(value, choice) for choice in accepted.get(name, ()))
    ]
    if other:
        raise ValueError(
            f"it asks for {', '.join(other)}: other preprocessing than CLIP's, which alone can be done. That is: RGB, "
            f"bicubic resize of the shorter side to the {side} pixels that the image tower takes, centre crop, 1/255, "
            "mean and deviation of 3 channels."
        )
    return _Settings(channels(mean, stated.get(mean)), channels(std, stated.get(std), positive=True))


def same_value(value: object, choice: object) -> bool:
    """Whether two values of a JSON file are equal, floats up to their last digits."""
    if isinstance(value, float) and isinstance(choice, float):
        return math.isclose(value, choice, rel_tol=1e-6)
    return value == choice


def channels(name: str, value: object, *, positive: bool = False) -> tuple[float, ...] | None:
    """One number a channel, of a list of three or of one for all; None of None.

    Raises:
        ValueError: they are not 3 finite numbers, or not positive ones where they must be.
    """
    if value is None:
        return None
    values = value if isinstance(value, list) else [value] * 3
    numbers = [x for x in values if isinstance(x, int | float) and math.isfinite(x) and (x > 0 or not positive)]
    if len(numbers) != 3 or len(values) != 3:
        kind = "positive" if positive else "finite"
        raise ValueError(f"{name} {value!r} is not 3 {kind} numbers, one a channel.")
    return tuple(map(float, numbers))


_FORMS: Mapping[str, Callable[[JsonObject, int], _Settings | None]] = {
    PROCESSOR: _of_processor,
    PREPROCESSOR: _of_transformers,
    OPEN_CLIP_CONFIG: _of_open_clip,
}
"""How each file is read; in transformers, too, the first of two wins."""

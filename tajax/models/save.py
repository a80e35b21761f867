"""Saving CLIPs as directories that PyTorch's libraries and `load` open: Hugging Face's, and open_clip's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jax.typing import DTypeLike

from tajax import atomic
from tajax.models import files
from tajax.models.convert import NAMINGS, tensor_views
from tajax.models.geometry import ClipConfig
from tajax.models.layout import CONFIGS
from tajax.models.loading import check_tokenizer
from tajax.models.open_clip import to_open_clip
from tajax.models.preprocessor import preprocessor_config
from tajax.models.tokenizer import ClipTokenizer
from tajax.types import Params, Preprocessing

__all__ = ["save_pretrained"]


def save_pretrained(
    directory: str | Path,
    clip_config: ClipConfig,
    params: Params,
    tokenizer: ClipTokenizer,
    preprocessing: Preprocessing,
    *,
    dtype: DTypeLike = np.float32,
    format: str = "huggingface",
    overwrite: bool = False,
) -> None:
    """Write a directory that `load` and one of PyTorch's libraries open.

    `format` says which: Hugging Face's `CLIPModel.from_pretrained(directory)`, from `model.safetensors` and
    `config.json`, or open_clip's `create_model_and_transforms("local-dir:directory")`, from
    `open_clip_model.safetensors` and `open_clip_config.json`, whose `quick_gelu` says which activation it is. The
    tokenizer's files lie beside either. The files are written to a sibling directory that is renamed when it is
    whole, so an interrupted save leaves nothing half-written under `directory`.

    Args:
        directory: Where to; its parents are made.
        clip_config: The geometry.
        params: `{'image': …, 'text': …, 'logit_scale': []}`.
        tokenizer: Saved with it.
        preprocessing: Saved with it.
        dtype: float32 or float16, of the weights on disk. float16 rounds each weight, which is much beside a short
            task vector: see `tajax.models.rounding`.
        format: 'huggingface' or 'open_clip'.
        overwrite: Replace a model that is there. A directory that holds something else is never replaced.

    Raises:
        FileExistsError: `directory` is taken.
        ValueError: another dtype or format, or a geometry that open_clip cannot express; a leaf that does not fit, is
            not finite, or overflows float16; a tokenizer or preprocessing that belongs to another geometry.
    """
    directory, dtype = Path(directory).expanduser().resolve(), np.dtype(dtype)
    if dtype not in (np.dtype(np.float32), np.dtype(np.float16)):
        raise ValueError(f"dtype must be float32 or float16, got {dtype}.")
    if format not in NAMINGS:
        raise ValueError(f"format {format!r} is unknown; choose one of {', '.join(NAMINGS)}.")
    described = to_open_clip(clip_config, preprocessing) if format == "open_clip" else clip_config.to_hf()
    check_tokenizer(clip_config, tokenizer)
    if preprocessing.size != clip_config.vision.image_size:
        raise ValueError(
            f"preprocessing.size is {preprocessing.size}, the tower takes {clip_config.vision.image_size}."
        )
    if preprocessing.resize is not None:
        raise ValueError(
            f"preprocessing.resize is {preprocessing.resize}: files of a CLIP cannot say it; leave it out."
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        if not overwrite:
            raise FileExistsError(
                f"{directory} exists. Choose another directory, or pass overwrite=True to replace it."
            )
        if not any((directory / name).is_file() for name in CONFIGS):
            raise FileExistsError(
                f"{directory} holds something other than a model (no {' or '.join(CONFIGS)}): not replaced."
            )
    tensors = {}
    for name, value in tensor_views(params, clip_config, naming=format).items():
        with np.errstate(over="ignore"):
            tensors[name] = value.astype(dtype, copy=False)
        if not np.isfinite(tensors[name]).all():
            why = (
                "is not finite"
                if not np.isfinite(value).all()
                else f"overflows {dtype} (max |x| {np.abs(value).max():.3g})"
            )
            raise ValueError(f"{name} {why}: not saved to {directory}.")

    with atomic.directory(directory) as partial:
        if format == "open_clip":
            files.write_tensors(partial / "open_clip_model.safetensors", tensors)
            files.write_json(partial / "open_clip_config.json", described)
        else:
            files.write_tensors(partial / "model.safetensors", tensors)
            files.write_json(partial / "config.json", described | {"dtype": dtype.name})
            files.write_json(partial / "preprocessor_config.json", preprocessor_config(preprocessing))
        tokenizer.save(partial)

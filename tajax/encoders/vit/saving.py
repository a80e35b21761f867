"""Saving ViTs as directories that transformers opens: the files they were loaded from, with other weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tajax import atomic
from tajax.encoders.vit.loading import LoadedVit
from tajax.encoders.vit.tensors import tensor_views
from tajax.models import files
from tajax.models.layout import CONFIG
from tajax.types import Params

__all__ = ["check_format", "save_vit"]


def check_format(format: str) -> None:
    """Raises ValueError for another format than 'huggingface'."""
    if format != "huggingface":
        raise ValueError(f"format {format!r} cannot hold a ViT; there is 'huggingface'.")


def save_vit(directory: str | Path, vit: LoadedVit, params: Params, *, format: str = "huggingface") -> None:
    """Write a directory that `load_vit` and transformers' `AutoModel.from_pretrained(directory)` open.

    Names of tensors are those of the file that it was loaded from, without wrappers. What belongs to the model and not
    to the encoder (a pooler, a classifier, a mask token) is written as it was: a classifier is the base's still. So are
    `config.json`, but for the dtype, and what says how images are prepared. The directory is there when it is whole, or
    not at all.

    Args:
        directory: Where to; its parents are made.
        vit: The model.
        params: A tree like `vit.params`, written in float32.
        format: 'huggingface'.

    Raises:
        FileExistsError: `directory` is taken.
        ValueError: another format; leaves that do not fit, or are not finite.
    """
    check_format(format)
    directory = Path(directory).expanduser().resolve()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists. Choose another directory.")
    tensors = {vit.found.written(name): value for name, value in vit.carried.items()}
    for name, value in tensor_views(params, vit.config, modern=vit.found.modern).items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name} is not finite: not saved to {directory}.")
        tensors[vit.found.written(name)] = value.astype(np.float32, copy=False)
    described = {key: value for key, value in vit.described.items() if key not in ("dtype", "torch_dtype")}
    with atomic.directory(directory) as partial:
        files.write_tensors(partial / "model.safetensors", tensors)
        files.write_json(partial / CONFIG, described | {"dtype": "float32"})
        for name, written in vit.prepared.written.items():
            files.write_json(partial / name, written)

"""Tensors and configuration as they lie on disk. Only safetensors are read: a pickle could run code."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from tajax.models.convert import detect_naming
from tajax.models.geometry import ClipConfig
from tajax.models.open_clip import from_open_clip, infer_config

__all__ = ["read_json", "read_model", "write_json", "write_tensors"]

_T = TypeVar("_T")

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SINGLE, _INDEX, _OPEN_CLIP = "model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors"
_CONVERT = (
    "Only safetensors are read. Convert once, where PyTorch is installed:\n"
    '    python -c "import transformers; '
    "transformers.CLIPModel.from_pretrained('SOURCE').save_pretrained('TARGET')\"\n"
    "(SOURCE may be a hub id), or name a revision that holds model.safetensors."
)


def read_model(path: Path) -> tuple[dict[str, np.ndarray], ClipConfig]:
    """Every tensor of a checkpoint by name, and the geometry that its configuration or its shapes tell.

    Args:
        path: A directory, in which `model.safetensors`, its sharded index, `open_clip_model.safetensors` or a
            single other `.safetensors` file is looked for in this order; or such a file.

    Raises:
        FileNotFoundError: no safetensors, or no configuration where one is needed.
        ValueError: a damaged file, or a configuration that is not a CLIP's.
    """
    tensors = _read_tensors(path)
    directory = path if path.is_dir() else path.parent
    huggingface, open_clip = directory / "config.json", directory / "open_clip_config.json"
    naming = _describe(path, lambda: detect_naming(tensors))
    if naming == "open_clip" and open_clip.is_file():
        config = _describe(open_clip, lambda: from_open_clip(read_json(open_clip)))
    elif huggingface.is_file():
        config = _describe(huggingface, lambda: ClipConfig.from_hf(read_json(huggingface)))
    elif naming == "huggingface":
        raise FileNotFoundError(f"{huggingface} is missing: weights with Hugging Face's names need it beside them.")
    else:
        config = _describe(path, lambda: infer_config(tensors))
        logging.getLogger(__name__).warning(
            "No open_clip_config.json or config.json in %s: sizes are told from the shapes, and the activation is "
            "taken to be OpenAI's quick_gelu. Most of LAION's models use gelu: put their open_clip_config.json "
            "beside the weights.",
            directory,
        )
    return tensors, config


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write one safetensors file, marked as `transformers` expects."""
    path.write_bytes(save(dict(tensors), metadata={"format": "pt"}))  # `save_file` would hide it from other users


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
        ValueError: not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}.")
    return value


def write_json(path: Path, value: Mapping) -> None:
    """Write an object as JSON, for people to read too."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    if not path.is_dir():
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} is not a .safetensors file. {_CONVERT}")
        return _read_file(path)
    if (path / _SINGLE).is_file():
        return _read_file(path / _SINGLE)
    if (path / _INDEX).is_file():
        return _read_shards(path / _INDEX)
    found = [path / _OPEN_CLIP] if (path / _OPEN_CLIP).is_file() else sorted(path.glob("*.safetensors"))
    if len(found) > 1:
        raise ValueError(
            f"{path} holds several safetensors files ({', '.join(f.name for f in found)}): pass one of them."
        )
    if not found:
        pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
        held = f"only {', '.join(pickles)}" if pickles else f"none of {_SINGLE}, {_INDEX}, {_OPEN_CLIP}"
        raise FileNotFoundError(f"{path} holds no weights that can be read: {held}. {_CONVERT}")
    return _read_file(found[0])


def _read_file(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except SafetensorError as error:
        with path.open("rb") as file:
            pointer = file.read(24).startswith(b"version https://git-lfs")
        why = "a Git LFS pointer, not the weights (run `git lfs pull`)" if pointer else "truncated or damaged"
        raise ValueError(f"{path} ({path.stat().st_size:,} bytes) is {why}: {error}. Fetch the file again.") from error


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint split over files, each taken from the file that the index names."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{index} has no weight_map.")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(where.values())):
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, which is not a file beside it.")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index} names {name}, which is missing from {index.parent}.")
        shard = _read_file(index.parent / name)
        listed = {tensor for tensor, file in where.items() if file == name}
        differing = listed ^ shard.keys()
        if differing:
            raise ValueError(f"{index} and {name} disagree on {len(differing)} tensors, such as {min(differing)}.")
        tensors |= shard
    return tensors


def _describe(path: Path, describe: Callable[[], _T]) -> _T:
    """What `describe` gives; its errors name the file."""
    try:
        return describe()
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error

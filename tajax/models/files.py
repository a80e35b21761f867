"""Tensors and configuration as they lie on disk: safetensors, and PyTorch's files without running anything in them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np
from safetensors.numpy import save

from tajax import tensor_files, text_files
from tajax.models.convert import detect_naming, few, find_model
from tajax.models.geometry import ClipConfig
from tajax.models.layout import CONFIG, DEFAULT, OPEN_CLIP_CONFIG, PICKLED_WEIGHTS, WEIGHTS, is_there
from tajax.models.open_clip import from_open_clip, infer_config
from tajax.models.torch_files import open_torch_file

__all__ = [
    "Checkpoint",
    "activation_of",
    "describe",
    "open_checkpoint",
    "read_config",
    "read_json",
    "read_model",
    "write_json",
    "write_tensors",
]

_T = TypeVar("_T")

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELU": "gelu"}
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state")  # what a trainer leaves beside the weights


class Checkpoint(NamedTuple):
    """A checkpoint on disk: the names of its tensors, and how to read some of them."""

    path: Path
    """The file of weights, or the index of several."""
    names: Collection[str]
    """Of all tensors, as the file has them."""
    read: Callable[[Iterable[str]], dict[str, np.ndarray]]
    """Gives the tensors of some names, and raises ValueError where the file is damaged."""
    classes: Mapping[str, str] = MappingProxyType({})
    """Of a whole pickled module: the classes of its modules, by the modules' names."""
    texts: Mapping[str, str] = MappingProxyType({})
    """Texts that a PyTorch file holds among its tensors."""


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a directory or a file. A line in the log says which file was taken.

    Args:
        path: A `.safetensors` file, a PyTorch file (`.bin`, `.pt`, `.pth`, `.ckpt`), or a directory, in which are
            looked for, in this order, `model.safetensors`, its sharded index, `open_clip_model.safetensors`, a single
            other `.safetensors` file; `pytorch_model.bin`, its sharded index, `open_clip_pytorch_model.bin`, a single
            other PyTorch file. Of a PyTorch file nothing is run, see `tajax.models.pickled`.

    Raises:
        FileNotFoundError: no weights.
        ValueError: a damaged file, one that asks for code, or one of several that could be meant.
    """
    file = _find_weights(path) if path.is_dir() else path
    kind = "safetensors" if file.suffix == ".safetensors" or file.name in WEIGHTS else "PyTorch"
    logging.getLogger(__name__).info("Weights are read from %s (%s).", file, kind)
    if file.suffix == ".json":
        tensors = _read_shards(file)
        return Checkpoint(file, tensors.keys(), lambda names: {name: tensors[name] for name in names})
    return _open_file(file)


def activation_of(checkpoint: Checkpoint, names: Mapping[str, str]) -> str | None:
    """The activation of the image tower, told by the class of a whole pickled module; None where nothing tells it.

    Args:
        checkpoint: The checkpoint.
        names: Of its tensors, as `find_model` gives them.
    """
    stored = [name for canonical, name in names.items() if canonical.endswith("class_embedding")]
    for tower in (name.removesuffix("class_embedding").removesuffix("embeddings.") for name in stored):
        for inside in ("transformer.resblocks.0.mlp.gelu", "encoder.layers.0.mlp.activation_fn"):
            named = checkpoint.classes.get(tower + inside, "").rpartition(".")[2].removesuffix("Activation")
            if named in _ACTIVATIONS:
                return _ACTIVATIONS[named]
    return None


def read_model(path: Path) -> tuple[dict[str, np.ndarray], ClipConfig, str]:
    """Every tensor of a CLIP by name, the geometry that its configuration or its shapes tell, and what told it.

    What told it is the name of the configuration; without one, "a pickled module" where the activation is that of its
    classes, or "default (OpenAI's)".

    Args:
        path: A directory or a file, as in `open_checkpoint`.

    Raises:
        FileNotFoundError: no weights, or no configuration where one is needed.
        ValueError: a damaged file, or a configuration that is not a CLIP's.
    """
    checkpoint = open_checkpoint(path)
    names = {name: name for name in checkpoint.names}
    if checkpoint.path.suffix in _PICKLES:
        names = describe(path, lambda: find_model(checkpoint.names))
    held = checkpoint.read(names.values())
    tensors = {name: held[stored] for name, stored in names.items()}
    naming = describe(path, lambda: detect_naming(tensors))
    directory = path if path.is_dir() else path.parent
    config = read_config(directory, naming)
    if config is not None:
        return tensors, config, _config_file(directory, naming).name
    if naming == "huggingface":
        raise FileNotFoundError(
            f"{directory / CONFIG} is missing: weights with Hugging Face's names need it beside them."
        )
    activation = activation_of(checkpoint, names)
    config = describe(path, lambda: infer_config(tensors, hidden_act=activation or "quick_gelu"))
    if activation is None:
        logging.getLogger(__name__).warning(
            "No open_clip_config.json or config.json in %s: sizes are told from the shapes, and the activation is "
            "taken to be OpenAI's quick_gelu. Most of LAION's models use gelu: put their open_clip_config.json "
            "beside the weights.",
            directory,
        )
    return tensors, config, "a pickled module" if activation else DEFAULT


def read_config(directory: Path, naming: str, *, projection_dim: int | None = None) -> ClipConfig | None:
    """The geometry that the configuration in a directory describes; None if there is no configuration.

    Args:
        directory: Where `config.json` or, under open_clip's names, `open_clip_config.json` is looked for.
        naming: Of the tensors, 'huggingface' or 'open_clip'.
        projection_dim: Given, the configuration may be of an image tower alone, which does not tell it.

    Raises:
        ValueError, TypeError: it is damaged or describes something else; the file is named.
    """
    path = _config_file(directory, naming)
    if not is_there(path):
        return None
    config = read_json(path)
    if path.name == OPEN_CLIP_CONFIG:
        return describe(path, lambda: from_open_clip(config))
    if config.get("model_type") == "clip_vision_model":
        if projection_dim is None:
            raise ValueError(
                f"{path} describes an image tower without its text tower: read it with load_finetuned, which "
                "takes the model that it was made from."
            )
        config = {"vision_config": config, "projection_dim": projection_dim}
    return describe(path, lambda: ClipConfig.from_hf(config))


def _config_file(directory: Path, naming: str) -> Path:
    """The configuration that goes with the names of tensors; it need not be there."""
    open_clip = directory / OPEN_CLIP_CONFIG
    return open_clip if naming == "open_clip" and is_there(open_clip) else directory / CONFIG


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write one safetensors file, marked as `transformers` expects."""
    path.write_bytes(save(dict(tensors), metadata={"format": "pt"}))  # `save_file` would hide it from other users


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
        ValueError: not JSON, or not an object.
    """
    try:
        value = json.loads(text_files.read(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}.")
    return value


def write_json(path: Path, value: Mapping) -> None:
    """Write an object as JSON, for people to read too."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _find_weights(directory: Path) -> Path:
    """The file of weights in a directory, or the index of several; safetensors before pickles."""
    for names, kinds in ((WEIGHTS, (".safetensors",)), (PICKLED_WEIGHTS, _PICKLES)):
        for name in names:
            if is_there(directory / name):
                return directory / name
        files = (f for f in directory.iterdir() if f.suffix in kinds and not f.name.startswith(_NO_WEIGHTS))
        held = sorted(f for f in files if is_there(f))
        if len(held) > 1:
            listed = few([file.name for file in held])
            raise ValueError(f"{directory} holds several files of weights ({listed}): pass one of them.")
        if held:
            return held[0]
    raise FileNotFoundError(
        f"{directory} holds no weights that can be read: none of {', '.join(WEIGHTS)}, "
        f"{', '.join(PICKLED_WEIGHTS)}, and no other file that ends in .safetensors, {', '.join(_PICKLES)}."
    )


def _open_file(path: Path) -> Checkpoint:
    if path.suffix in _PICKLES:
        file = open_torch_file(path)
        return Checkpoint(path, file.tensors.keys(), file.read, file.classes, file.texts)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is neither a .safetensors file nor a PyTorch file ({', '.join(_PICKLES)}).")
    tensors, _ = tensor_files.read(path)
    return Checkpoint(path, tensors.keys(), lambda names: {name: tensors[name] for name in names})


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint split over files, each taken from the file that the index names."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files.")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(where.values())):
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, which is not a file beside it.")
        if not is_there(index.parent / name):
            raise FileNotFoundError(f"{index} names {name}, which is missing from {index.parent}.")
        part = _open_file(index.parent / name)
        shard = part.read(part.names)
        listed = {tensor for tensor, file in where.items() if file == name}
        differing = listed ^ shard.keys()
        if differing:
            raise ValueError(f"{index} and {name} disagree on {len(differing)} tensors, such as {min(differing)}.")
        tensors |= shard
    return tensors


def describe(path: Path, describe: Callable[[], _T]) -> _T:
    """What `describe` gives; its errors name the file."""
    try:
        return describe()
    except (TypeError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError) as error:
        raise ValueError(f"{path} holds values of another kind than it should: {error}") from error

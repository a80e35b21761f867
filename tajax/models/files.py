"""Tensors and configuration as they lie on disk: safetensors, and PyTorch's files without running anything in them."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np

from tajax import tensor_files, text_files
from tajax.models.convert import few
from tajax.models.foreign import NO_WEIGHTS, in_directory
from tajax.models.geometry import ClipConfig
from tajax.models.layout import ADAPTER, CONFIG, DEFAULT, OPEN_CLIP_CONFIG, PICKLED_WEIGHTS, WEIGHTS, is_there
from tajax.models.open_clip import from_open_clip, infer_config
from tajax.models.state_dicts import find_model
from tajax.models.torch_files import open_torch_file

__all__ = [
    "Checkpoint",
    "Model",
    "Stored",
    "describe",
    "dtype_notes",
    "open_checkpoint",
    "open_tensors",
    "read_config",
    "read_json",
    "read_model",
    "write_json",
    "write_tensors",
]

_T = TypeVar("_T")

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELU": "gelu"}
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.\w+")


class Checkpoint(NamedTuple):
    """A model on disk: the names of its tensors, how to read some of them, and what else the file told."""

    path: Path
    """The file of weights, or the index of several."""
    names: Mapping[str, str]
    """Of its tensors: names as the model has them, and as the file has them."""
    format: str
    """'huggingface', 'open_clip', or 'linearized': two lists of parameters, `params.0` … and `params0.0` …."""
    read_stored: Callable[[Iterable[str]], dict[str, np.ndarray]]
    """Gives tensors by the names that the file has, and raises ValueError where it is damaged. They may be the file
    itself (`tensor_files.mapped`): what is kept has to be copied."""
    classes: Mapping[str, str] = MappingProxyType({})
    """Of a whole pickled module: the classes of its modules, by the names that the model has."""
    texts: Mapping[str, str] = MappingProxyType({})
    """Texts that a PyTorch file holds among its tensors."""
    notes: tuple[str, ...] = ()
    """What was removed from names, and what lies in the file and is not read."""

    def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Some tensors, by the names that the model has, as of `read_stored`. Raises ValueError if it is damaged."""
        chosen = {name: self.names[name] for name in names}
        held = self.read_stored(chosen.values())
        return {name: held[stored] for name, stored in chosen.items()}

    def is_module(self) -> bool:
        """Whether the image tower is a whole pickled module, and not a state dict."""
        return bool({"visual", "vision_model", "vision_model.embeddings"} & self.classes.keys())

    def activation(self) -> str | None:
        """The activation of the image tower, told by the class of a whole module; None where nothing tells it."""
        for inside in ("visual.transformer.resblocks.0.mlp.gelu", "vision_model.encoder.layers.0.mlp.activation_fn"):
            named = self.classes.get(inside, "").rpartition(".")[2].removesuffix("Activation")
            if named in _ACTIVATIONS:
                return _ACTIVATIONS[named]
        return None


class Model(NamedTuple):
    """Every tensor of a CLIP by name, and the geometry that its configuration or its shapes tell."""

    tensors: dict[str, np.ndarray]
    """As of `Checkpoint.read_stored`."""
    config: ClipConfig
    source: str
    """What told it: the name of the configuration; without one 'a pickled module', where the activation is that of its
    classes, or "default (OpenAI's)"."""
    notes: tuple[str, ...]
    """What was not taken as it stands in the file."""


def open_checkpoint(path: Path, *, which: str | None = None) -> Checkpoint:
    """The model in a directory or a file, however it was wrapped. Lines in the log say what was taken, and what not.

    Args:
        path: A safetensors file or a PyTorch file, told apart by their first bytes; or a directory, in which are
            looked for, in this order, `model.safetensors`, its sharded index, `open_clip_model.safetensors`, a single
            other `.safetensors` file; `pytorch_model.bin`, its sharded index, `open_clip_pytorch_model.bin`, a single
            other PyTorch file. Of a PyTorch file nothing is run, see `tajax.models.pickled`.
        which: Of several models in it the one whose names begin so, see `find_model`.

    Raises:
        FileNotFoundError: no weights.
        ValueError: a damaged file, one that asks for code, or one of several that could be meant; no model, or several.
    """
    file, stored = open_tensors(path)
    found = describe(file, lambda: find_model(stored.names, stored.classes, which=which, place=str(path)))
    classes = {own: stored.classes[name] for name, own in found.modules.items()}
    notes = found.notes
    if stored.others:
        kept = few([f"{name or 'the file'} ({kind})" for name, kind in stored.others.items()])
        notes += (f"{len(stored.others)} values that are neither tensors nor numbers are kept as names: {kept}",)
    if is_there(file.parent / ADAPTER):
        notes += ("an adapter lies beside the weights and is not read",)
    logger = logging.getLogger(__name__)
    logger.info("Weights are read from %s (%s).", file, stored.kind)
    for level, said in ((logging.INFO, notes), (logging.WARNING, found.warnings)):
        for note in said:
            logger.log(level, "%s: %s.", file, note)
    return Checkpoint(file, found.names, found.format, stored.read, classes, stored.texts, notes + found.warnings)


def open_tensors(path: Path) -> tuple[Path, Stored]:
    """The file of weights in a directory, or that is given, and its tensors as it has them, of whatever model.

    Raises:
        FileNotFoundError: no weights.
        ValueError: a damaged file, one that asks for code, or one of several that could be meant.
    """
    file = _find_weights(path) if path.is_dir() else path
    return file, _open_shards(file) if file.suffix == ".json" else _open_file(file)


def read_model(path: Path, *, which: str | None = None) -> Model:
    """Every tensor of a CLIP by name, and the geometry that its configuration or its shapes tell.

    Args:
        path: A directory or a file, as in `open_checkpoint`.
        which: As in `open_checkpoint`.

    Raises:
        FileNotFoundError: no weights, or no configuration where one is needed.
        ValueError: a damaged file, or a configuration that is not a CLIP's.
    """
    checkpoint = open_checkpoint(path, which=which)
    naming = checkpoint.format
    if naming == "linearized":
        raise ValueError(f"{checkpoint.path} holds a linearised encoder, not a CLIP: read it with load_finetuned.")
    tensors = checkpoint.read(checkpoint.names)
    notes = (*checkpoint.notes, *dtype_notes(tensors))
    directory = path if path.is_dir() else path.parent
    config = read_config(directory, naming)
    if config is not None:
        return Model(tensors, config, _config_file(directory, naming).name, notes)
    if naming == "huggingface":
        raise FileNotFoundError(
            f"{directory / CONFIG} is missing: weights with Hugging Face's names need it beside them."
        )
    activation = checkpoint.activation()
    config = describe(path, lambda: infer_config(tensors, hidden_act=activation or "quick_gelu"))
    if activation is None:
        logging.getLogger(__name__).warning(
            "No open_clip_config.json or config.json in %s: sizes are told from the shapes, and the activation is "
            "taken to be OpenAI's quick_gelu. Most of LAION's models use gelu: put their open_clip_config.json "
            "beside the weights.",
            directory,
        )
    return Model(tensors, config, "a pickled module" if activation else DEFAULT, notes)


def dtype_notes(tensors: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """A note on the dtypes of weights that are narrower than float32; none if all are wide."""
    counts = Counter(tensor.dtype.name for tensor in tensors.values() if tensor.dtype.itemsize < 4)
    narrow = {name: count for name, count in counts.items() if name in ("float16", "bfloat16")}
    if not narrow:
        return ()
    said = " and ".join(f"{name} ({count} of {len(tensors)} tensors)" for name, count in narrow.items())
    return (f"weights are {said}",)


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
    """Write one safetensors file, marked as `transformers` expects, with one tensor at a time in memory.

    Args:
        path: The file.
        tensors: By name; views, such as transposed matrices, are put in order as they are written.
    """
    with path.open("wb") as file:
        file.writelines(tensor_files.parts(tensors, {"format": "pt"}))


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
        files = (f for f in directory.iterdir() if f.suffix in kinds and not f.name.startswith(NO_WEIGHTS))
        held = sorted(f for f in files if is_there(f))
        if len(held) > 1:
            listed = few([file.name for file in held])
            raise ValueError(f"{directory} holds several files of weights ({listed}): pass one of them.")
        if held:
            return held[0]
    raise FileNotFoundError(
        f"{directory} holds no weights that can be read: none of {', '.join(WEIGHTS)}, "
        f"{', '.join(PICKLED_WEIGHTS)}, and no other file that ends in .safetensors, {', '.join(_PICKLES)}. "
        f"{in_directory(directory)}".rstrip()
    )


class Stored(NamedTuple):
    """The tensors of a file as it has them."""

    kind: str
    names: Collection[str]
    read: Callable[[Iterable[str]], dict[str, np.ndarray]]
    """As `Checkpoint.read_stored`."""
    classes: Mapping[str, str] = MappingProxyType({})
    texts: Mapping[str, str] = MappingProxyType({})
    others: Mapping[str, str] = MappingProxyType({})


def _open_file(path: Path, *, is_shard: bool = False) -> Stored:
    """A file of tensors, of the kind that its first bytes tell; where they tell nothing, its suffix."""
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError(f"{path} is no file but a directory, a pipe or a device.")
    if _SHARD.fullmatch(path.name) and not is_shard and list(path.parent.glob("*.index.json")):
        raise ValueError(f"{path} is one of several parts of a checkpoint: give the directory {path.parent}.")
    with path.open("rb") as opened:
        start = opened.read(64)
    pickled = re.match(rb"PK\x03\x04|\x80[\x02-\x05]", start) or path.suffix in _PICKLES
    if pickled and not tensor_files.is_safetensors(start, size):
        file = open_torch_file(path)
        return Stored("PyTorch", file.tensors.keys(), file.read, file.classes, file.texts, file.others)
    if path.suffix != ".safetensors" and not tensor_files.is_safetensors(start, size):
        what = tensor_files.other_format(start)
        raise ValueError(f"{path} is {what or 'neither a safetensors file nor a PyTorch file'}.")
    if tensor_files.read_metadata(path).get("format") == tensor_files.TASK_VECTOR:
        raise ValueError(f"{path} holds a task vector of tajax, not a model: read it with load_task_vector.")
    return Stored("safetensors", tensor_files.read_names(path), lambda names: tensor_files.mapped(path, names)[0])


def _open_shards(index: Path) -> Stored:
    """The tensors of a checkpoint split over files, each taken from the file that the index names."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files.")
    parts: dict[str, Stored] = {}
    for name in sorted(set(where.values())):
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, which is not a file beside it.")
        if not is_there(index.parent / name):
            raise FileNotFoundError(f"{index} names {name}, which is missing from {index.parent}.")
        parts[name] = _open_file(index.parent / name, is_shard=True)
        listed = {tensor for tensor, file in where.items() if file == name}
        differing = listed ^ set(parts[name].names)
        if differing:
            raise ValueError(f"{index} and {name} disagree on {len(differing)} tensors, such as {min(differing)}.")

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        chosen = list(names)
        held: dict[str, np.ndarray] = {}
        for name, part in parts.items():
            held |= part.read([tensor for tensor in chosen if where[tensor] == name])
        return held

    others = {name: kind for part in parts.values() for name, kind in part.others.items()}
    return Stored(next(iter(parts.values())).kind, where.keys(), read, others=others)


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

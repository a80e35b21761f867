"""What the files of a sentence encoder's directory say: sentence-transformers', or a plain Hugging Face one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tajax import text_files
from tajax.encoders.text.geometry import BertConfig, kept_keys
from tajax.encoders.text.pooling import pooling_from_config
from tajax.models import files
from tajax.models.convert import few
from tajax.models.layout import CONFIG, MODULES, PROMPTS, SENTENCE, is_there
from tajax.types import JsonObject

__all__ = ["Description", "Prompting", "read_description", "read_modules", "read_prompting"]

_KNOWN = ("Transformer", "Pooling", "Normalize")
_SENTENCE_KEYS: Mapping[str, tuple[object, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
}
"""Keys of `sentence_bert_config.json` of which these values alone change nothing."""
_SENTENCE_OTHERS = {"max_seq_length", "do_lower_case", "modality_config", "unpad_inputs", "model_args", "config_args"}
_SENTENCE_OTHERS |= {"tokenizer_args"}


class Modules(NamedTuple):
    """What `modules.json` says."""

    transformer: Path
    """The directory of the transformer's files."""
    pooling: Path | None
    """The directory of the pooling's configuration; None without a `modules.json`."""
    normalize: bool
    """Whether features are normalised at the end, there. Here a head does that, after the linearisation."""


class Prompting(NamedTuple):
    """What is done to texts before they are tokenised."""

    max_length: int | None
    """Tokens that the encoder takes; None where the tokenizer and the geometry say it."""
    lower_case: bool
    """Whether they are lower-cased first."""
    prompt: str
    """What goes before each."""
    prompt_name: str | None
    """Its name."""
    told: JsonObject
    """All that `config_sentence_transformers.json` holds, which is written back."""


class Description(NamedTuple):
    """A sentence encoder but for its weights and its tokenizer."""

    config: BertConfig
    kept: JsonObject
    """Keys of `config.json` that change no feature, and are written back."""
    modules: Modules
    pooling: tuple[str, ...]
    prompting: Prompting
    notes: tuple[str, ...]
    """What no file says, and what goes before each text."""


def read_description(directory: Path) -> Description:
    """What the files in a directory say of a sentence encoder.

    Raises:
        FileNotFoundError: no `config.json`, or no configuration of the pooling that `modules.json` names.
        ValueError, TypeError: a damaged file; another architecture; modules other than a transformer, pooling and
            normalisation; a pooling, or a step before the tokenizer, that is not known. The message names the file.
    """
    modules = read_modules(directory)
    path = modules.transformer / CONFIG
    if not is_there(path):
        raise FileNotFoundError(f"{path} is missing: weights need it beside them.")
    raw = files.read_json(path)
    config = files.describe(path, lambda: BertConfig.from_hf(raw))
    notes: tuple[str, ...] = ()
    if modules.pooling is None:
        pooling: tuple[str, ...] = ("mean",)
        notes = (f"no {MODULES} says how tokens are pooled: their mean is taken",)
    else:
        pooling = read_pooling(modules.pooling, config)
    prompting = read_prompting(directory, modules.transformer)
    if prompting.prompt:
        notes += (f"the prompt {prompting.prompt_name!r}, {prompting.prompt!r}, goes before each text ({PROMPTS})",)
    return Description(config, kept_keys(raw), modules, pooling, prompting, notes)


def read_modules(directory: Path) -> Modules:
    """What `modules.json` says; without one, a transformer whose files lie in the directory itself.

    Raises:
        ValueError: modules other than these three, or in another order; a path that leads elsewhere.
    """
    path = directory / MODULES
    if not is_there(path):
        return Modules(directory, None, False)
    try:
        listed = json.loads(text_files.read(path))
        kinds = [str(module["type"]) for module in listed]
        places = [str(module.get("path", "")) for module in listed]
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is not a list of modules with type and path: {error!r}.") from error
    names = [kind.rpartition(".")[2] for kind in kinds]
    foreign = [
        kind
        for kind, name in zip(kinds, names, strict=True)
        if name not in _KNOWN or not kind.startswith("sentence_transformers.")
    ]
    if foreign:
        raise ValueError(
            f"{path} has a module {foreign[0]!r}, which is not computed here: {', '.join(_KNOWN)} of "
            "sentence-transformers are."
        )
    if names not in (["Transformer", "Pooling"], list(_KNOWN)):
        raise ValueError(
            f"{path} lists {few(names)}; Transformer, Pooling and perhaps Normalize are read, in this order."
        )
    for place in places[:2]:
        if place and (Path(place).is_absolute() or ".." in Path(place).parts):
            raise ValueError(f"{path}: the path {place!r} leads out of the directory.")
    return Modules(directory / places[0], directory / places[1], "Normalize" in names)


def read_pooling(directory: Path, config: BertConfig) -> tuple[str, ...]:
    """The modes of pooling that the configuration in a module's directory names."""
    path = directory / CONFIG
    if not is_there(path):
        raise FileNotFoundError(f"{path} is missing: {MODULES} names it.")
    return files.describe(path, lambda: pooling_from_config(files.read_json(path), width=config.hidden_size))


def read_prompting(directory: Path, transformer: Path) -> Prompting:
    """What `sentence_bert_config.json` and `config_sentence_transformers.json` say; neither need be there.

    Raises:
        ValueError: a damaged file, or a key that changes features and is not read.
    """
    path = transformer / SENTENCE
    said = files.read_json(path) if is_there(path) else {}
    for key, value in said.items():
        if key in _SENTENCE_OTHERS or value in (None, False, {}, [], *_SENTENCE_KEYS.get(key, ())):
            continue
        raise ValueError(f"{path}: {key} is {value!r}, which may change features and is not read here.")
    max_length, lower_case = said.get("max_seq_length"), said.get("do_lower_case") or False
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int)):
        raise ValueError(f"{path}: max_seq_length must be an integer, got {max_length!r}.")
    if not isinstance(lower_case, bool):
        raise ValueError(f"{path}: do_lower_case must be true or false, got {lower_case!r}.")
    path = directory / PROMPTS
    told = files.read_json(path) if is_there(path) else {}
    kind = told.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ValueError(f"{path} describes a {kind}; only a SentenceTransformer, with one feature a text, is read.")
    prompts, name = told.get("prompts") or {}, told.get("default_prompt_name")
    if name is None:
        return Prompting(max_length, lower_case, "", None, told)
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise ValueError(f"{path}: default_prompt_name is {name!r}, but prompts has no text of that name.")
    return Prompting(max_length, lower_case, prompts[name], name, told)

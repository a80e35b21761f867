"""Sentence encoders that others fine-tuned, as parameters of ours: with their base they give a task vector."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from tajax.encoders.text.convert import find_model, linear_modules, params_from_tensors
from tajax.encoders.text.geometry import BertConfig
from tajax.encoders.text.layout import read_modules, read_pooling, read_prompting
from tajax.encoders.text.loading import LoadedText, check_name
from tajax.encoders.text.tokenizer import has_tokenizer, load_tokenizer
from tajax.models import Finetuned, files
from tajax.models.adapters import is_adapter, read_adapter
from tajax.models.convert import few
from tajax.models.geometry import differing
from tajax.models.hub import locate, split_choice
from tajax.models.layout import ADAPTER, CONFIG, is_there
from tajax.models.rounding import like_pretrained, settled

__all__ = ["load_finetuned"]


def load_finetuned(name_or_path: str | Path, base: LoadedText) -> Finetuned:
    """The sentence encoder that somebody fine-tuned from a base, read without running anything in its file.

    Read are directories of sentence-transformers and Hugging Face, and files of tensors: safetensors, or a state dict,
    a training checkpoint or a whole module that `torch.save` wrote. Names may be plain or have a prefix, such as
    `bert.` or `0.auto_model.`. Heads, optimisers and BERT's own pooler are not looked at. Leaves and layers that equal
    θ₀ but for the rounding of half precision are those of θ₀, see `tajax.models.rounding`. LoRA adapters in PEFT's
    directories are read, too (`tajax.models.adapters`).

    Args:
        name_or_path: A directory, a file, or a hub id; where it holds several models, with `#model` at the end, which
            is the prefix of the one that is meant.
        base: The encoder that it was fine-tuned from.

    Raises:
        FileNotFoundError: nothing there, or no weights in it.
        ValueError: a damaged file, a pickle that asks for code; a geometry, pooling, tokenizer or prompt other than the
            base's, where files beside the weights tell them; tensors that are missing, left over, not finite or there
            twice; several models, quantised weights, an adapter of another kind. The message names the file.
    """
    check_name(str(name_or_path))
    place, which = split_choice(name_or_path)
    path = locate(Path(place) if os.path.lexists(os.path.expanduser(place)) else place)
    directory = path if path.is_dir() else path.parent
    notes = _check_like_base(directory, base)
    transformer = read_modules(directory).transformer if path.is_dir() else path
    if is_adapter(transformer):
        return _read_adapter(transformer, base, notes)
    file, stored = files.open_tensors(transformer)
    found = files.describe(file, lambda: find_model(stored.names, which=which, place=str(path)))
    held = stored.read(found.names.values())
    tensors = {name: held[own] for name, own in found.names.items()}

    def read() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        leaves, pooler = params_from_tensors(tensors, base.described.config)
        return like_pretrained(leaves, base.params, "the encoder"), pooler

    flat, pooler = files.describe(file, read)
    params, rounding = settled(flat, base.params)
    if any(not np.array_equal(value, base.pooler.get(name)) for name, value in pooler.items()):  # type: ignore[arg-type]  # None is unequal
        notes += ("tensors of BERT's own pooler differ from the base's and are not read",)
    if found.outside:
        notes += (f"tensors outside the model are not read ({len(found.outside)}): {few(found.outside)}",)
    if is_there(file.parent / ADAPTER):
        notes += ("an adapter lies beside the weights and is not read",)
    notes += (*found.notes, *files.dtype_notes(tensors), *(() if rounding is None else (str(rounding),)))
    for note in notes:
        matters = rounding is not None and rounding.matters and note == str(rounding)
        logging.getLogger(__name__).log(logging.WARNING if matters else logging.INFO, "%s: %s.", file, note)
    return Finetuned(params, False, file, "huggingface", rounding, notes)


def _read_adapter(path: Path, base: LoadedText, notes: tuple[str, ...]) -> Finetuned:
    modules = linear_modules(base.described.config.num_hidden_layers)
    found = read_adapter(path, base.params, modules, base=base.name, base_sha256=base.sha256, ignored=_HEADS)
    for note in (*notes, *found.notes):
        logging.getLogger(__name__).warning("%s: %s.", found.path, note)
    return Finetuned(found.params, False, found.path, "adapter", None, (*notes, *found.notes))


_HEADS = ("pooler.", "bert.pooler.", "cls.", "classifier.", "qa_outputs.")
"""How the names begin of modules that no feature comes from."""


def _check_like_base(directory: Path, base: LoadedText) -> tuple[str, ...]:
    """Refuse what files beside the weights say to be another encoder than the base; notes of what differs and is kept.

    What no file says, such as the number of heads of a bare state dict, is taken to be the base's.
    """
    described, wanted = base.described, base.tokenizer.facts()
    modules = read_modules(directory)
    differences = []
    path = modules.transformer / CONFIG
    if is_there(path):
        raw = files.read_json(path)
        found = files.describe(path, lambda: BertConfig.from_hf(raw))
        differences += differing(found, described.config)
    notes: tuple[str, ...] = ()
    told = wanted
    if modules.pooling is not None:
        pooling = read_pooling(modules.pooling, described.config) if not differences else described.pooling
        if pooling != described.pooling:
            differences.append(f"pooling is {' and '.join(pooling)}, the base's is {' and '.join(described.pooling)}")
        prompting = read_prompting(directory, modules.transformer)
        told = told | {"lower_case": prompting.lower_case, "prompt": prompting.prompt}
        if prompting.max_length not in (None, wanted["max_length"]):
            notes = (f"max_seq_length is {prompting.max_length}, texts are cut at the base's {wanted['max_length']}",)
    if not differences and has_tokenizer(modules.transformer):
        tokenizer = load_tokenizer(
            modules.transformer,
            vocab_size=described.config.vocab_size,
            positions=described.config.max_position_embeddings,
            max_length=base.tokenizer.max_length,
            lower_case=bool(told["lower_case"]),
            prompt=str(told["prompt"]),
        )
        told = tokenizer.facts() | {"lower_case": wanted["lower_case"]}  # which the digest tells if it matters
    names = {"sha256": "the tokenizer", "lower_case": "do_lower_case", "prompt": "the prompt before each text"}
    for key, name in names.items():
        if told[key] != wanted[key]:
            said = "another than" if key == "sha256" else f"{told[key]!r}, where it is {wanted[key]!r} for"
            differences.append(f"{name} is {said} the base")
    if differences:
        raise ValueError(
            f"{directory}: the encoder is another than {base.name}: {'; '.join(differences)}. Give the base that it "
            "was made from."
        )
    return notes

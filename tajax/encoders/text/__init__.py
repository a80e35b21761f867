"""BERT-type sentence encoders, the family of texts: all-MiniLM, bge, e5 and their like, trained as they are pooled."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from tajax.encoders.encoder import Encoder, Family, Identity, ZeroShot
from tajax.encoders.text import heads
from tajax.encoders.text.bert import Tokens, abstract_params
from tajax.encoders.text.convert import linear_modules
from tajax.encoders.text.finetuned import load_finetuned
from tajax.encoders.text.geometry import BertConfig
from tajax.encoders.text.loading import LoadedText, check_name, load_text
from tajax.encoders.text.saving import FORMATS, check_format, save
from tajax.models.transformer import default_unroll
from tajax.rules import RULES, STACKED
from tajax.types import ApplyFn, Params, Remat

__all__ = ["FAMILY", "load", "of_text"]


def load(name: str, /, *, random_seed: int | None = None, dtype: DTypeLike = jnp.float32) -> Encoder:
    """The sentence encoder of a directory or hub id, see `load_text`."""
    text = load_text(name, dtype=dtype)
    return of_text(text if random_seed is None else text.with_random_params(random_seed))


def outline() -> Params:
    """A BERT in shapes alone; all have the same paths."""
    return abstract_params(BertConfig())


def of_text(text: LoadedText) -> Encoder:
    """A sentence encoder that is loaded, as what a run needs to know of it."""
    described, tokenization = text.described, text.tokenizer.tokenization()
    geometry = dataclasses.asdict(described.config) | {"pooling": list(described.pooling)}
    facts = {"base_notes": list(text.notes), "tokenization": tokenization.facts}

    def save_with(directory: Path, params: Params, /, *, format: str) -> None:
        save(text, directory, params, format=format)

    def with_layers(*, remat: Remat, frozen: int) -> ApplyFn:
        unroll = text.unroll if remat == text.remat else default_unroll(remat)
        return _on_rows(dataclasses.replace(text, remat=remat, unroll=unroll, frozen=frozen))

    return Encoder(
        family="text",
        identity=Identity(text.name, text.revision, text.sha256, geometry, facts),
        params=text.params,
        apply=_on_rows(text),
        apply_for_responses=_on_rows(dataclasses.replace(text, remat="none", unroll=True)),
        with_layers=with_layers,
        feature_dim=text.feature_dim,
        inputs=tokenization,
        rules=RULES,
        stacked=STACKED,
        zero_shot=ZeroShot(functools.partial(heads.zero_shot_head, text), functools.partial(heads.made_from, text)),
        load_finetuned=functools.partial(load_finetuned, base=text),
        save=save_with,
        check_format=check_format,
        linears=linear_modules(described.config.num_hidden_layers),
    )


def _on_rows(text: LoadedText) -> ApplyFn:
    """Of ids with −1 in padding, as batches have them."""
    return lambda params, ids: text.encode(params, Tokens(ids, ids >= 0))


FAMILY = Family(load, check_name, outline, RULES, modality="texts", formats=FORMATS)

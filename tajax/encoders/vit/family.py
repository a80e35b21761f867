"""ViTs as a family of encoders: the class token's features, and heads that are fitted to them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from tajax.data.preprocess import normalize
from tajax.encoders.encoder import Encoder, Family, Identity
from tajax.encoders.vit.finetuned import load_finetuned
from tajax.encoders.vit.geometry import VitConfig
from tajax.encoders.vit.loading import LoadedVit, check_name, load_vit
from tajax.encoders.vit.saving import check_format, save_vit
from tajax.encoders.vit.tensors import linear_modules
from tajax.encoders.vit.tower import abstract_params
from tajax.models.transformer import default_unroll
from tajax.rules import RULES, STACKED
from tajax.types import ApplyFn, Params, Remat

__all__ = ["FAMILY", "load", "of_vit", "outline"]


def load(name: str, /, *, random_seed: int | None = None, dtype: DTypeLike = jnp.float32) -> Encoder:
    """The encoder of `load_vit(name)`, which has arguments and errors; with `random_seed` before any pre-training."""
    vit = load_vit(name, dtype=dtype)
    return of_vit(vit if random_seed is None else vit.with_random_params(random_seed))


@functools.cache
def outline() -> Params:
    """A ViT in shapes alone, with the paths of all: registers and scales too, which DINOv2 alone has."""
    return abstract_params(
        VitConfig(model_type="dinov2_with_registers", layer_scale=1.0, num_registers=4, num_hidden_layers=2)
    )


def of_vit(vit: LoadedVit) -> Encoder:
    """A ViT that is loaded, as an encoder without texts."""
    prepared = vit.prepared
    inputs = prepared.preprocessing
    facts = {
        "base_notes": list(vit.notes),
        "preprocessing": {
            "size": inputs.size,
            "mean": list(inputs.mean),
            "std": list(inputs.std),
            "from": prepared.source,
            "resize": prepared.resize,
        },
        "activation": {
            "hidden_act": "silu, gated" if vit.config.gated else vit.config.hidden_act,
            "from": "config.json",
        },
    }

    def save(directory: Path, params: Params, /, *, format: str) -> None:
        save_vit(directory, vit, params, format=format)

    def with_layers(*, remat: Remat, frozen: int) -> ApplyFn:
        unroll = vit.unroll if remat == vit.remat else default_unroll(remat)
        return _on_pixels(dataclasses.replace(vit, remat=remat, unroll=unroll, frozen=frozen))

    return Encoder(
        family="vit",
        identity=Identity(vit.name, vit.revision, vit.sha256, dataclasses.asdict(vit.config), facts),
        params=vit.params,
        apply=_on_pixels(vit),
        apply_for_responses=_on_pixels(dataclasses.replace(vit, remat="none", unroll=True)),
        with_layers=with_layers,
        feature_dim=vit.config.hidden_size,
        inputs=inputs,
        rules=RULES,
        stacked=STACKED,
        zero_shot=None,
        load_finetuned=functools.partial(load_finetuned, base=vit),
        save=save,
        check_format=check_format,
        linears=linear_modules(vit.config),
    )


def _on_pixels(vit: LoadedVit) -> ApplyFn:
    return lambda params, images: vit.encode(params, normalize(images, vit.prepared.preprocessing))


FAMILY = Family(load, check_name, outline, RULES, modality="images", zero_shot=False, formats=("huggingface",))

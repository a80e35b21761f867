"""CLIP's image tower as an encoder; its text tower makes the zero-shot heads and is never trained."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from tajax import models
from tajax.data.preprocess import normalize
from tajax.encoders.encoder import Encoder, Family, Identity, ZeroShot
from tajax.models.clip import abstract_params
from tajax.models.hub import check_name
from tajax.models.open_clip import to_open_clip
from tajax.models.torch_names import linear_modules
from tajax.models.transformer import default_unroll
from tajax.rules import RULES, STACKED
from tajax.types import ApplyFn, JsonObject, Params, Remat


def load(name: str, /, *, random_seed: int | None = None, dtype: DTypeLike = jnp.float32) -> Encoder:
    """The image tower of `tajax.models.load(name)`, which has arguments and errors."""
    clip = models.load(name, dtype=dtype)
    return of_clip(clip if random_seed is None else clip.with_random_image_tower(random_seed))


@functools.cache
def outline() -> Params:
    """An image tower in shapes alone; all have the same paths."""
    return abstract_params(models.ClipConfig())["image"]


def of_clip(clip: models.LoadedClip) -> Encoder:
    """The image tower of a CLIP that is loaded."""
    prepared = clip.preprocessing
    facts = {
        "base_notes": list(clip.notes),
        "preprocessing": {
            "size": prepared.size,
            "mean": list(prepared.mean),
            "std": list(prepared.std),
            "from": clip.sources["preprocessing"],
        },
        "activation": {"hidden_act": clip.config.vision.hidden_act, "from": clip.sources["config"]},
    }
    geometry = dataclasses.asdict(clip.config.vision)

    def made_from(prompts: Sequence[str]) -> JsonObject:
        tokens = clip.tokenizer.tokenize(prompts).astype("<i4")
        return {
            "text tower": dataclasses.asdict(clip.config.text),
            "weights of the text tower": clip.text_sha256[:16],
            "tokens of the prompts": hashlib.sha256(tokens.tobytes()).hexdigest()[:16],
        }

    def save(directory: Path, params: Params, /, *, format: str) -> None:
        whole = clip.params | {"image": params}
        models.save_pretrained(directory, clip.config, whole, clip.tokenizer, clip.preprocessing, format=format)

    def check_format(format: str) -> None:
        if format == "open_clip":
            to_open_clip(clip.config, clip.preprocessing)

    def with_layers(*, remat: Remat, frozen: int) -> ApplyFn:
        unroll = clip.unroll if remat == clip.remat else default_unroll(remat)
        return _on_pixels(dataclasses.replace(clip, remat=remat, unroll=unroll, frozen=frozen))

    return Encoder(
        family="clip",
        identity=Identity(clip.name, clip.revision, clip.image_sha256, geometry, facts),
        params=clip.params["image"],
        apply=_on_pixels(clip),
        apply_for_responses=_on_pixels(dataclasses.replace(clip, remat="none", unroll=True)),
        with_layers=with_layers,
        feature_dim=clip.config.vision.projection_dim,
        inputs=clip.preprocessing,
        rules=RULES,
        stacked=STACKED,
        zero_shot=ZeroShot(lambda names, templates: models.zero_shot_head(clip, names, templates), made_from),
        load_finetuned=functools.partial(models.load_finetuned, base=clip),
        save=save,
        check_format=check_format,
        linears=linear_modules(clip.config.vision.num_hidden_layers),
    )


def _on_pixels(clip: models.LoadedClip) -> ApplyFn:
    return lambda params, images: clip.encode_image(params, normalize(images, clip.preprocessing))


FAMILY = Family(load, check_name, outline, RULES, formats=("huggingface", "open_clip"))

"""The geometry of open_clip's and OpenAI's checkpoints, from `open_clip_config.json` or from the tensors' shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from tajax.models.convert import few
from tajax.models.geometry import LEGACY_EOS_TOKEN_ID, ClipConfig, TextConfig, VisionConfig
from tajax.types import Preprocessing

__all__ = ["from_open_clip", "infer_config", "to_open_clip"]

# What open_clip takes for a field that its configuration leaves out.
_VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
_TRAINING_ONLY = {"patch_dropout"}  # change no feature
_PUBLISHED_HEADS = {1280: 16, 1408: 16, 1664: 16}  # image towers H, g, G; all others have heads of 64


def from_open_clip(config: Mapping) -> ClipConfig:
    """The geometry that an `open_clip_config.json` describes, given as the dictionary that it holds.

    Raises:
        ValueError: a field that this model has no counterpart for, such as a ResNet, a timm or a Hugging Face tower.

    Example:
        >>> from_open_clip({"model_cfg": {"embed_dim": 512, "vision_cfg": {"patch_size": 32}}}).vision.hidden_act
        'gelu'
    """
    model = config.get("model_cfg", config)
    _check_known("model_cfg", model, {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"})
    if "embed_dim" not in model:
        raise ValueError("open_clip_config.json: model_cfg has no embed_dim.")
    sections = {}
    for name, defaults in (("vision_cfg", _VISION), ("text_cfg", _TEXT)):
        section = model.get(name) or {}
        _check_known(name, section, defaults.keys() | _TRAINING_ONLY)
        sections[name] = defaults | {key: section[key] for key in defaults if section.get(key) is not None}
    vision, text = sections["vision_cfg"], sections["text_cfg"]
    if isinstance(vision["layers"], list):
        raise ValueError(
            f"open_clip_config.json: vision_cfg.layers {vision['layers']} is a ResNet; only ViTs can be loaded."
        )
    size = vision["image_size"]
    if isinstance(size, list):
        if len(set(size)) != 1:
            raise ValueError(f"open_clip_config.json: vision_cfg.image_size {size} is not square.")
        size = size[0]
    shared = {"projection_dim": model["embed_dim"], "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    return ClipConfig(
        vision=VisionConfig(
            hidden_size=vision["width"],
            intermediate_size=int(vision["width"] * vision["mlp_ratio"]),
            num_hidden_layers=vision["layers"],
            num_attention_heads=vision["width"] // vision["head_width"],
            image_size=size,
            patch_size=vision["patch_size"],
            **shared,
        ),
        text=TextConfig(
            hidden_size=text["width"],
            intermediate_size=int(text["width"] * text["mlp_ratio"]),
            num_hidden_layers=text["layers"],
            num_attention_heads=text["heads"],
            max_position_embeddings=text["context_length"],
            **_vocabulary(text["vocab_size"]),
            **shared,
        ),
    )


def to_open_clip(config: ClipConfig, preprocessing: Preprocessing) -> dict:
    """The dictionary to write as `open_clip_config.json`: what `from_open_clip` reads, and open_clip itself.

    Raises:
        ValueError: open_clip has no way to say it: an activation by tanh, another epsilon of the layer norms, a hidden
            width that its ratio does not give back, texts that do not end with the highest id.

    Example:
        >>> written = to_open_clip(ClipConfig(), Preprocessing(224, (0.5,) * 3, (0.5,) * 3))
        >>> written["model_cfg"]["quick_gelu"], written["model_cfg"]["vision_cfg"]["head_width"]
        (True, 64)
    """
    vision, text = config.vision, config.text
    sections = {}
    for name, tower in (("vision_config", vision), ("text_config", text)):
        ratio = tower.intermediate_size / tower.hidden_size
        for field, value, holds in (
            ("hidden_act", tower.hidden_act, tower.hidden_act in ("gelu", "quick_gelu")),
            ("hidden_act", tower.hidden_act, tower.hidden_act == vision.hidden_act),
            ("layer_norm_eps", tower.layer_norm_eps, tower.layer_norm_eps == 1e-5),
            ("intermediate_size", tower.intermediate_size, int(tower.hidden_size * ratio) == tower.intermediate_size),
        ):
            if not holds:
                raise ValueError(f"{name}.{field} {value!r} cannot be said in open_clip's format: save Hugging Face's.")
        sections[name] = {"layers": tower.num_hidden_layers, "width": tower.hidden_size, "mlp_ratio": ratio}
    if text.eos_token_id not in (text.vocab_size - 1, LEGACY_EOS_TOKEN_ID) or vision.num_channels != 3:
        raise ValueError(
            f"text_config.eos_token_id {text.eos_token_id} is not the highest of {text.vocab_size} ids, at which "
            f"open_clip pools, or vision_config.num_channels ({vision.num_channels}) is not 3."
        )
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "quick_gelu": vision.hidden_act == "quick_gelu",
            "vision_cfg": sections["vision_config"]
            | {
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
            },
            "text_cfg": sections["text_config"]
            | {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "heads": text.num_attention_heads,
            },
        },
        "preprocess_cfg": {
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def infer_config(tensors: Mapping[str, np.ndarray], *, hidden_act: str = "quick_gelu") -> ClipConfig:
    """The geometry of an OpenAI- or open_clip-named checkpoint, told from its shapes.

    Shapes do not tell the activation, nor the number of heads: OpenAI's and LAION's published models have heads
    of 64, but for image towers of width 1280, 1408 and 1664, which have 16 heads.

    Args:
        tensors: Every tensor by name.
        hidden_act: The activation; OpenAI's is 'quick_gelu', most of LAION's 'gelu'.

    Raises:
        ValueError: not a ViT CLIP under those names, or a width that no published rule splits into heads.
    """
    names = {
        "patches": "visual.conv1.weight",
        "positions": "visual.positional_embedding",
        "mlp": "visual.transformer.resblocks.0.mlp.c_fc.weight",
        "projection": "visual.proj",
        "tokens": "token_embedding.weight",
        "text_positions": "positional_embedding",
        "text_mlp": "transformer.resblocks.0.mlp.c_fc.weight",
        "text_projection": "text_projection",
    }
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise ValueError(f"Not a ViT CLIP under open_clip's names: {few(missing)} missing among {few(tensors)}.")
    shape = {key: np.shape(tensors[name]) for key, name in names.items()}
    width, _, patch_size, _ = shape["patches"]
    vocab_size, text_width = shape["tokens"]

    def heads(width: int, published: Mapping[int, int]) -> int:
        if width not in published and width % 64:
            raise ValueError(
                f"Shapes do not tell how many heads share the width {width}: "
                "put open_clip_config.json or config.json beside the weights."
            )
        return published.get(width, width // 64)

    def depth(prefix: str) -> int:
        layers = [name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)]
        return 1 + max(int(layer) for layer in layers if layer.isdigit())

    return ClipConfig(
        vision=VisionConfig(
            hidden_size=width,
            intermediate_size=shape["mlp"][0],
            num_hidden_layers=depth("visual.transformer.resblocks."),
            num_attention_heads=heads(width, _PUBLISHED_HEADS),
            projection_dim=shape["projection"][1],
            image_size=math.isqrt(shape["positions"][0] - 1) * patch_size,
            patch_size=patch_size,
            hidden_act=hidden_act,
        ),
        text=TextConfig(
            hidden_size=text_width,
            intermediate_size=shape["text_mlp"][0],
            num_hidden_layers=depth("transformer.resblocks."),
            num_attention_heads=heads(text_width, {}),
            projection_dim=shape["text_projection"][1],
            max_position_embeddings=shape["text_positions"][0],
            hidden_act=hidden_act,
            **_vocabulary(vocab_size),
        ),
    )


class _Vocabulary(TypedDict):
    vocab_size: int
    bos_token_id: int
    eos_token_id: int


def _vocabulary(size: int) -> _Vocabulary:
    """The size of the vocabulary, whose two highest ids are BOS and EOS."""
    return {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1}


def _check_known(section: str, values: Mapping, known: set[str]) -> None:
    unknown = [name for name, value in values.items() if name not in known and value]
    if unknown:
        raise ValueError(
            f"open_clip_config.json: {section} has {few([f'{n}={values[n]!r}' for n in unknown])}, which this model "
            f"has no counterpart for. Known fields: {', '.join(sorted(known))}."
        )

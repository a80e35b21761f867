"""The geometry of a ViT: what a Hugging Face `config.json` says of it, and what of it cannot be done.

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; Caron et al. 2021, "Emerging Properties in
Self-Supervised Vision Transformers" (DINO: the same geometry); Oquab et al. 2024, "DINOv2"; Darcet et al. 2024, "Vision
Transformers Need Registers".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from tajax.models.geometry import LayersConfig

__all__ = ["MODEL_TYPES", "VitConfig"]

MODEL_TYPES = ("vit", "dinov2", "dinov2_with_registers")
"""What `model_type` may say. DINO's models are of the first."""

_OTHERS: Mapping[str, str] = {
    "deit": "it has a distillation token",
    "beit": "it has relative positions",
    "data2vec-vision": "it has relative positions",
    "swin": "it attends within windows and has no class token",
    "swinv2": "it attends within windows and has no class token",
    "dinov3_vit": "it has rotary positions",
    "ijepa": "it has no class token",
    "vit_mae": "its features are made under a random mask",
    "vit_msn": "its layout was never compared with this one",
    "vivit": "it takes videos",
    "convnext": "it is convolutional",
    "convnextv2": "it is convolutional",
    "resnet": "it is convolutional",
    "siglip": "its features are pooled by attention",
    "siglip_vision_model": "its features are pooled by attention",
    "clip": "it is of the family 'clip'",
    "clip_vision_model": "it is of the family 'clip'",
    "bert": "it takes texts",
}
"""Why others are refused, where that is one sentence."""

_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "vit": {"patch_size": 16, "layer_norm_eps": 1e-12, "intermediate_size": 3072},
    "dinov2": {"patch_size": 14, "layer_norm_eps": 1e-6, "mlp_ratio": 4},
    "dinov2_with_registers": {"patch_size": 16, "layer_norm_eps": 1e-6, "mlp_ratio": 4, "num_register_tokens": 4},
}
_DEFAULT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "gelu"}
_DEFAULT |= {"image_size": 224, "num_channels": 3, "qkv_bias": True, "layerscale_value": 1.0, "use_swiglu_ffn": False}
"""What transformers takes where a file says nothing."""

_ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "use_swiglu_ffn": ("dinov2", "dinov2_with_registers"),
    "layerscale_value": ("dinov2", "dinov2_with_registers"),
    "num_register_tokens": ("dinov2_with_registers",),
    "mlp_ratio": ("dinov2", "dinov2_with_registers"),
    "use_gated_mlp": (),
    "use_relative_position_bias": (),
    "use_shared_relative_position_bias": (),
    "use_mean_pooling": (),
    "rope_theta": (),
    "window_size": (),
    "quantization_config": (),
}
"""Keys that change the function, and the types that have them: elsewhere a value that is not empty is refused."""


LARGEST = 1 << 14
"""Pixels along the side of an image, beyond which a file is taken to be damaged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitConfig(LayersConfig):
    """Geometry of a ViT; the defaults are google/vit-base-patch16-224.

    Attributes:
        model_type: One of `MODEL_TYPES`; it tells how positions are interpolated.
        image_size: Side of the images, in pixels, that the position table is of.
        input_size: Side of the images that the encoder takes; another than `image_size` in DINOv2 alone.
        patch_size: Side of a patch. Pixels beyond the last whole patch are not seen, as in the reference.
        qkv_bias: Whether query, key and value have biases. Without them they have no such leaves.
        layer_scale: The initial value of a factor on what each half of a layer adds, one a channel; None where
            layers have no such factors.
        gated: Whether the MLP is a SwiGLU, W_out(silu(W_gate x) ⊙ W_up x); then `intermediate_size` is that of one
            factor.
        num_registers: Tokens R that stand between the class token and the patches, and are not read; None for
            none.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    model_type: str = "vit"
    image_size: int = 224
    input_size: int = 224
    patch_size: int = 16
    qkv_bias: bool = True
    layer_scale: float | None = None
    gated: bool = False
    num_registers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size > min(self.image_size, self.input_size):
            raise ValueError(
                f"VitConfig: patch_size {self.patch_size} exceeds the images of {self.image_size} or {self.input_size}."
            )
        if max(self.image_size, self.input_size) > LARGEST:
            raise ValueError(
                f"VitConfig: images of {self.image_size} or {self.input_size} pixels a side; {LARGEST} are the most."
            )
        if self.model_type == "vit" and self.input_size != self.image_size:
            raise ValueError(
                f"This ViT takes images of {self.image_size} pixels (image_size of its config.json), but they would "
                f"have {self.input_size}. Only DINOv2's positions are interpolated, as in transformers. Give images of "
                f"{self.image_size} pixels: mend the size in its preprocessor_config.json."
            )

    @property
    def grid_size(self) -> int:
        """Patches along one side of the encoder's input."""
        return self.input_size // self.patch_size

    @property
    def table_size(self) -> int:
        """Patches along one side of the images that the position table is of."""
        return self.image_size // self.patch_size

    @classmethod
    def from_hf(cls, config: Mapping[str, object], *, input_size: int | None = None) -> VitConfig:
        """The configuration in a Hugging Face `config.json`, given as the dictionary that it holds.

        Missing fields take Hugging Face's defaults. Fields that do not change features (initialisation ranges, dropout,
        what concerns the pooler, the classifier or a backbone's maps) are not read.

        Args:
            config: The dictionary.
            input_size: Side of the images that the encoder takes; None for `image_size`.

        Raises:
            ValueError: another architecture, or a variant that is not implemented: an activation, heads of another
                width, images that are not square or have not 3 channels, keys of other architectures.
            TypeError: a value of another kind than it should be.

        Example:
            >>> VitConfig.from_hf({"model_type": "vit", "patch_size": 32}).grid_size
            7
            >>> VitConfig.from_hf({"model_type": "dinov2", "image_size": 518}, input_size=224).grid_size
            16
        """
        kind = config.get("model_type")
        if kind not in MODEL_TYPES:
            why = f": {_OTHERS[kind]}" if isinstance(kind, str) and kind in _OTHERS else ""
            raise ValueError(
                f"config.json describes model_type {kind!r}{why}. The family 'vit' reads {', '.join(MODEL_TYPES)}."
            )
        stated = {name: value for name, value in config.items() if value is not None}
        for key, known_by in _ELSEWHERE.items():
            if kind not in known_by and stated.get(key):
                raise ValueError(f"config.json says {key} = {stated[key]!r}, which is not implemented for {kind!r}.")
        said = {**_DEFAULT, **_DEFAULTS[kind], **stated}
        sides = {name: _side(name, said[name]) for name in ("image_size", "patch_size")}
        sizes = {name: _whole(name, said[name]) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
        width = sizes["hidden_size"]
        if said["num_channels"] != 3:
            raise ValueError(
                f"config.json says num_channels = {said['num_channels']!r}; only images of 3 can be loaded."
            )
        if "head_dim" in stated and stated["head_dim"] != width // max(sizes["num_attention_heads"], 1):
            raise ValueError(
                f"config.json says head_dim = {stated['head_dim']!r}; only heads that share hidden_size {width} "
                "equally can be loaded."
            )
        gated = _flag("use_swiglu_ffn", said["use_swiglu_ffn"])
        if kind == "vit":
            inner = _whole("intermediate_size", said["intermediate_size"])
        else:
            ratio = _number("mlp_ratio", said["mlp_ratio"])
            if not 1 <= width * ratio < 2**31:
                raise ValueError(f"config.json: mlp_ratio {ratio} of hidden_size {width} is no width of an MLP.")
            inner = int(width * ratio)
            inner = (int(inner * 2 / 3) + 7) // 8 * 8 if gated else inner
        return cls(
            model_type=kind,
            intermediate_size=inner,
            hidden_act=str(said["hidden_act"]),
            layer_norm_eps=_number("layer_norm_eps", said["layer_norm_eps"]),
            input_size=sides["image_size"] if input_size is None else input_size,
            qkv_bias=_flag("qkv_bias", said["qkv_bias"]),
            layer_scale=None if kind == "vit" else _number("layerscale_value", said["layerscale_value"]),
            gated=gated,
            num_registers=_whole("num_register_tokens", said["num_register_tokens"])
            if kind == MODEL_TYPES[2]
            else None,
            **sides,
            **sizes,
        )


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"config.json: {name} must be an integer, got {value!r}.")
    if value < 1:
        raise ValueError(f"config.json: {name} must be positive, got {value}.")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"config.json: {name} must be a number, got {value!r}.")
    return float(value)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"config.json: {name} must be true or false, got {value!r}.")
    return value


def _side(name: str, value: object) -> int:
    """The side of a square, which may be given twice."""
    if isinstance(value, list | tuple):
        if len(set(value)) != 1:
            raise ValueError(f"config.json: {name} {value!r} is not square: only square images can be loaded.")
        value = value[0]
    return _whole(name, value)

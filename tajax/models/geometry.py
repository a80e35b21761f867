"""The geometry of a CLIP: what a Hugging Face `config.json` says of both towers.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", §2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from jaxtyping import Array, Int

__all__ = [
    "HIDDEN_ACTS",
    "LEGACY_EOS_TOKEN_ID",
    "ClipConfig",
    "LayersConfig",
    "TextConfig",
    "VisionConfig",
    "pooled_position",
]

HIDDEN_ACTS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh")
"""What `hidden_act` may say. `gelu` is exact, through erf; the last two are its approximation by tanh."""

_TELLING = {"model_type", "vision_config", "text_config", "vision_config_dict", "text_config_dict"}

LEGACY_EOS_TOKEN_ID = 2  # in OpenAI's first conversions; the text is then pooled at its highest id


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """What towers of layers have in common; the names are Hugging Face's."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{kind}.{field.name} must be an integer, got {value!r}.")
            if field.type == "int" and field.name not in ("bos_token_id", "eos_token_id") and value < 1:
                raise ValueError(f"{kind}.{field.name} must be positive, got {value}.")
        epsilon = self.layer_norm_eps
        if isinstance(epsilon, bool) or not isinstance(epsilon, int | float):
            raise TypeError(f"{kind}.layer_norm_eps must be a number, got {epsilon!r}.")
        if not 0 < epsilon < 1:
            raise ValueError(f"{kind}.layer_norm_eps must lie between 0 and 1, got {epsilon}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{kind}: hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} "
                f"attention heads; {self.hidden_size % self.num_attention_heads} would be left over."
            )
        if self.hidden_act not in HIDDEN_ACTS:
            raise ValueError(
                f"{kind}.hidden_act {self.hidden_act!r} is unknown; choose one of {', '.join(HIDDEN_ACTS)}."
            )


def differing(found: LayersConfig, wanted: LayersConfig) -> list[str]:
    """In which fields a geometry is another than that of a base, a clause each.

    Example:
        >>> width = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> differing(LayersConfig(hidden_size=2, **width), LayersConfig(hidden_size=4, **width))
        ["hidden_size is 2, the base's is 4"]
    """
    return [
        f"{field.name} is {getattr(found, field.name)!r}, the base's is {getattr(wanted, field.name)!r}"
        for field in dataclasses.fields(wanted)
        if getattr(found, field.name) != getattr(wanted, field.name)
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TowerConfig(LayersConfig):
    """What both towers of a CLIP have in common."""

    projection_dim: int = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(_TowerConfig):
    """Geometry of the image tower; the defaults are ViT-B/32.

    Attributes:
        image_size: Side of the square input, in pixels.
        patch_size: Side of a patch. Pixels beyond the last whole patch are not seen, as in the reference.
        num_channels: Colour channels, 3.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise ValueError(f"VisionConfig: patch_size {self.patch_size} exceeds image_size {self.image_size}.")

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(_TowerConfig):
    """Geometry of the text tower; the defaults are those of ViT-B/32.

    Attributes:
        vocab_size: Rows of the token embedding, V.
        max_position_embeddings: The context length C.
        bos_token_id: Id of `<|startoftext|>`.
        eos_token_id: Id of `<|endoftext|>`, where the text is pooled. The value 2, which OpenAI's first
            conversions carry by mistake, means "pool at the highest id of the row", as it does in
            `transformers`.
    """

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    bos_token_id: int = 49406
    eos_token_id: int = 49407


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Both towers and what joins them.

    Attributes:
        vision: The image tower.
        text: The text tower; its `projection_dim` equals that of `vision`, the width E of the common space.
        logit_scale_init_value: Initial logarithm of the inverse temperature, ln(1/0.07).
    """

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    logit_scale_init_value: float = 2.6592

    def __post_init__(self) -> None:
        if self.vision.projection_dim != self.text.projection_dim:
            raise ValueError(
                "The towers must project to one width: "
                f"vision.projection_dim is {self.vision.projection_dim}, "
                f"text.projection_dim is {self.text.projection_dim}."
            )

    @property
    def projection_dim(self) -> int:
        """The width E of the space both towers project to."""
        return self.vision.projection_dim

    @classmethod
    def from_hf(cls, config: Mapping) -> ClipConfig:
        """The configuration in a Hugging Face `config.json`, given as the dictionary that it holds.

        Missing fields take Hugging Face's defaults, which are those of B/32. Fields that do not change
        features (initialisation ranges, dropout, bookkeeping) are not read.

        Raises:
            ValueError: another architecture or another file, an activation not in `HIDDEN_ACTS`, heads that do not
                divide the width.
            TypeError: a size that is not an integer.

        Example:
            >>> ClipConfig.from_hf({"vision_config": {"patch_size": 16}}).vision.patch_size
            16
        """
        model_type = config.get("model_type", "clip")
        if model_type != "clip":
            raise ValueError(f"config.json describes model_type {model_type!r}; only 'clip' can be loaded.")
        if not config.keys() & _TELLING:
            raise ValueError(
                "config.json is not a CLIP's in Hugging Face's format: it has neither model_type nor vision_config nor "
                f"text_config, but {', '.join(config) or 'nothing'}."
            )
        projection_dim = config.get("projection_dim", 512)
        vision = _read_section(VisionConfig, _section(config, "vision_config"), projection_dim)
        text = _read_section(TextConfig, _section(config, "text_config"), projection_dim)
        scale = config.get("logit_scale_init_value", cls.logit_scale_init_value)
        return cls(vision=vision, text=text, logit_scale_init_value=float(scale))

    def to_hf(self) -> dict:
        """The dictionary to write as `config.json`, which `transformers.CLIPConfig` reads.

        Example:
            >>> ClipConfig.from_hf(ClipConfig().to_hf()) == ClipConfig()
            True
        """
        text = dataclasses.asdict(self.text) | {"model_type": "clip_text_model"}
        # `transformers` gives padding no meaning in CLIP, yet wants the id inside the vocabulary
        text["pad_token_id"] = min(self.text.eos_token_id, self.text.vocab_size - 1)
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            "logit_scale_init_value": self.logit_scale_init_value,
            "vision_config": dataclasses.asdict(self.vision) | {"model_type": "clip_vision_model"},
            "text_config": text,
        }


def _section(config: Mapping, name: str) -> Mapping:
    """A tower's part of `config.json`. The old `<name>_dict` wins where present, as in `transformers`."""
    old, new = config.get(f"{name}_dict"), config.get(name)
    section = old if old is not None else new if new is not None else {}
    if not isinstance(section, Mapping):
        raise TypeError(f"config.json: {name} must be an object, got {section!r}.")
    return section


Tower = TypeVar("Tower", VisionConfig, TextConfig)


def _read_section(kind: type[Tower], section: Mapping, projection_dim: int) -> Tower:
    """The fields of `kind` found in a section of `config.json`; lists of equal numbers become the number."""
    values = {}
    for field in dataclasses.fields(kind):
        value = section.get(field.name)
        if value is None:
            continue
        if isinstance(value, list | tuple):
            if not value or len(set(value)) != 1:
                raise ValueError(
                    f"{kind.__name__}.{field.name} {value!r} is not one number: "
                    "only square images and one EOS can be loaded."
                )
            value = value[0]
        values[field.name] = value
    values["projection_dim"] = projection_dim  # `CLIPModel` ignores the towers' own copies, often wrong
    return kind(**values)


def pooled_position(config: TextConfig, tokens: Int[Array | np.ndarray, "B C"]) -> Int[Array | np.ndarray, " B"]:
    """Where each text is pooled: its first EOS, or its highest id where `eos_token_id` is the mistaken 2.

    A row without an EOS gives 0, as it does in `transformers`. Of a NumPy array it is one, too.
    """
    legacy = config.eos_token_id == LEGACY_EOS_TOKEN_ID
    return (tokens if legacy else tokens == config.eos_token_id).argmax(axis=-1)

"""CLIP in Flax linen: an image tower and a text tower, each a pure function of a parameter tree.

Layers are stacked along a leading axis L and run under `nn.scan`, so that a tower compiles one block whatever its depth.
The attention has one `[D, D]` kernel for each of W_q, W_k, W_v, W_o: the leaves that attention-only fine-tuning trains.
No custom derivative stands anywhere, so `jax.linearize` works and XLA can drop the gradients nobody asks for.

    image  class_embedding [D]  position_embedding [N+1, D]  patch_embedding/kernel [p, p, 3, D]  ln_pre  ln_post
    text   token_embedding [V, D]  position_embedding [C, D]  ln_final
    both   blocks/{ln_1, attn/{query, key, value, out}, ln_2, mlp/{fc_in, fc_out}} [L, ...]  projection/kernel [D, E]

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", §2.4 and §2.5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

__all__ = ["ACTIVATIONS", "CLIP", "ClipConfig", "ImageEncoder", "TextEncoder", "TextConfig", "VisionConfig"]


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """OpenAI's approximation of GELU, x·σ(1.702·x)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
"""What `hidden_act` of a Hugging Face configuration may say; `gelu` is the exact one, through erf."""

_LEGACY_EOS_TOKEN_ID = (
    2  # what OpenAI's first conversions wrote; the pooled token is then the highest id of the row
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TowerConfig:
    """What both towers have in common; the names are Hugging Face's."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        kind = type(self).__name__
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{kind}.{field.name} must be an integer, got {value!r}.")
            if field.type == "int" and field.name not in ("bos_token_id", "eos_token_id") and value < 1:
                raise ValueError(f"{kind}.{field.name} must be positive, got {value}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{kind}: hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} attention heads "
                f"({self.hidden_size} / {self.num_attention_heads} = {self.hidden_size / self.num_attention_heads:.2f})."
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"{kind}.hidden_act {self.hidden_act!r} is unknown; choose one of {', '.join(ACTIVATIONS)}."
            )
        if not self.layer_norm_eps > 0:
            raise ValueError(f"{kind}.layer_norm_eps must be positive, got {self.layer_norm_eps}.")


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

    def __post_init__(self):
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise ValueError(
                f"VisionConfig: patch_size {self.patch_size} exceeds image_size {self.image_size}."
            )

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
        eos_token_id: Id of `<|endoftext|>`, where the text is pooled. The value 2, which OpenAI's first conversions
            carry by mistake, means "pool at the highest id of the row", as it does in `transformers`.
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

    def __post_init__(self):
        if self.vision.projection_dim != self.text.projection_dim:
            raise ValueError(
                f"The towers must project to one width: vision.projection_dim is {self.vision.projection_dim}, "
                f"text.projection_dim is {self.text.projection_dim}."
            )

    @property
    def projection_dim(self) -> int:
        """The width E of the space both towers project to."""
        return self.vision.projection_dim

    @classmethod
    def from_hf(cls, config: Mapping) -> ClipConfig:
        """The configuration that a Hugging Face `CLIPConfig` describes, given as the dictionary of its `config.json`.

        Missing fields take Hugging Face's defaults, which are those of B/32. Fields that do not change features
        (initialisation ranges, dropout, bookkeeping) are not read.

        Raises:
            ValueError: another architecture, an activation not in `ACTIVATIONS`, heads that do not divide the width.
            TypeError: a size that is not an integer.

        Example:
            >>> ClipConfig.from_hf({"model_type": "clip", "vision_config": {"patch_size": 16}}).vision.patch_size
            16
        """
        model_type = config.get("model_type", "clip")
        if model_type != "clip":
            raise ValueError(f"config.json describes model_type {model_type!r}; only 'clip' can be loaded.")
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


def _read_section(kind: type, section: Mapping, projection_dim: int):
    """The fields of `kind` found in a section of `config.json`, one-element and square lists reduced to a number."""
    values = {}
    for field in dataclasses.fields(kind):
        value = section.get(field.name)
        if value is None:
            continue
        if isinstance(value, list | tuple):
            if not value or len(set(value)) != 1:
                raise ValueError(
                    f"{kind.__name__}.{field.name} {value!r} is not one number: only square images and one EOS."
                )
            value = value[0]
        values[field.name] = value
    values["projection_dim"] = (
        projection_dim  # the towers' own copies are ignored by `CLIPModel`, and are often wrong
    )
    return kind(**values)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(QKᵀ/√d)V·W_o; `[B, N, D]` → `[B, N, D]`. The softmax is taken in float32."""

    num_heads: int
    num_layers: int
    causal: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        head_dim = width // self.num_heads

        def dense(name, std):
            return nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.normal(std), name=name)

        def heads(name):
            y = dense(name, width**-0.5)(x)
            return y.reshape(*y.shape[:-1], self.num_heads, head_dim)

        query, key, value = heads("query") * head_dim**-0.5, heads("key"), heads("value")
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        if self.causal:
            n = x.shape[-2]
            scores = jnp.where(jnp.tril(jnp.ones((n, n), bool))[None, None], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return dense("out", width**-0.5 * (2 * self.num_layers) ** -0.5)(mixed)


class MLP(nn.Module):
    """Two dense layers around the activation, D → intermediate_size → D."""

    config: VisionConfig | TextConfig
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        init_in = nn.initializers.normal((2 * width) ** -0.5)
        init_out = nn.initializers.normal(width**-0.5 * (2 * self.config.num_hidden_layers) ** -0.5)
        x = nn.Dense(self.config.intermediate_size, dtype=self.dtype, kernel_init=init_in, name="fc_in")(x)
        x = ACTIVATIONS[self.config.hidden_act](x)
        return nn.Dense(width, dtype=self.dtype, kernel_init=init_out, name="fc_out")(x)


def _layer_norm(config: VisionConfig | TextConfig, dtype: DTypeLike | None, name: str) -> nn.LayerNorm:
    # The fast variance E[x²] − E[x]² loses digits that parity with the reference needs.
    return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=dtype, name=name)


class Block(nn.Module):
    """One pre-norm transformer layer, in the (carry, output) form that `nn.scan` wants."""

    config: VisionConfig | TextConfig
    causal: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x, _):
        config = self.config
        attention = Attention(
            config.num_attention_heads, config.num_hidden_layers, self.causal, self.dtype, name="attn"
        )
        x = x + attention(_layer_norm(config, self.dtype, "ln_1")(x))
        x = x + MLP(config, self.dtype, name="mlp")(_layer_norm(config, self.dtype, "ln_2")(x))
        return x, None


def _blocks(
    config: VisionConfig | TextConfig,
    *,
    causal: bool,
    dtype: DTypeLike | None,
    unroll: int | bool,
    remat: bool,
) -> nn.Module:
    block = nn.remat(Block, prevent_cse=False) if remat else Block
    depth = config.num_hidden_layers
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=depth,
        unroll=unroll if isinstance(unroll, bool) else min(unroll, depth),
    )
    return scanned(config, causal, dtype, name="blocks")


def _projection(config: VisionConfig | TextConfig, dtype: DTypeLike | None) -> nn.Dense:
    init = nn.initializers.normal(config.hidden_size**-0.5)
    return nn.Dense(config.projection_dim, use_bias=False, dtype=dtype, kernel_init=init, name="projection")


class PatchEmbedding(nn.Module):
    """A linear map of non-overlapping patches, `[B, H, W, 3]` → `[B, N, D]`: the reference's strided convolution."""

    config: VisionConfig
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, images):
        p, g, channels, width = (
            self.config.patch_size,
            self.config.grid_size,
            images.shape[-1],
            self.config.hidden_size,
        )
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2)), (p, p, channels, width)
        )
        images, kernel = nn.dtypes.promote_dtype(images, kernel, dtype=self.dtype)
        patches = images[:, : g * p, : g * p].reshape(-1, g, p, g, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return patches.reshape(-1, g * g, p * p * channels) @ kernel.reshape(-1, width)


class ImageEncoder(nn.Module):
    """The image tower: normalised images `[B, H, W, 3]` → features `[B, E]`, not normalised.

    Attributes:
        config: The geometry.
        dtype: Dtype of the computation; None takes that of the parameters. Layer-norm statistics and softmax are
            float32 at least, and so are the features.
        unroll: Layers unrolled in one step of the scan, or True for all. 1 compiles twice as fast; all of B/32 runs
            8–14 % faster on a CPU.
        remat: Recompute each layer in the backward pass, to save memory.

    Example:
        >>> encoder = ImageEncoder(VisionConfig(image_size=8, patch_size=4, hidden_size=8, intermediate_size=16,
        ...     num_hidden_layers=2, num_attention_heads=2, projection_dim=4))
        >>> images = jnp.zeros((3, 8, 8, 3))
        >>> params = encoder.init(jax.random.key(0), images)["params"]
        >>> encoder.apply({"params": params}, images).shape
        (3, 4)
    """

    config: VisionConfig
    dtype: DTypeLike | None = None
    unroll: int | bool = 1
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        config = self.config
        expected = (config.image_size, config.image_size, config.num_channels)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"Images must have shape [B, {', '.join(map(str, expected))}], got {list(images.shape)}."
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(
                f"Images must be normalised floats, got {images.dtype}: call tajax.data.preprocess.normalize first."
            )
        width = config.hidden_size
        init = nn.initializers.normal(width**-0.5)
        class_embedding = self.param("class_embedding", init, (width,))
        position_embedding = self.param("position_embedding", init, (config.grid_size**2 + 1, width))
        x = PatchEmbedding(config, self.dtype, name="patch_embedding")(images)
        class_token = jnp.broadcast_to(class_embedding.astype(x.dtype), (x.shape[0], 1, width))
        x = jnp.concatenate([class_token, x], axis=1) + position_embedding.astype(x.dtype)[None]
        x = _layer_norm(config, self.dtype, "ln_pre")(x)
        x, _ = _blocks(config, causal=False, dtype=self.dtype, unroll=self.unroll, remat=self.remat)(x, None)
        x = _layer_norm(config, self.dtype, "ln_post")(x[:, 0])
        features = _projection(config, self.dtype)(x)
        return features.astype(jnp.promote_types(features.dtype, jnp.float32))


class TextEncoder(nn.Module):
    """The text tower: tokens int32 `[B, C]` → features `[B, E]`, not normalised; pooled at the first EOS.

    Rows may be shorter than the context length. Padding after the EOS changes nothing, since attention is causal.
    Attributes are those of `ImageEncoder`.
    """

    config: TextConfig
    dtype: DTypeLike | None = None
    unroll: int | bool = 1
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: Int[Array, "B C"]) -> Float[Array, "B E"]:
        config = self.config
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= config.max_position_embeddings:
            raise ValueError(
                f"Tokens must have shape [B, C], C at most {config.max_position_embeddings}, got {list(tokens.shape)}."
            )
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"Tokens must be integers, got {tokens.dtype}.")
        width, length = config.hidden_size, tokens.shape[1]
        token_embedding = self.param(
            "token_embedding", nn.initializers.normal(0.02), (config.vocab_size, width)
        )
        position_embedding = self.param(
            "position_embedding", nn.initializers.normal(0.01), (config.max_position_embeddings, width)
        )
        x = jnp.take(token_embedding, tokens, axis=0) + position_embedding[None, :length]
        x = x if self.dtype is None else x.astype(self.dtype)
        x, _ = _blocks(config, causal=True, dtype=self.dtype, unroll=self.unroll, remat=self.remat)(x, None)
        legacy = config.eos_token_id == _LEGACY_EOS_TOKEN_ID
        end = jnp.argmax(tokens if legacy else tokens == config.eos_token_id, axis=-1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        x = _layer_norm(config, self.dtype, "ln_final")(x)
        features = _projection(config, self.dtype)(x)
        return features.astype(jnp.promote_types(features.dtype, jnp.float32))


class CLIP(nn.Module):
    """Both towers and the logarithm of the inverse temperature; parameters `{'image': …, 'text': …, 'logit_scale': []}`.

    Calling it gives `(image features [B, E], text features [B', E], exp(logit_scale) [])`, features not normalised.
    Attributes are those of `ImageEncoder`.
    """

    config: ClipConfig
    dtype: DTypeLike | None = None
    unroll: int | bool = 1
    remat: bool = False

    def setup(self):
        knobs = {"dtype": self.dtype, "unroll": self.unroll, "remat": self.remat}
        self.image = ImageEncoder(self.config.vision, **knobs)
        self.text = TextEncoder(self.config.text, **knobs)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(self.config.logit_scale_init_value), ()
        )

    def __call__(
        self, images: Float[Array, "B H W 3"], tokens: Int[Array, "M C"]
    ) -> tuple[Float[Array, "B E"], Float[Array, "M E"], Float[Array, ""]]:
        """Features of images and of texts, and the scale of their cosines."""
        return self.image(images), self.text(tokens), jnp.exp(self.logit_scale)

    def encode_image(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """Features of the image tower alone."""
        return self.image(images)

    def encode_text(self, tokens: Int[Array, "B C"]) -> Float[Array, "B E"]:
        """Features of the text tower alone."""
        return self.text(tokens)

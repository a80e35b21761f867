"""CLIP in Flax linen: an image tower and a text tower, each a pure function of a parameter tree.

Layers are stacked along a leading axis L and run under `nn.scan`, so that a tower compiles one block whatever
its depth. The attention has one `[D, D]` kernel for each of W_q, W_k, W_v, W_o: the leaves that
attention-only fine-tuning trains. No custom derivative stands anywhere, so `jax.linearize` works and XLA can
drop the gradients nobody asks for. The parameters:

    image   class_embedding [D], position_embedding [N+1, D], patch_embedding/kernel [p, p, 3, D], ln_pre,
            blocks, ln_post, projection/kernel [D, E]
    text    token_embedding [V, D], position_embedding [C, D], blocks, ln_final, projection/kernel [D, E]
    blocks  ln_1, attn/{query, key, value, out}, ln_2, mlp/{fc_in, fc_out}, all with a leading L

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", §2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from tajax.models.geometry import ClipConfig, TextConfig, VisionConfig, pooled_position
from tajax.types import Params

__all__ = [
    "ACTIVATIONS",
    "CLIP",
    "ClipConfig",
    "ImageEncoder",
    "TextConfig",
    "TextEncoder",
    "VisionConfig",
    "abstract_params",
]


def quick_gelu(x: Array) -> Array:
    """OpenAI's approximation of GELU, x·σ(1.702·x)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
"""The functions that `hidden_act` names."""


class Attention(nn.Module):
    """Multi-head self-attention, softmax(QKᵀ/√d)V·W_o; `[B, N, D]` → `[B, N, D]`. The softmax is float32."""

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
    """A linear map of each patch, `[B, H, W, 3]` → `[B, N, D]`: the reference's strided convolution."""

    config: VisionConfig
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, images):
        p, g = self.config.patch_size, self.config.grid_size
        channels, width = images.shape[-1], self.config.hidden_size
        init = nn.initializers.lecun_normal(in_axis=(0, 1, 2))
        kernel = self.param("kernel", init, (p, p, channels, width))
        images, kernel = nn.dtypes.promote_dtype(images, kernel, dtype=self.dtype)
        patches = images[:, : g * p, : g * p].reshape(-1, g, p, g, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return patches.reshape(-1, g * g, p * p * channels) @ kernel.reshape(-1, width)


class ImageEncoder(nn.Module):
    """The image tower: normalised images `[B, H, W, 3]` → features `[B, E]`, not normalised.

    Attributes:
        config: The geometry.
        dtype: Dtype of the computation; None takes that of the parameters. Layer-norm statistics and softmax
            are float32 at least, and so are the features.
        unroll: Layers unrolled in one step of the scan, or True for all. 1 compiles twice as fast; all of
            B/32 runs 8–14 % faster on a CPU.
        remat: Recompute each layer in the backward pass, to save memory.

    Example:
        >>> config = VisionConfig(image_size=8, patch_size=4, hidden_size=8, intermediate_size=16,
        ...                       num_hidden_layers=2, num_attention_heads=2, projection_dim=4)
        >>> encoder = ImageEncoder(config)
        >>> images = jnp.zeros((3, 8, 8, 3))
        >>> variables = jax.jit(encoder.init)(jax.random.key(0), images)
        >>> jax.jit(encoder.apply)(variables, images).shape
        (3, 4)
    """

    config: VisionConfig
    dtype: DTypeLike | None = None
    unroll: int | bool = 1
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """Features of images, raising on another shape or an integer dtype."""
        config = self.config
        expected = (config.image_size, config.image_size, config.num_channels)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"Images must have shape [B, {', '.join(map(str, expected))}], got {list(images.shape)}.")
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

    Rows may be shorter than the context length. Padding after the EOS changes nothing, since attention is
    causal. Attributes are those of `ImageEncoder`.
    """

    config: TextConfig
    dtype: DTypeLike | None = None
    unroll: int | bool = 1
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: Int[Array, "B C"]) -> Float[Array, "B E"]:
        """Features of texts, raising on rows that are too long or a dtype that is not an integer."""
        config = self.config
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= config.max_position_embeddings:
            raise ValueError(
                f"Tokens must have shape [B, C], C at most {config.max_position_embeddings}, got {list(tokens.shape)}."
            )
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"Tokens must be integers, got {tokens.dtype}.")
        width, length = config.hidden_size, tokens.shape[1]
        init_token, init_position = nn.initializers.normal(0.02), nn.initializers.normal(0.01)
        token_embedding = self.param("token_embedding", init_token, (config.vocab_size, width))
        shape = (config.max_position_embeddings, width)
        position_embedding = self.param("position_embedding", init_position, shape)
        x = jnp.take(token_embedding, tokens, axis=0) + position_embedding[None, :length]
        x = x if self.dtype is None else x.astype(self.dtype)
        x, _ = _blocks(config, causal=True, dtype=self.dtype, unroll=self.unroll, remat=self.remat)(x, None)
        x = jnp.take_along_axis(x, pooled_position(config, tokens)[:, None, None], axis=1)[:, 0]
        x = _layer_norm(config, self.dtype, "ln_final")(x)
        features = _projection(config, self.dtype)(x)
        return features.astype(jnp.promote_types(features.dtype, jnp.float32))


class CLIP(nn.Module):
    """Both towers and the logarithm of the inverse temperature.

    Its parameters are `{'image': …, 'text': …, 'logit_scale': []}`. Calling it gives the features of images
    `[B, E]` and of texts `[M, E]`, neither normalised, and exp(logit_scale). Attributes are those of
    `ImageEncoder`.
    """

    config: ClipConfig
    dtype: DTypeLike | None = None
    unroll: int | bool = 1
    remat: bool = False

    def setup(self):
        """Both towers, under the names that their parameters have."""
        knobs = {"dtype": self.dtype, "unroll": self.unroll, "remat": self.remat}
        self.image = ImageEncoder(self.config.vision, **knobs)
        self.text = TextEncoder(self.config.text, **knobs)
        init = nn.initializers.constant(self.config.logit_scale_init_value)
        self.logit_scale = self.param("logit_scale", init, ())

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


def abstract_params(config: ClipConfig) -> Params:
    """The shapes and dtypes of a CLIP's parameters, float32, at no cost: leaves are `jax.ShapeDtypeStruct`.

    Example:
        >>> abstract_params(ClipConfig())["image"]["blocks"]["attn"]["query"]["kernel"].shape
        (12, 768, 768)
    """
    vision, text = config.vision, config.text
    images = jax.ShapeDtypeStruct((1, vision.image_size, vision.image_size, vision.num_channels), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, text.max_position_embeddings), jnp.int32)
    return jax.eval_shape(CLIP(config).init, jax.random.key(0), images, tokens)["params"]

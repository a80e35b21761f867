"""CLIP in Flax linen: an image tower and a text tower, each a pure function of a parameter tree.

Layers are those of `tajax.models.transformer`, stacked along a leading axis L. The parameters:

    image   class_embedding [D], position_embedding [N+1, D], patch_embedding/kernel [p, p, 3, D], ln_pre,
            blocks, ln_post, projection/kernel [D, E]
    text    token_embedding [V, D], position_embedding [C, D], blocks, ln_final, projection/kernel [D, E]
    blocks  ln_1, attn/{query, key, value, out}, ln_2, mlp/{fc_in, fc_out}, all with a leading L

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", §2.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from tajax.models.geometry import ClipConfig, TextConfig, VisionConfig, pooled_position
from tajax.models.transformer import MLP, Attention, layer_norm, transform
from tajax.types import Params, Remat

__all__ = [
    "CLIP",
    "ClipConfig",
    "ImageEncoder",
    "TextConfig",
    "TextEncoder",
    "VisionConfig",
    "abstract_params",
]


class Block(nn.Module):
    """One pre-norm transformer layer, `[B, N, D]` → `[B, num_outputs, D]`: its first tokens, or all."""

    config: VisionConfig | TextConfig
    causal: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array, mask: None = None, num_outputs: int | None = None) -> Array:
        config, width = self.config, x.shape[-1]
        into_sum = width**-0.5 * (2 * config.num_hidden_layers) ** -0.5
        stds = (width**-0.5, into_sum), ((2 * width) ** -0.5, into_sum)
        attention = Attention(config.num_attention_heads, self.causal, self.dtype, stds[0], name="attn")
        mlp = MLP(config.intermediate_size, config.hidden_act, self.dtype, stds[1], name="mlp")
        x = x[:, :num_outputs] + attention(_layer_norm(config, self.dtype, "ln_1")(x), None, num_outputs)
        return x + mlp(_layer_norm(config, self.dtype, "ln_2")(x))


def _layer_norm(config: VisionConfig | TextConfig, dtype: DTypeLike | None, name: str) -> nn.LayerNorm:
    return layer_norm(config.layer_norm_eps, dtype, name)


def _transform(
    tower: ImageEncoder | TextEncoder, x: Array, *, causal: bool, num_outputs: int | None = None, frozen: int = 0
) -> Float[Array, "B M D"]:
    config = tower.config
    settings, depth = (config, causal, tower.dtype), config.num_hidden_layers
    return transform(tower, Block, settings, depth, x, num_outputs=num_outputs, frozen=frozen)


def _projection(config: VisionConfig | TextConfig, dtype: DTypeLike | None) -> nn.Dense:
    init = nn.initializers.normal(config.hidden_size**-0.5)
    return nn.Dense(config.projection_dim, use_bias=False, dtype=dtype, kernel_init=init, name="projection")


class PatchEmbedding(nn.Module):
    """A linear map of each patch, `[B, H, W, 3]` → `[B, N, D]`: the reference's strided convolution.

    Attributes:
        patch_size: Side of a patch, in pixels.
        grid_size: Patches along one side; pixels beyond the last are not seen.
        width: D.
        dtype: Of the computation; None takes that of images and parameters.
        use_bias: Whether D numbers are added to each token.
    """

    patch_size: int
    grid_size: int
    width: int
    dtype: DTypeLike | None
    use_bias: bool = False

    @nn.compact
    def __call__(self, images: Array) -> Array:
        p, g, width, channels = self.patch_size, self.grid_size, self.width, images.shape[-1]
        init = nn.initializers.lecun_normal(in_axis=(0, 1, 2))
        kernel = self.param("kernel", init, (p, p, channels, width))
        images, kernel = nn.dtypes.promote_dtype(images, kernel, dtype=self.dtype)
        patches = images[:, : g * p, : g * p].reshape(-1, g, p, g, p, channels).transpose(0, 1, 3, 2, 4, 5)
        rows = patches.reshape(-1, p * p * channels) @ kernel.reshape(-1, width)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (width,))
            rows = rows + bias.astype(rows.dtype)[None]
        return rows.reshape(-1, g * g, width)


def check_images(images: Array, size: int, channels: int = 3) -> None:
    """Raises on images of another shape than `[B, size, size, channels]`, or of an integer dtype."""
    expected = (size, size, channels)
    if images.ndim != 4 or images.shape[1:] != expected:
        raise ValueError(f"Images must have shape [B, {', '.join(map(str, expected))}], got {list(images.shape)}.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"Images must be normalised floats, got {images.dtype}: call tajax.data.preprocess.normalize first."
        )


class ImageEncoder(nn.Module):
    """The image tower: normalised images `[B, H, W, 3]` → features `[B, E]`, not normalised.

    Attributes:
        config: The geometry.
        dtype: Dtype of the computation; None takes that of the parameters. Layer-norm statistics and softmax
            are float32 at least, and so are the features.
        unroll: Layers unrolled in one step of the scan, or True for all. 1 compiles one layer alone. On a CPU all
            layers together run 20 % faster in training, and a linearised evaluation twice as fast; anywhere they
            spare it the residuals of all layers. Measured in `experiments/benchmarks`.
        remat: How much of each layer the backward pass computes again, to save memory. That is for layers in a scan:
            where they are unrolled the compiler sees that it computes the same twice, and keeps it instead.
        frozen: How many layers, counted from the input, are constants: they get neither gradients nor tangents, and
            cost none even in a scan.

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
    remat: Remat = "none"
    frozen: int = 0

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """Features of images, raising on another shape or an integer dtype."""
        config = self.config
        check_images(images, config.image_size, config.num_channels)
        width = config.hidden_size
        init = nn.initializers.normal(width**-0.5)
        class_embedding = self.param("class_embedding", init, (width,))
        position_embedding = self.param("position_embedding", init, (config.grid_size**2 + 1, width))
        x = PatchEmbedding(config.patch_size, config.grid_size, width, self.dtype, name="patch_embedding")(images)
        class_token = jnp.broadcast_to(class_embedding.astype(x.dtype), (x.shape[0], 1, width))
        x = jnp.concatenate([class_token, x], axis=1) + position_embedding.astype(x.dtype)[None]
        x = _layer_norm(config, self.dtype, "ln_pre")(x)
        x = _transform(self, x, causal=False, num_outputs=1, frozen=self.frozen)
        x = _layer_norm(config, self.dtype, "ln_post")(x[:, 0])
        features = _projection(config, self.dtype)(x)
        return features.astype(jnp.promote_types(features.dtype, jnp.float32))


class TextEncoder(nn.Module):
    """The text tower: tokens int32 `[B, C]` → features `[B, E]`, not normalised; pooled at the first EOS.

    Rows may be shorter than the context length. Padding after the EOS changes nothing, since attention is
    causal. Attributes are those of `ImageEncoder`, none of its layers frozen.
    """

    config: TextConfig
    dtype: DTypeLike | None = None
    unroll: int | bool = 1
    remat: Remat = "none"

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
        x = _transform(self, x, causal=True)
        x = jnp.take_along_axis(x, pooled_position(config, tokens)[:, None, None], axis=1)[:, 0]
        x = _layer_norm(config, self.dtype, "ln_final")(x)
        features = _projection(config, self.dtype)(x)
        return features.astype(jnp.promote_types(features.dtype, jnp.float32))


class CLIP(nn.Module):
    """Both towers and the logarithm of the inverse temperature.

    Its parameters are `{'image': …, 'text': …, 'logit_scale': []}`. Calling it gives the features of images
    `[B, E]` and of texts `[M, E]`, neither normalised, and exp(logit_scale). Attributes are those of
    `TextEncoder`.
    """

    config: ClipConfig
    dtype: DTypeLike | None = None
    unroll: int | bool = 1
    remat: Remat = "none"

    def setup(self) -> None:
        """Both towers, under the names that their parameters have."""
        knobs = self.dtype, self.unroll, self.remat
        self.image = ImageEncoder(self.config.vision, *knobs)
        self.text = TextEncoder(self.config.text, *knobs)
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

"""ViTs in Flax linen: the class token after the last layer norm, as a pure function of a parameter tree.

Layers are those of `tajax.models.transformer`, stacked along a leading axis L. The parameters:

    class_embedding [D], position_embedding [N+1, D], patch_embedding/{kernel [p, p, 3, D], bias [D]},
    registers [R, D] (DINOv2 with registers), blocks, ln_post
    blocks  ln_1, attn/{query, key, value, out}, scale_1 [D], ln_2, mlp/{fc_in, fc_out}, scale_2 [D], all with a
            leading L; the scales in DINOv2 alone, no biases of query, key and value where `qkv_bias` is false; the
            two factors of a SwiGLU are the halves of fc_in, the gate first

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", §3.1; Touvron et al. 2021, "Going deeper with Image
Transformers", §2 for the scales; Shazeer 2020, "GLU Variants Improve Transformer" for SwiGLU.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tajax.encoders.vit.geometry import VitConfig
from tajax.encoders.vit.positions import KERNELS, bicubic_matrix
from tajax.models.clip import PatchEmbedding, check_images
from tajax.models.transformer import MLP, Attention, dense, layer_norm, transform
from tajax.types import Params, Remat

__all__ = ["VisionTransformer", "abstract_params"]


class SwiGLU(nn.Module):
    """A gated MLP, W_out(silu(W_gate x) ⊙ W_up x), both factors in one dense layer: D → 2·intermediate_size → D."""

    intermediate_size: int
    dtype: DTypeLike | None
    stds: tuple[float, float]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        factors = dense(x, 2 * self.intermediate_size, self.dtype, self.stds[0], "fc_in")
        gate, up = jnp.split(factors, 2, axis=-1)
        return dense(jax.nn.silu(gate) * up, width, self.dtype, self.stds[1], "fc_out")


class Block(nn.Module):
    """One pre-norm layer, `[B, N, D]` → `[B, num_outputs, D]`: its first tokens, or all."""

    config: VitConfig
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array, mask: None = None, num_outputs: int | None = None) -> Array:
        config, width = self.config, x.shape[-1]
        into_sum = width**-0.5 * (2 * config.num_hidden_layers) ** -0.5
        stds = (width**-0.5, into_sum), ((2 * width) ** -0.5, into_sum)
        attention = Attention(
            config.num_attention_heads, False, self.dtype, stds[0], qkv_bias=config.qkv_bias, name="attn"
        )
        mlp = (
            SwiGLU(config.intermediate_size, self.dtype, stds[1], name="mlp")
            if config.gated
            else MLP(config.intermediate_size, config.hidden_act, self.dtype, stds[1], name="mlp")
        )

        def norm(x: Array, name: str) -> Array:
            return layer_norm(config.layer_norm_eps, self.dtype, name)(x)

        x = x[:, :num_outputs] + self._scaled(attention(norm(x, "ln_1"), None, num_outputs), "scale_1")
        return x + self._scaled(mlp(norm(x, "ln_2")), "scale_2")

    def _scaled(self, x: Array, name: str) -> Array:
        if self.config.layer_scale is None:
            return x
        scale = self.param(name, nn.initializers.constant(self.config.layer_scale), (x.shape[-1],))
        return x * scale.astype(x.dtype)[None, None]


class VisionTransformer(nn.Module):
    """The encoder: normalised images `[B, S, S, 3]` → features `[B, D]`, the class token after the last layer norm.

    S is `config.input_size`. Registers change what the class token attends to, and are not read.

    Attributes:
        config: The geometry.
        dtype: Dtype of the computation; None takes that of the parameters. Layer-norm statistics and softmax are
            float32 at least, and so are the features.
        unroll: Layers unrolled in one step of the scan, or True for all: see `tajax.models.ImageEncoder`.
        remat: How much of each layer the backward pass computes again, as in `tajax.models.ImageEncoder`.
        frozen: How many layers, counted from the input, are constants, as there.

    Example:
        >>> config = VitConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        ...                    image_size=8, input_size=8, patch_size=4)
        >>> encoder = VisionTransformer(config)
        >>> images = jnp.zeros((3, 8, 8, 3))
        >>> variables = jax.jit(encoder.init)(jax.random.key(0), images)
        >>> jax.jit(encoder.apply)(variables, images).shape
        (3, 8)
    """

    config: VitConfig
    dtype: DTypeLike | None = None
    unroll: int | bool = 1
    remat: Remat = "none"
    frozen: int = 0

    @nn.compact
    def __call__(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B D"]:
        """Features of images, raising on another shape or an integer dtype."""
        config, width = self.config, self.config.hidden_size
        check_images(images, config.input_size)
        init = nn.initializers.normal(0.02)
        class_embedding = self.param("class_embedding", init, (width,))
        position_embedding = self.param("position_embedding", init, (config.table_size**2 + 1, width))
        patches = PatchEmbedding(
            config.patch_size, config.grid_size, width, self.dtype, use_bias=True, name="patch_embedding"
        )
        x = patches(images)
        class_token = jnp.broadcast_to(class_embedding.astype(x.dtype), (x.shape[0], 1, width))
        x = jnp.concatenate([class_token, x], axis=1) + positions(position_embedding, config).astype(x.dtype)[None]
        if config.num_registers:
            registers = self.param("registers", init, (config.num_registers, width)).astype(x.dtype)
            between = jnp.broadcast_to(registers, (x.shape[0], *registers.shape))
            x = jnp.concatenate([x[:, :1], between, x[:, 1:]], axis=1)
        x = transform(self, Block, (config, self.dtype), config.num_hidden_layers, x, num_outputs=1, frozen=self.frozen)
        features = layer_norm(config.layer_norm_eps, self.dtype, "ln_post")(x[:, 0])
        return features.astype(jnp.promote_types(features.dtype, jnp.float32))


def positions(table: Float[Array, "M D"], config: VitConfig) -> Float[Array, "N D"]:
    """The positions of an input's tokens, the class token first: the table, interpolated to another grid."""
    old, new = config.table_size, config.grid_size
    if old == new:
        return table
    kernel = KERNELS[config.model_type]
    matrix = bicubic_matrix(old, new, a=kernel.a, antialias=kernel.antialias)
    each = jnp.asarray(matrix, table.dtype)
    grid = table[1:].reshape(old, old, -1)
    # once a step and small: exact on a GPU too, where a default product has the digits of TF32
    grid = jnp.einsum("ij,jkd,lk->ild", each, grid, each, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table[:1], grid.reshape(new * new, -1)])


def abstract_params(config: VitConfig) -> Params:
    """The shapes and dtypes of a ViT's parameters, float32, at no cost: leaves are `jax.ShapeDtypeStruct`.

    Example:
        >>> abstract_params(VitConfig())["blocks"]["attn"]["query"]["kernel"].shape
        (12, 768, 768)
    """
    images = jax.ShapeDtypeStruct((1, config.input_size, config.input_size, 3), jnp.float32)
    return jax.eval_shape(VisionTransformer(config).init, jax.random.key(0), images)["params"]

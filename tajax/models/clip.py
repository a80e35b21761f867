"""CLIP in Flax linen: an image tower and a text tower, each a pure function of a parameter tree.

Layers are stacked along a leading axis L and run under `nn.scan`, so that a tower can compile one block whatever
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


LAYER_AXIS = {nn.PARTITION_NAME: "layers"}
"""The name of the leading axis L in the partitioning metadata of a leaf that has some."""


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


def _dense(x: Array, features: int, dtype: DTypeLike | None, std: float, name: str) -> Array:
    """A dense layer on the last axis, `[..., D]` → `[..., features]`.

    It sees one row a token: the gradient of its kernel is then a product over one axis. Over two, XLA's CPU compiler
    copies both factors into another layout first, a third of the time of a B/32 training step.
    """
    init = nn.initializers.normal(std)
    rows = nn.Dense(features, dtype=dtype, kernel_init=init, name=name)(x.reshape(-1, x.shape[-1]))
    return rows.reshape(*x.shape[:-1], features)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(QKᵀ/√d)V·W_o. The softmax is float32.

    Queries come from the first `num_queries` tokens (None: all of them), keys and values from all:
    `[B, N, D]` → `[B, num_queries, D]`.
    """

    num_heads: int
    num_layers: int
    causal: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array, num_queries: int | None = None) -> Array:
        batch, length, width = x.shape
        head_dim = width // self.num_heads

        def heads(tokens: Array, name: str) -> Array:
            y = _dense(tokens, width, self.dtype, width**-0.5, name)
            return y.reshape(batch, -1, self.num_heads, head_dim).swapaxes(1, 2)  # [B, heads, N, d]

        query, key, value = heads(x[:, :num_queries], "query"), heads(x, "key"), heads(x, "value")
        scores = jnp.einsum("bhqd,bhkd->bhqk", query * head_dim**-0.5, key)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        if self.causal:
            seen = jnp.tril(jnp.ones((length, length), bool))[:num_queries]
            scores = jnp.where(seen[None, None], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, value).swapaxes(1, 2).reshape(batch, -1, width)
        return _dense(mixed, width, self.dtype, width**-0.5 * (2 * self.num_layers) ** -0.5, "out")


class MLP(nn.Module):
    """Two dense layers around the activation, D → intermediate_size → D."""

    config: VisionConfig | TextConfig
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, width = self.config, x.shape[-1]
        x = _dense(x, config.intermediate_size, self.dtype, (2 * width) ** -0.5, "fc_in")
        x = ACTIVATIONS[config.hidden_act](x)
        return _dense(x, width, self.dtype, width**-0.5 * (2 * config.num_hidden_layers) ** -0.5, "fc_out")


def _layer_norm(config: VisionConfig | TextConfig, dtype: DTypeLike | None, name: str) -> nn.LayerNorm:
    # The fast variance E[x²] − E[x]² loses digits that parity with the reference needs.
    return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=dtype, name=name)


class Block(nn.Module):
    """One pre-norm transformer layer, `[B, N, D]` → `[B, num_outputs, D]`: its first tokens, or all."""

    config: VisionConfig | TextConfig
    causal: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array, num_outputs: int | None = None) -> Array:
        config = self.config
        attention = Attention(
            config.num_attention_heads, config.num_hidden_layers, self.causal, self.dtype, name="attn"
        )
        x = x[:, :num_outputs] + attention(_layer_norm(config, self.dtype, "ln_1")(x), num_outputs)
        return x + MLP(config, self.dtype, name="mlp")(_layer_norm(config, self.dtype, "ln_2")(x))


class Layers(nn.Module):
    """The layers of a tower, `[B, N, D]` → `[B, num_outputs, D]`: `body`, all but the last, and `last`.

    The last one computes nothing but the `num_outputs` tokens that are read afterwards: with the class token alone,
    7 % of the operations of B/32 fall away and 21 % of the bundled model's.

    `tower.apply(…, mutable=["intermediates"])` returns what layers sow: under `blocks/body` with a leading axis of
    L − 1, under `blocks/last` as it is.
    """

    config: VisionConfig | TextConfig
    causal: bool
    dtype: DTypeLike | None
    unroll: int | bool
    remat: bool

    @nn.compact
    def __call__(self, x: Array, num_outputs: int | None = None) -> Array:
        block = nn.remat(Block, prevent_cse=False, static_argnums=2) if self.remat else Block
        length = self.config.num_hidden_layers - 1

        def step(layer: Block, x: Array, _: None) -> tuple[Array, None]:
            return layer(x, None), None

        body = nn.scan(
            step,
            variable_axes={True: 0},
            length=length,
            unroll=self.unroll if isinstance(self.unroll, bool) else min(self.unroll, max(length, 1)),
            metadata_params=LAYER_AXIS,
            check_constancy_invariants=False,  # nothing is broadcast: the layer would be traced twice
        )
        x, _ = body(block(self.config, self.causal, self.dtype, name="body"), x, None)
        return block(self.config, self.causal, self.dtype, name="last")(x, num_outputs)


def _transform(
    tower: ImageEncoder | TextEncoder, x: Array, *, causal: bool, num_outputs: int | None = None
) -> Float[Array, "B M D"]:
    """The layers of a tower, whose parameters are stacked along a leading axis under `blocks`."""
    depth = tower.config.num_hidden_layers
    if tower.is_initializing():
        block = Block(tower.config, causal, tower.dtype, parent=None)
        keys = jax.random.split(tower.make_rng("params"), depth)
        stacked = jax.vmap(lambda key: block.init(key, x)["params"])(keys)
        tower.put_variable("params", "blocks", nn.meta.add_axis(stacked, 0, LAYER_AXIS))

    def split(variables: Mapping[str, Params]) -> Mapping[str, Params]:
        stacked = variables.get("params", {})
        # Split, not sliced: the gradients of the parts are then put together by copying, without sums of padded arrays.
        parts = jax.tree.map(lambda leaf: jax.lax.split(leaf, (depth - 1, 1)), stacked)
        body = jax.tree.map(lambda _, part: part[0], stacked, parts)
        last = jax.tree.map(lambda _, part: part[1][0], stacked, parts)
        return {"params": {"body": body, "last": nn.meta.remove_axis(last, 0, LAYER_AXIS)}}

    layers = nn.map_variables(Layers, "params", split)
    return layers(tower.config, causal, tower.dtype, tower.unroll, tower.remat, name="blocks")(x, num_outputs)


def _projection(config: VisionConfig | TextConfig, dtype: DTypeLike | None) -> nn.Dense:
    init = nn.initializers.normal(config.hidden_size**-0.5)
    return nn.Dense(config.projection_dim, use_bias=False, dtype=dtype, kernel_init=init, name="projection")


class PatchEmbedding(nn.Module):
    """A linear map of each patch, `[B, H, W, 3]` → `[B, N, D]`: the reference's strided convolution."""

    config: VisionConfig
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, images: Array) -> Array:
        p, g = self.config.patch_size, self.config.grid_size
        channels, width = images.shape[-1], self.config.hidden_size
        init = nn.initializers.lecun_normal(in_axis=(0, 1, 2))
        kernel = self.param("kernel", init, (p, p, channels, width))
        images, kernel = nn.dtypes.promote_dtype(images, kernel, dtype=self.dtype)
        patches = images[:, : g * p, : g * p].reshape(-1, g, p, g, p, channels).transpose(0, 1, 3, 2, 4, 5)
        rows = patches.reshape(-1, p * p * channels) @ kernel.reshape(-1, width)
        return rows.reshape(-1, g * g, width)


class ImageEncoder(nn.Module):
    """The image tower: normalised images `[B, H, W, 3]` → features `[B, E]`, not normalised.

    Attributes:
        config: The geometry.
        dtype: Dtype of the computation; None takes that of the parameters. Layer-norm statistics and softmax
            are float32 at least, and so are the features.
        unroll: Layers unrolled in one step of the scan, or True for all. 1 compiles one layer alone. On a CPU all
            layers together run 20 % faster in training, and a linearised evaluation twice as fast; anywhere they
            spare it the residuals of all layers. Measured in `experiments/benchmarks`.
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
        x = _transform(self, x, causal=False, num_outputs=1)
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
        x = _transform(self, x, causal=True)
        x = jnp.take_along_axis(x, pooled_position(config, tokens)[:, None, None], axis=1)[:, 0]
        x = _layer_norm(config, self.dtype, "ln_final")(x)
        features = _projection(config, self.dtype)(x)
        return features.astype(jnp.promote_types(features.dtype, jnp.float32))


def features_at(module: nn.Module, params: Params, *inputs: Array | int | None) -> Array:
    """What a module makes of its inputs with these parameters."""
    return module.apply({"params": params}, *inputs)  # type: ignore[return-value]  # in Flax's type variables may change


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

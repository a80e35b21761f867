"""BERT in Flax linen: post-norm transformer layers over the tokens of a text, pooled to one feature.

    token_embedding [V, D], position_embedding [C, D], type_embedding [T, D], ln_embedding,
    blocks  attn/{query, key, value, out}, ln_1, mlp/{fc_in, fc_out}, ln_2, all with a leading L

The names are those of CLIP's towers, so that the same rules say what is trained. BERT's own pooler, a dense layer with
tanh that next-sentence prediction was trained on, is not computed: sentence encoders do not read it.

Source: Devlin et al. 2019, §3; Vaswani et al. 2017, §3.1 for layer norms after each sum.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from tajax.encoders.text.geometry import BertConfig
from tajax.encoders.text.pooling import pool
from tajax.models.transformer import MLP, Attention, layer_norm, transform
from tajax.types import Params, Remat

__all__ = ["Bert", "Tokens", "abstract_params"]

INIT_STD = 0.02
"""Of all matrices before training (Hugging Face's `initializer_range`, as in the original code)."""


class Tokens(NamedTuple):
    """Rows of token ids, padded to a common length."""

    ids: Int[Array, "B L"]
    """Special tokens among them. Any value in padding."""
    mask: Bool[Array, "B L"]
    """False in padding, which changes nothing."""


class Block(nn.Module):
    """One post-norm transformer layer, `[B, L, D]` → `[B, num_outputs, D]`: its first tokens, or all."""

    config: BertConfig
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, num_outputs: int | None = None) -> Array:
        config, stds = self.config, (INIT_STD, INIT_STD)
        attention = Attention(config.num_attention_heads, False, self.dtype, stds, name="attn")
        mlp = MLP(config.intermediate_size, config.hidden_act, self.dtype, stds, name="mlp")
        x = x[:, :num_outputs] + attention(x, mask, num_outputs)
        x = layer_norm(config.layer_norm_eps, self.dtype, "ln_1")(x)
        return layer_norm(config.layer_norm_eps, self.dtype, "ln_2")(x + mlp(x))


class Bert(nn.Module):
    """A sentence encoder: tokens → features `[B, E]`, not normalised.

    Padding changes nothing: its keys get no weight, and pooling leaves it out. What stands in it may be anything, a row
    that is padding alone gives finite numbers.

    Attributes:
        config: The geometry.
        pooling: The modes of `tajax.encoders.text.pooling.MODES` that make a feature. () gives the tokens themselves,
            `[B, L, D]`.
        dtype: Dtype of the computation; None takes that of the parameters. Layer-norm statistics, softmax and
            pooling are float32 at least, and so are the features.
        unroll: Layers unrolled in one step of the scan, or True for all, as in `tajax.models.ImageEncoder`.
        remat: How much of each layer the backward pass computes again, as in `tajax.models.ImageEncoder`.
        frozen: How many layers, counted from the input, are constants, as there.

    Example:
        >>> config = BertConfig(vocab_size=9, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        ...                     num_attention_heads=2, max_position_embeddings=6)
        >>> encoder = Bert(config, ("cls", "mean"))
        >>> tokens = Tokens(jnp.zeros((3, 4), jnp.int32), jnp.ones((3, 4), bool))
        >>> variables = jax.jit(encoder.init)(jax.random.key(0), tokens)
        >>> jax.jit(encoder.apply)(variables, tokens).shape
        (3, 16)
    """

    config: BertConfig
    pooling: tuple[str, ...] = ("mean",)
    dtype: DTypeLike | None = None
    unroll: int | bool = 1
    remat: Remat = "none"
    frozen: int = 0

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[Array, "B E"]:
        """Features of texts, raising on rows that are too long, another shape, or ids that are no integers."""
        config, (ids, mask) = self.config, tokens
        _check_tokens(config, tokens)
        init, width, length = nn.initializers.normal(INIT_STD), config.hidden_size, ids.shape[1]
        token_embedding = self.param("token_embedding", init, (config.vocab_size, width))
        position_embedding = self.param("position_embedding", init, (config.max_position_embeddings, width))
        type_embedding = self.param("type_embedding", init, (config.type_vocab_size, width))
        # of padding no id is read, which may be one that there is no row for
        x = jnp.take(token_embedding, jnp.where(mask, ids, 0), axis=0) + type_embedding[None, :1]
        x = x + position_embedding[None, :length]
        x = layer_norm(config.layer_norm_eps, self.dtype, "ln_embedding")(x)
        first_alone = 1 if self.pooling == ("cls",) else None
        x = transform(
            self, Block, (config, self.dtype), config.num_hidden_layers, x, mask, first_alone, frozen=self.frozen
        )
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return pool(x, mask, self.pooling) if self.pooling else x


def _check_tokens(config: BertConfig, tokens: Tokens) -> None:
    ids, mask = tokens
    if ids.ndim != 2 or not 1 <= ids.shape[1] <= config.max_position_embeddings:
        raise ValueError(
            f"Tokens must have shape [B, L], L at most {config.max_position_embeddings}, got {list(ids.shape)}."
        )
    if mask.shape != ids.shape or mask.dtype != jnp.bool_:
        raise ValueError(
            f"The mask must be bool {list(ids.shape)}, as the ids are, got {mask.dtype} {list(mask.shape)}."
        )
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"Ids of tokens must be integers, got {ids.dtype}.")


@functools.cache
def abstract_params(config: BertConfig) -> Params:
    """The shapes and dtypes of a BERT's parameters, float32, at no cost: leaves are `jax.ShapeDtypeStruct`.

    Example:
        >>> abstract_params(BertConfig())["blocks"]["attn"]["query"]["kernel"].shape
        (12, 768, 768)
    """
    tokens = Tokens(jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1, 1), jnp.bool_))  # type: ignore[arg-type]  # shapes in place of arrays
    return jax.eval_shape(Bert(config).init, jax.random.key(0), tokens)["params"]

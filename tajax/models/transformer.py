"""What towers of transformer layers have in common: dense layers, attention, the MLP, and the stack of the layers.

Layers are stacked along a leading axis L and run under `nn.scan`, so that a tower can compile one block whatever
its depth. The attention has one `[D, D]` kernel for each of W_q, W_k, W_v, W_o: the leaves that
attention-only fine-tuning trains. No custom derivative stands anywhere, so `jax.linearize` works and XLA can
drop the gradients nobody asks for.

Source: Vaswani et al. 2017, "Attention Is All You Need", §3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from tajax.mesh import divide_rows
from tajax.types import Params, Remat

__all__ = [
    "ACTIVATIONS",
    "LAYER_AXIS",
    "MLP",
    "Attention",
    "Layers",
    "check_remat",
    "default_unroll",
    "dense",
    "features_at",
    "layer_norm",
    "transform",
]

LAYER_AXIS = {nn.PARTITION_NAME: "layers"}
"""The name of the leading axis L in the partitioning metadata of a leaf that has some."""


def quick_gelu(x: Array) -> Array:
    """OpenAI's approximation of GELU, x·σ(1.702·x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Array) -> Array:
    """GELU through erf, x·Φ(x), computed a second time in the backward pass.

    That needs x alone, in place of three arrays as large, which on a CPU take longer to come by than to compute again.
    """
    return jax.checkpoint(lambda y: jax.nn.gelu(y, approximate=False))(x)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": exact_gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
"""The functions that `hidden_act` names."""


def dense(x: Array, features: int, dtype: DTypeLike | None, std: float, name: str, *, use_bias: bool = True) -> Array:
    """A dense layer on the last axis, `[..., D]` → `[..., features]`.

    It sees one row a token: the gradient of its kernel is then a product over one axis. Over two, XLA's CPU compiler
    copies both factors into another layout first, a third of the time of a B/32 training step.
    """
    init = nn.initializers.normal(std)
    layer = nn.Dense(features, use_bias, dtype=dtype, kernel_init=init, name=name)
    rows = divide_rows(layer(divide_rows(x.reshape(-1, x.shape[-1]))))
    return rows.reshape(*x.shape[:-1], features)


def layer_norm(epsilon: float, dtype: DTypeLike | None, name: str) -> nn.LayerNorm:
    """A layer norm over the last axis, its variance the mean square of what is centred."""
    # The fast variance E[x²] − E[x]² loses digits that parity with the reference needs.
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(QKᵀ/√d)V·W_o. The softmax is float32 at least.

    Queries come from the first `num_queries` tokens (None: all of them), keys and values from all:
    `[B, N, D]` → `[B, num_queries, D]`. Of `mask` `[B, N]` the keys that are False get a weight of exactly 0, and equal
    weights where all are False.

    Attributes:
        num_heads: Of width D / num_heads each.
        causal: Whether a token sees none behind it.
        dtype: Of the computation; None takes that of the parameters.
        stds: Of the initial kernels, those of query, key and value, and that of out.
        qkv_bias: Whether query, key and value have biases; out has one.
    """

    num_heads: int
    causal: bool
    dtype: DTypeLike | None
    stds: tuple[float, float]
    qkv_bias: bool = True

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, num_queries: int | None = None) -> Array:
        """The tokens after it."""
        batch, length, width = x.shape
        head_dim = width // self.num_heads

        def heads(tokens: Array, name: str) -> Array:
            y = dense(tokens, width, self.dtype, self.stds[0], name, use_bias=self.qkv_bias)
            return y.reshape(batch, -1, self.num_heads, head_dim).swapaxes(1, 2)  # [B, heads, N, d]

        query, key, value = heads(x[:, :num_queries], "query"), heads(x, "key"), heads(x, "value")
        scores = jnp.einsum("bhqd,bhkd->bhqk", query * head_dim**-0.5, key)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        if self.causal:
            seen = jnp.tril(jnp.ones((length, length), bool))[:num_queries]
            scores = jnp.where(seen[None, None], scores, -jnp.inf)
        if mask is not None:  # the lowest finite value, since a row of -inf alone has no softmax
            scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, value).swapaxes(1, 2).reshape(batch, -1, width)
        return dense(mixed, width, self.dtype, self.stds[1], "out")


class MLP(nn.Module):
    """Two dense layers around the activation, D → intermediate_size → D; `stds` are those of their initial kernels."""

    intermediate_size: int
    hidden_act: str
    dtype: DTypeLike | None
    stds: tuple[float, float]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The tokens after it."""
        width = x.shape[-1]
        x = ACTIVATIONS[self.hidden_act](dense(x, self.intermediate_size, self.dtype, self.stds[0], "fc_in"))
        return dense(x, width, self.dtype, self.stds[1], "fc_out")


class Layers(nn.Module):
    """The layers of a tower, `[B, N, D]` → `[B, num_outputs, D]`: `front`, `body` and `last`.

    The front are those that are frozen, the body the others but for the last; either may be none. Loops are
    differentiated as a whole: in one of its own, the front runs forward only while what it is given has no tangent.

    The last one computes nothing but the `num_outputs` tokens that are read afterwards: with the class token alone,
    7 % of the operations of B/32 fall away and 21 % of the bundled model's.

    `tower.apply(…, mutable=["intermediates"])` returns what layers sow: under `blocks/front` and `blocks/body` with a
    leading axis of frozen and L − 1 − frozen, under `blocks/last` as it is.

    Attributes:
        kind: A layer, called with tokens `[B, N, D]`, a mask or None, and how many of them it is to give.
        settings: Its attributes.
        depth: L.
        unroll: Layers unrolled in one step of the scan, or True for all.
        remat: How much of each layer the backward pass computes again.
        frozen: How many layers are the front.
    """

    kind: type[nn.Module]
    settings: tuple[object, ...]
    depth: int
    unroll: int | bool
    remat: Remat
    frozen: int = 0

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, num_outputs: int | None = None) -> Array:
        """The tokens after all layers."""
        block, x = _recomputed(self.kind, self.remat), divide_rows(x)

        def step(layer: nn.Module, x: Array, mask: Array | None) -> tuple[Array, None]:
            return divide_rows(layer(x, mask, None)), None

        for name, length in {"front": self.frozen, "body": self.depth - 1 - self.frozen}.items():
            if length:
                loop = nn.scan(
                    step,
                    variable_axes={True: 0},
                    in_axes=nn.broadcast,
                    length=length,
                    unroll=self.unroll if isinstance(self.unroll, bool) else min(self.unroll, length),
                    metadata_params=LAYER_AXIS,
                    check_constancy_invariants=False,  # the mask does not change: the layer would be traced twice
                )
                x, _ = loop(block(*self.settings, name=name), x, mask)
        last: Array = block(*self.settings, name="last")(x, mask, num_outputs)
        return last


def _recomputed(kind: type[nn.Module], remat: Remat) -> type[nn.Module]:
    """A kind of layer that the backward pass computes again."""
    check_remat(remat)
    if remat == "none":
        return kind
    # in Flax's types a layer that is transformed is a layer of the same kind
    kept: Any = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    found: type[nn.Module] = nn.remat(kind, prevent_cse=False, static_argnums=3, policy=kept)
    return found


class Tower(Protocol):
    """A module with layers, as `transform` takes it: how it is to run them."""

    unroll: int | bool
    remat: Remat

    def is_initializing(self) -> bool:
        """Whether parameters are being drawn."""

    def make_rng(self, name: str, /) -> Array:
        """A key of the collection."""

    def put_variable(self, col: str, name: str, value: Params, /) -> None:
        """Sets a variable."""


def transform(
    tower: Tower,
    kind: type[nn.Module],
    settings: tuple[object, ...],
    depth: int,
    x: Float[Array, "B N D"],
    mask: Array | None = None,
    num_outputs: int | None = None,
    *,
    frozen: int = 0,
) -> Float[Array, "B M D"]:
    """The layers of a tower, whose parameters are stacked along a leading axis under `blocks`; see `Layers`.

    The parameters of the first `frozen` layers are constants here, whatever is differentiated: their gradients and the
    responses to their tangents are zero. There have to be fewer than there are layers, `ValueError` otherwise.
    """
    if not 0 <= frozen < depth:
        raise ValueError(f"frozen is {frozen}; of {depth} layers 0 to {depth - 1} can be frozen")
    every = {"front": frozen, "body": depth - 1 - frozen, "last": 1}
    sizes = {name: size for name, size in every.items() if size}
    if tower.is_initializing():
        block = kind(*settings, parent=None)
        keys = jax.random.split(tower.make_rng("params"), depth)
        stacked = jax.vmap(lambda key: block.init(key, x, mask)["params"])(keys)
        tower.put_variable("params", "blocks", nn.meta.add_axis(stacked, 0, LAYER_AXIS))

    def split(variables: Mapping[str, Params]) -> Mapping[str, Params]:
        stacked = variables.get("params", {})
        # Split, not sliced: the gradients of the parts are then put together by copying, without sums of padded arrays.
        counts = tuple(sizes.values())
        pieces = jax.tree.map(lambda leaf: dict(zip(sizes, jax.lax.split(leaf, counts), strict=True)), stacked)
        parts = {name: jax.tree.map(lambda _, piece, name=name: piece[name], stacked, pieces) for name in sizes}
        if frozen:
            parts["front"] = jax.lax.stop_gradient(parts["front"])
        last = jax.tree.map(lambda leaf: leaf[0], parts["last"])
        return {"params": parts | {"last": nn.meta.remove_axis(last, 0, LAYER_AXIS)}}

    layers = nn.map_variables(Layers, "params", split)
    return layers(kind, settings, depth, tower.unroll, tower.remat, frozen, name="blocks")(x, mask, num_outputs)


def check_remat(remat: object) -> None:
    """Raises `ValueError` for a value that `Remat` lacks."""
    if remat not in get_args(Remat):
        raise ValueError(f"remat is {remat!r}; choose one of {', '.join(map(repr, get_args(Remat)))}.")


def default_unroll(remat: Remat) -> int | bool:
    """How many layers a step of the scan unrolls where nobody says it: all on a CPU if it keeps what they compute."""
    return True if jax.default_backend() == "cpu" and remat == "none" else 1


def features_at(module: nn.Module, params: Params, *inputs: PyTree[Array] | int | None) -> Array:
    """What a module makes of its inputs with these parameters."""
    return module.apply({"params": params}, *inputs)  # type: ignore[return-value]  # in Flax's type variables may change

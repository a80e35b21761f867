"""Low-rank fine-tuning (LoRA): thin factors whose product is added to each dense kernel, trained in its place.

A kernel W₀ [in, out] becomes W₀ + (α/r) A B with A [in, r] and B [r, out], of stacked layers each its own. In the
layout of PyTorch, which keeps kernels transposed, that is LoRA's W₀ + (α/r) BA. A begins as PEFT draws it, uniform in
±1/√in, and B at zero, so that training begins at θ₀. A is a function of the seed and of the kernel's path alone: it is
the same for every task of a run, and does not depend on which other kernels or layers are trained.

Gradients, moments, clipping and weight decay see the factors: decay draws A and B towards zero, and with B the kernel
towards W₀. Both are trained here; `tajax.training.linear_low_rank` trains B alone, in the tangent space. The product is
formed and the model is applied to dense kernels, so a step costs what it costs to train these (attention-only training
for the default rule) and a product a kernel; what is smaller is the state: r (in + out) numbers a kernel and their two
moments, in place of in · out.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", §4.1.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from tajax import trees
from tajax.encoders.encoder import Encoder
from tajax.layers import take_layers
from tajax.models.adapters import Pair, write_adapter
from tajax.parametrization import Parametrization
from tajax.training import Context, Options, TrainingMethod
from tajax.types import Mask, Params, Trained

__all__ = ["METHOD", "check", "count", "export", "initial_factor", "low_rank", "product"]


def low_rank(mask: Mask, *, rank: int, alpha: float, seed: int) -> Parametrization:
    """θ₀ with (α/r) A B added to the kernels that a mask names, in the coordinates A and B.

    Args:
        mask: like the parameters, from `tajax.param_mask`; of dense kernels alone, see `check`.
        rank: r, at most the shorter side of each kernel.
        alpha: α. The product is scaled by α/r, so that the rate can stay where it is for another rank.
        seed: of A at the beginning.

    Returns:
        A parametrization that trains `PATH/lora_a` [in, r] and `PATH/lora_b` [r, out] of each kernel; of a kernel that
        stacks layers [L, in, r] and [L, r, out] for the L of its layers that are trained. Kernels keep their dtype.

    Example:
        >>> pretrained = {"attn": {"kernel": jnp.ones((3, 2))}, "bias": jnp.zeros(2)}
        >>> mask = {"attn": {"kernel": True}, "bias": False}
        >>> lora = low_rank(mask, rank=1, alpha=2.0, seed=0)
        >>> {name: factor.shape for name, factor in lora.init(pretrained).items()}
        {'attn/kernel/lora_a': (3, 1), 'attn/kernel/lora_b': (1, 2)}
        >>> factors = {"attn/kernel/lora_a": jnp.ones((3, 1)), "attn/kernel/lora_b": jnp.array([[1.0, 0.0]])}
        >>> lora.restore(pretrained, factors)["attn"]["kernel"]
        Array([[3., 1.],
               [3., 1.],
               [3., 1.]], dtype=float32)
    """

    def init(pretrained: Params) -> Trained:
        factors = {}
        for path, kernel in trees.split(pretrained, mask)[0].items():
            factors[f"{path}/lora_a"] = initial_factor(pretrained, mask, path, rank=rank, seed=seed)
            factors[f"{path}/lora_b"] = jnp.zeros((*kernel.shape[:-2], rank, kernel.shape[-1]), kernel.dtype)
        return factors

    def restore(pretrained: Params, trained: Trained) -> Params:
        kernels, put_back = trees.split(pretrained, mask)
        return put_back(
            {
                path: kernel + (alpha / rank) * product(trained[f"{path}/lora_a"], trained[f"{path}/lora_b"])
                for path, kernel in kernels.items()
            }
        )

    return Parametrization(init, restore)


def initial_factor(params: Params, mask: Mask, path: str, *, rank: int, seed: int) -> Float[Array, "*L in r"]:
    """A of a kernel before any training, uniform in ±1/√in, of the layers that are trained.

    PEFT draws it so: `kaiming_uniform_` with a = √5 has the bound √(6 / ((1 + a²) in)) = 1/√in. Its bits are the same
    wherever it is drawn, within a compiled step or outside: numbers are multiples of 2⁻²² before they are scaled, which
    rounds once.

    Args:
        params: the parameters; their values are not used.
        mask: as of `low_rank`.
        path: of the kernel.
        rank: r.
        seed: of the run, modulo 2³². Every path has a stream of its own.
    """
    leaf, trained = trees.flatten_paths(params)[path], trees.trained_layers(params, mask)[path]
    *stack, inputs, _ = np.shape(leaf)
    dtype: DTypeLike = trees.dtype_of(leaf)
    key = jax.random.fold_in(jax.random.key(seed % 2**32, impl="threefry2x32"), zlib.crc32(path.encode()))
    drawn = jax.random.uniform(key, (*stack, inputs, rank), jnp.float32)
    return take_layers((2 * drawn - 1).astype(dtype) * jnp.asarray(inputs**-0.5, dtype), trained)


def product(a: Float[Array, "*L in r"], b: Float[Array, "*L r out"]) -> Float[Array, "*L in out"]:
    """A B of each layer, in the precision of its dtype on every device: what is trained is what is kept of it."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def check(encoder: Encoder, mask: Mask, options: Options) -> None:
    """Refuses what low-rank factors cannot be added to.

    Raises:
        ValueError: the mask names a leaf that is no dense kernel, or one of a smaller side than `options["rank"]`. The
            message names the first, and which of the encoder's rules or ranks fit.
    """
    leaves, trained = trees.flatten_paths(encoder.params), trees.trained_layers(encoder.params, mask)
    chosen = [path for path, layers in trained.items() if np.any(layers)]
    unfit = [path for path in chosen if not _is_dense(path, encoder)]
    if unfit:
        more = f" and {len(unfit) - 3} more" if len(unfit) > 3 else ""
        raise ValueError(
            f"low-rank factors are for dense kernels, and the trainable rule also names {', '.join(unfit[:3])}{more}. "
            f"Give one that names dense kernels alone: {', '.join(_fitting(encoder)) or 'there is no named rule'}."
        )
    rank = options["rank"]
    sides = {path: min(np.shape(leaves[path])[-2:]) for path in chosen}
    if too_small := [path for path, side in sides.items() if side < rank]:
        path, side = too_small[0], min(sides.values())
        raise ValueError(
            f"finetune.rank is {rank}, but {path} has kernels of {np.shape(leaves[path])[-2:]} ({len(too_small)} of "
            f"{len(chosen)} are smaller than the rank). Give --config.finetune.rank={side} or less, or another rule."
        )


def _is_dense(path: str, encoder: Encoder) -> bool:
    """Whether a leaf multiplies rows of activations: a matrix called `kernel`, or a stack of them."""
    *above, name = path.split("/")
    return name == "kernel" and np.ndim(trees.flatten_paths(encoder.params)[path]) == 2 + (encoder.stacked in above)


def _fitting(encoder: Encoder) -> list[str]:
    """The encoder's named rules that name dense kernels alone."""
    fitting = []
    for rule in encoder.rules:
        try:
            mask = trees.param_mask(encoder.params, rule, rules=encoder.rules, stacked=encoder.stacked)
        except ValueError:  # it has none of these leaves
            continue
        if all(_is_dense(path, encoder) for path, named in trees.flatten_paths(mask).items() if named):
            fitting.append(rule)
    return fitting


def count(params: Params, mask: Mask, options: Options) -> int:
    """How many numbers are trained: r (in + out) for each kernel, of each of its layers that is trained."""
    kernels = jax.eval_shape(lambda params: trees.split(params, mask)[0], params)
    return sum(
        options["rank"] * math.prod(kernel.shape[:-2]) * (kernel.shape[-2] + kernel.shape[-1])
        for kernel in kernels.values()
    )


def export(context: Context, trained: Trained, directory: Path) -> None:
    """Writes the factors as an adapter that PEFT opens, where the encoder's family has names for its modules.

    `PeftModel.from_pretrained(base, directory).merge_and_unload()` then has the weights θ₀ + τ.
    """
    layers = trees.trained_layers(context.encoder.params, context.mask)
    pairs = {}
    for name, linear in context.encoder.linears[0].items() if context.encoder.linears else ():
        if not np.any(chosen := layers[linear.path]) or (linear.layer is not None and not _has(chosen, linear.layer)):
            continue
        a, b = (np.asarray(trained[f"{linear.path}/{factor}"]) for factor in ("lora_a", "lora_b"))
        if linear.layer is not None:
            place = linear.layer if np.ndim(chosen) == 0 else int(np.sum(np.asarray(chosen)[: linear.layer]))
            a, b = a[place], b[place]
        pairs[name] = Pair(a, b[:, linear.columns(b.shape[-1])])
    if pairs:
        identity, options = context.encoder.identity, context.options
        write_adapter(
            directory,
            pairs,
            rank=options["rank"],
            alpha=options["alpha"],
            base=identity.name,
            revision=identity.revision,
            base_sha256=identity.sha256,
        )


def _has(trained: bool | np.ndarray, layer: int) -> bool:
    return bool(trained if np.ndim(trained) == 0 else np.asarray(trained)[layer])


def _parametrization(context: Context) -> Parametrization:
    options = context.options
    return low_rank(context.mask, rank=options["rank"], alpha=options["alpha"], seed=context.seed)


METHOD = TrainingMethod(parametrization=_parametrization, check=check, count=count, export=export)

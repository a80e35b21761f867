"""Low-rank fine-tuning in the tangent space (L-LoRA): the expansion in the factors where B = 0, in which B is trained.

f(W₀ + (α/r) A B) has at A₀ and B = 0 the expansion f(θ₀) + J (α/r) A₀ΔB: the derivative in A is zero there, since what
A moves is multiplied by B = 0. So A is not trained. It would take gradients that are exactly zero, two moments each,
and a weight decay that moves it without any effect; with B alone the expansion, the clipped norm and every step of B
are the same, and the map from B to θ = θ₀ + (α/r) A₀B is itself linear. Hence the tangent model in B is the tangent
model in θ at what is kept: f_lin(θ₀ + τ) with τ = (α/r) A₀B, dense, which is how it is evaluated, added and negated.

A₀ is that of `tajax.training.low_rank`, a function of the seed and of the kernel's path. All tasks of a run share it,
as L-LoRA's share the factors that they begin with: their vectors lie in one linear space of r · out dimensions a
kernel, (α/r) A₀B for any B, and a sum of vectors is a sum of B's. It is not in the checkpoint, nor in the state: a run
that goes on draws it again.

No adapter is written for PEFT: it would apply the factors to the ordinary encoder, for which they are not trained.

Source: Tang et al. 2024, "Parameter-Efficient Multi-Task Model Fusion with Partial Linearization" (arXiv 2310.04742),
§4; A fixed at its draw is Zhang et al. 2023's LoRA-FA (arXiv 2308.03303), here by consequence.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from tajax import trees
from tajax.parametrization import Parametrization
from tajax.training import Context, Options, TrainingMethod
from tajax.training.low_rank import check, initial_factor, product
from tajax.types import Mask, Params, Trained

__all__ = ["METHOD", "count", "linear_low_rank"]


def linear_low_rank(mask: Mask, *, rank: int, alpha: float, seed: int) -> Parametrization:
    """θ₀ with (α/r) A₀B added to the kernels that a mask names, in the coordinate B; affine in it.

    Args:
        mask: like the parameters, from `tajax.param_mask`; of dense kernels alone, see `low_rank.check`.
        rank: r, at most the shorter side of each kernel.
        alpha: α.
        seed: of A₀.

    Returns:
        A parametrization that trains `PATH/lora_b` [r, out] of each kernel, [L, r, out] of the L trained layers of a
        stack, and zero at the beginning.

    Example:
        >>> pretrained = {"attn": {"kernel": jnp.ones((3, 2))}}
        >>> tangent = linear_low_rank({"attn": {"kernel": True}}, rank=2, alpha=2.0, seed=0)
        >>> tangent.init(pretrained)
        {'attn/kernel/lora_b': Array([[0., 0.],
                                      [0., 0.]], dtype=float32)}
    """

    def init(pretrained: Params) -> Trained:
        kernels = trees.split(pretrained, mask)[0]
        return {
            f"{path}/lora_b": jnp.zeros((*kernel.shape[:-2], rank, kernel.shape[-1]), kernel.dtype)
            for path, kernel in kernels.items()
        }

    def restore(pretrained: Params, trained: Trained) -> Params:
        kernels, put_back = trees.split(pretrained, mask)
        moved = {}
        for path, kernel in kernels.items():
            a = initial_factor(pretrained, mask, path, rank=rank, seed=seed)
            moved[path] = kernel + (alpha / rank) * product(a, trained[f"{path}/lora_b"])
        return put_back(moved)

    return Parametrization(init, restore)


def count(params: Params, mask: Mask, options: Options) -> int:
    """How many numbers are trained: r · out for each kernel, of each of its layers that is trained."""
    kernels = jax.eval_shape(lambda params: trees.split(params, mask)[0], params)
    return sum(options["rank"] * math.prod((*k.shape[:-2], k.shape[-1])) for k in kernels.values())


def _parametrization(context: Context) -> Parametrization:
    options = context.options
    return linear_low_rank(context.mask, rank=options["rank"], alpha=options["alpha"], seed=context.seed)


METHOD = TrainingMethod(parametrization=_parametrization, check=check, count=count)

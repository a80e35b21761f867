"""OrthoReg: what is added to each trained dense kernel is drawn towards an orthogonal matrix (arXiv 2604.17078).

L = CE + λ Σ_l ‖ΔW_lᵀΔW_l − I‖²_F, the sum over the dense layers that are trained, λ in [0.1, 100] by validation.

**Which side.** The paper's W is PyTorch's [out, in]; a kernel here is its transpose K [in, out], so that its ΔWᵀΔW is
ΔK ΔKᵀ [in, in]. For in ≠ out the Gram matrices of the two sides give penalties that differ by a constant, in − out: the
traces of ΔWᵀΔW and of its square are the same from either side. So the smaller side is taken, [min, min]: the same
gradient for less work, and a penalty of 0 is reached, where ΔK has min(in, out) singular values of 1.

**Which leaves.** Leaves called `kernel` of two axes, or of three below the node that stacks layers, where each layer
counts on its own; of a leaf that is trained in some layers, those. Left out are biases, norms, scales, embeddings, and
convolutions, that of a ViT's patches among them. Query, key and value are three kernels, also where other models keep
them in one.

**What it does.** At τ = 0 the penalty is Σ_l min(in, out), some ten thousand, and its gradient is 0: with singular
values σ of ΔW the gradient is 4λσ(σ² − 1), so that 0 is a maximum and 1 the minimum. It begins to act at the second
step, on what the first has moved, with −4λΔW as long as σ ≪ 1, and lets grow whatever has begun to move: it is no
penalty on length, but the contrary. An orthogonal ΔW has entries of 1/√width, 0.036 for a width of 768, more than a
learning rate of 1e-5 reaches in the protocol's steps; there the term turns directions and never comes to its minimum.
Clipping and AdamW see the sum of both gradients: from ‖ΔW‖_F about ‖∇CE‖/4λ on it is the larger part, and takes
single-task accuracy in exchange for vectors that add. So λ goes with the learning rate; 0.1 if not given.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tajax import trees
from tajax.encoders.encoder import Encoder
from tajax.finetune import Penalized
from tajax.training import Context, Options, TrainingMethod
from tajax.types import Mask, Params, Trained

__all__ = ["METHOD", "dense_kernels", "distance_to_orthogonal"]


def distance_to_orthogonal(delta: Float[Array, "*L I O"]) -> Float[Array, "*L"]:
    """‖G − I‖²_F of each matrix, G its Gram matrix on the smaller side: ΔΔᵀ [I, I] if I ≤ O, else ΔᵀΔ [O, O].

    Args:
        delta: matrices in their last two axes; sums are taken in float32 at least.

    Returns:
        One number for each: 0 where min(I, O) singular values are 1, min(I, O) where Δ = 0.

    Example:
        >>> distance_to_orthogonal(jnp.array([[[0.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]], [[2.0, 0.0, 0.0]]]))
        Array([0., 1., 9.], dtype=float32)
    """
    delta = delta.astype(jnp.promote_types(delta.dtype, jnp.float32))
    wide = delta if delta.shape[-2] <= delta.shape[-1] else delta.swapaxes(-1, -2)
    gram = jnp.matmul(wide, wide.swapaxes(-1, -2), precision=jax.lax.Precision.HIGHEST)
    identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    return jnp.sum(jnp.square(gram - identity), axis=(-2, -1))


def dense_kernels(params: Params, mask: Mask, *, stacked: str | None) -> dict[str, np.ndarray]:
    """The dense kernels that a mask trains, by path.

    Args:
        params: the parameters, or their shapes.
        mask: as of `param_mask`.
        stacked: the node below which leaves stack layers, as of an `Encoder`.

    Returns:
        Of each such leaf float32, 1 where a layer is trained and 0 where not: [L], or a scalar of a single matrix.

    Example:
        >>> params = {"blocks": {"kernel": np.ones((3, 4, 5))}, "kernel": np.ones((2, 2, 3, 4))}
        >>> layers = {"blocks": {"kernel": np.array([True, False, True])}, "kernel": True}
        >>> dense_kernels(params, layers, stacked="blocks")
        {'blocks/kernel': array([1., 0., 1.], dtype=float32)}
    """
    flat, found = trees.flatten_paths(params), {}
    for path, trained in trees.trained_layers(params, mask).items():
        *above, name = path.split("/")
        layers = stacked in above
        if name == "kernel" and np.ndim(flat[path]) == 2 + layers and np.any(trained):
            shape = np.shape(flat[path])[:1] if layers else ()
            found[path] = np.broadcast_to(trained if layers else True, shape).astype(np.float32)
    return found


def _penalty(trained: Trained, seen: Penalized) -> Array:
    before, after = (trees.flatten_paths(tree) for tree in (seen.pretrained, seen.restore(trained)))
    counted: Mapping[str, Array] = seen.data
    distances = {path: distance_to_orthogonal(jnp.asarray(after[path]) - jnp.asarray(before[path])) for path in counted}
    return sum((jnp.sum(counted[path] * distance) for path, distance in distances.items()), jnp.zeros(()))


def _check(encoder: Encoder, mask: Mask, options: Options) -> None:
    if not dense_kernels(encoder.params, mask, stacked=encoder.stacked):
        chosen = [path for path, trained in trees.trained_layers(encoder.params, mask).items() if np.any(trained)]
        raise ValueError(
            "regime 'orthoreg' penalises trained dense kernels, and there are none among the "
            f"{len(chosen)} leaves that are trained, such as {chosen[0]!r}. Give another --config.trainable, such as "
            "'attention', or --config.regime=standard."
        )


def _counted(context: Context) -> dict[str, np.ndarray]:
    return dense_kernels(context.encoder.params, context.mask, stacked=context.encoder.stacked)


METHOD = TrainingMethod(penalty=lambda options: _penalty, data=_counted, check=_check)

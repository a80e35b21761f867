"""The empirical neural tangent kernel, from vector-Jacobian and Jacobian-vector products alone.

The kernel of a model f with outputs [E] at parameters θ is Θ(x, x′) = J(x) J(x′)ᵀ, an E×E matrix for each pair of
inputs, where J(x) = ∂f(x)/∂θ over the leaves of a mask. The Jacobian itself never exists for more than one output
and one block of inputs at a time. The model must treat the examples of a batch independently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from tajax import trees
from tajax.types import ApplyFn, Mask, Params, Trained

Output = Literal["trace", "diagonal", "full"]
_CPU_TILE = 1280  # parameters; measured for 64 to 256 inputs and leaves of 25,000 to 600,000 entries
Outputs = Callable[[Trained, Array], Array]  # trained leaves and inputs [B, ...] to flat outputs [B, E]


def empirical_ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Float[Array | np.ndarray, "M ..."],
    x2: Float[Array | np.ndarray, "N ..."] | None = None,
    *,
    mask: Mask | None = None,
    output: Output = "trace",
    batch_size: int | None = None,
) -> Float[Array, " M N *outputs"]:
    """The empirical NTK between two sets of inputs, Θ(x, x′) = J(x) J(x′)ᵀ.

    Args:
        apply_fn: f, a model of inputs [B, ...]; its outputs are flattened to [B, E].
        params: θ.
        x1: M inputs.
        x2: N inputs; `x1` by default, and then only half of the blocks are computed.
        mask: leaves of θ that J differentiates in, all by default.
        output: what is kept of the E×E matrix of each pair. `"trace"`: its trace, Σ_e Θ_ee (not divided by E).
            `"diagonal"`: Θ_ee, the kernel of each output on its own. `"full"`: all of it.
        batch_size: inputs per block, all by default. The result does not depend on it, memory does.

    Returns:
        [M, N] for the trace, [M, N, E] for the diagonal, [M, N, E, E] in full, in the dtype of the parameters but at
        least float32; of narrower parameters gradients are as narrow, and so are the sums in the full matrix, which
        tangent passes take. With one set of inputs the kernel is symmetric to the last bit, and positive semi-definite
        up to rounding.

    Memory is that of 2 · `batch_size` gradients. Time for trace and diagonal is 2 E · M N / `batch_size` backward
    passes and E · M N inner products of gradients, within one set half of it; for the full matrix E · M backward and
    E · M · N tangent passes. `project_outputs` estimates the trace from a few of the E.

    Raises:
        ValueError: `output` or `batch_size` is out of range, there are no inputs, or the mask trains nothing or
            does not fit the parameters.

    Example:
        >>> linear = lambda params, x: x @ params["w"]  # J(x) = x for each output
        >>> empirical_ntk(linear, {"w": jnp.zeros((2, 3))}, jnp.array([[1.0, 0.0], [1.0, 2.0]]))
        Array([[ 3.,  3.],
               [ 3., 15.]], dtype=float32)
    """
    return make_ntk(apply_fn, params, mask=mask, output=output, batch_size=batch_size)(x1, x2)


def make_ntk(
    apply_fn: ApplyFn,
    params: Params,
    *,
    mask: Mask | None = None,
    output: Output = "trace",
    batch_size: int | None = None,
) -> Callable[..., Array]:
    """`empirical_ntk` of one model as a function of the inputs, `(x1, x2=None) -> kernel`, compiled once for many.

    Arguments, results and errors are those of `empirical_ntk`.

    Example:
        >>> kernel = make_ntk(lambda params, x: x @ params["w"], {"w": jnp.zeros((2, 3))}, output="diagonal")
        >>> kernel(jnp.ones((1, 2))), kernel(jnp.ones((1, 2)), jnp.zeros((1, 2)))
        (Array([[[2., 2., 2.]]], dtype=float32), Array([[[0., 0., 0.]]], dtype=float32))
    """
    if output not in _BLOCKS:
        raise ValueError(f"output={output!r} is unknown; choose one of {', '.join(_BLOCKS)}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    theta, outputs = trained_outputs(apply_fn, params, mask)
    between = jax.jit(functools.partial(_BLOCKS[output], outputs))
    within = jax.jit(lambda theta, x: _BLOCKS[output](outputs, theta, x, x))  # one traced x: its gradients once

    def kernel(x1: Array | np.ndarray, x2: Array | np.ndarray | None = None) -> Array:
        others = x1 if x2 is None else x2
        if not len(x1) or not len(others):
            raise ValueError(f"the kernel needs at least one input on each side; got {len(x1)} and {len(others)}")
        step = batch_size or max(len(x1), len(others))
        starts1, starts2 = range(0, len(x1), step), range(0, len(others), step)
        blocks: dict[tuple[int, int], Array] = {}
        for i in starts1:
            for j in starts2:
                if x2 is None and j < i:
                    blocks[i, j] = _mirrored(blocks[j, i])
                elif x2 is None and j == i:
                    found = within(theta, x1[i : i + step])
                    # Both halves of a diagonal block were computed, in different orders of summation.
                    blocks[i, j] = (found + _mirrored(found)) / 2
                else:
                    blocks[i, j] = between(theta, x1[i : i + step], others[j : j + step])
        rows = [jnp.concatenate([blocks[i, j] for j in starts2], axis=1) for i in starts1]
        return jnp.concatenate(rows, axis=0)

    return kernel


def ntk_vector_product(
    apply_fn: ApplyFn,
    params: Params,
    x: Float[Array | np.ndarray, "M ..."],
    v: Float[Array, " N *out"],
    x2: Float[Array | np.ndarray, "N ..."] | None = None,
    *,
    mask: Mask | None = None,
) -> Float[Array, " M *out"]:
    """The kernel times a vector without the kernel, J(x) J(x′)ᵀ v: one backward pass, then one tangent pass.

    Args:
        apply_fn: f, any JAX function of parameters and inputs.
        params: θ.
        x: M inputs.
        v: one number for each output of f on `x2`, in the shape and dtype of those outputs.
        x2: N inputs, x′; `x` by default.
        mask: leaves of θ that J differentiates in, all by default.

    Returns:
        An array like the outputs of f on `x`.

    Raises:
        ValueError: `v` has another shape than the outputs, or the mask trains nothing or does not fit.

    Example:
        >>> linear = lambda params, x: x @ params["w"]
        >>> x = jnp.array([[1.0, 0.0], [1.0, 2.0]])
        >>> ntk_vector_product(linear, {"w": jnp.zeros((2, 1))}, x, jnp.array([[1.0], [-1.0]]))
        Array([[ 0.],
               [-4.]], dtype=float32)
    """
    theta, restore = _split(params, mask)
    others = x if x2 is None else x2
    outputs, pull = jax.vjp(lambda trained: apply_fn(restore(trained), others), theta)
    if v.shape != outputs.shape:
        raise ValueError(f"v has shape {v.shape}, but the outputs it multiplies have shape {outputs.shape}")
    (direction,) = pull(v)
    return jax.jvp(lambda trained: apply_fn(restore(trained), x), (theta,), (direction,))[1]


def project_outputs(apply_fn: ApplyFn, outputs: int, count: int, key: Array) -> ApplyFn:
    """The model seen along a few random directions of its outputs: (E / m)^½ Rᵀ f(x), R [E, m] orthonormal.

    The expectation over R of R Rᵀ is (m / E) I, so the trace kernel of the projected model is an unbiased estimate of
    that of f, at m / E of its cost; symmetric and positive semi-definite like it, and exact for m = E. Where
    Θ(x, x′) is a multiple of the identity, as in the limit of wide networks, it is exact for any m.

    Args:
        apply_fn: f, with outputs [B, E].
        outputs: E.
        count: m, from 1 to E.
        key: of the directions, uniform over all orthonormal ones.

    Raises:
        ValueError: `count` is out of range.

    Example:
        >>> linear = lambda params, x: x @ params["w"]  # Θ(x, x′) = (x · x′) I
        >>> one = project_outputs(linear, 3, 1, jax.random.key(0))
        >>> bool(jnp.allclose(empirical_ntk(one, {"w": jnp.zeros((2, 3))}, jnp.ones((1, 2))), 6.0))
        True
    """
    if not 1 <= count <= outputs:
        raise ValueError(f"count is {count}, want a number of output directions from 1 to {outputs}")
    directions = jax.random.orthogonal(key, outputs)[:, :count] * (outputs / count) ** 0.5

    def projected(params: Params, *inputs: Array) -> Array:
        features = apply_fn(params, *inputs)
        return jnp.matmul(features, directions.astype(features.dtype), precision=jax.lax.Precision.HIGHEST)

    return projected


def _split(params: Params, mask: Mask | None) -> tuple[Trained, Callable[[Trained], Params]]:
    theta, restore = trees.split(params, mask)
    if not theta:
        raise ValueError("the mask trains no leaf, so the kernel would be zero")
    return theta, restore


def trained_outputs(apply_fn: ApplyFn, params: Params, mask: Mask | None) -> tuple[Trained, Outputs]:
    """The leaves that are differentiated in, and the model as a function of them with flat outputs [B, E]."""
    theta, restore = _split(params, mask)

    def outputs(trained: Trained, x: Array) -> Array:
        return apply_fn(restore(trained), x).reshape(len(x), -1)

    return theta, outputs


def _width(outputs: Outputs, theta: Trained, x: Array) -> int:
    return jax.eval_shape(outputs, theta, x[:1]).shape[1]


def _gradients(outputs: Outputs, theta: Trained, x: Array, e: Array) -> Trained:
    """Row e of the Jacobian of each input: leaves [B, ...]."""
    return jax.vmap(jax.grad(lambda trained, one: outputs(trained, one[None])[0, e]), in_axes=(None, 0))(theta, x)


def _one_output(outputs: Outputs, theta: Trained, x1: Array, x2: Array, e: Array) -> Array:
    """Θ_ee, [M, N]."""
    rows = _gradients(outputs, theta, x1, e)
    columns = rows if x2 is x1 else _gradients(outputs, theta, x2, e)
    return jax.tree.reduce(jnp.add, jax.tree.map(_inner_products, rows, columns))


def _inner_products(rows: Array, columns: Array) -> Array:
    """All inner products of M and N gradients of one leaf, [M, N]."""
    rows, columns = rows.reshape(len(rows), -1), columns.reshape(len(columns), -1)
    dtype = jnp.promote_types(rows.dtype, jnp.float32)

    def product(start: Array | int, size: int) -> Array:
        parts = (jax.lax.dynamic_slice_in_dim(side, start, size, axis=1) for side in (rows, columns))
        return jnp.einsum("mp,np->mn", *parts, precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype)

    length = rows.shape[1]
    # XLA's matrix product on a CPU runs over the long axis without tiling it: four times slower than in such parts.
    tile = _CPU_TILE if jax.default_backend() == "cpu" else length
    whole, rest = divmod(length, tile)
    total = jnp.zeros((len(rows), len(columns)), dtype)
    if whole:
        total = jax.lax.fori_loop(0, whole, lambda k, total: total + product(k * tile, tile), total)
    return total + product(whole * tile, rest) if rest else total


def _trace(outputs: Outputs, theta: Trained, x1: Array, x2: Array) -> Array:
    one_output = functools.partial(_one_output, outputs, theta, x1, x2)
    shape = jax.eval_shape(one_output, 0)
    indices = jnp.arange(_width(outputs, theta, x1))
    return jax.lax.scan(lambda total, e: (total + one_output(e), None), jnp.zeros(shape.shape, shape.dtype), indices)[0]


def _diagonal(outputs: Outputs, theta: Trained, x1: Array, x2: Array) -> Array:
    indices = jnp.arange(_width(outputs, theta, x1))
    return jnp.moveaxis(jax.lax.map(functools.partial(_one_output, outputs, theta, x1, x2), indices), 0, -1)


def _full(outputs: Outputs, theta: Trained, x1: Array, x2: Array) -> Array:
    def row(e: Array) -> Array:  # Θ_e·, [M, N, E]
        push = lambda gradient: jax.jvp(lambda trained: outputs(trained, x2), (theta,), (gradient,))[1]  # noqa: E731
        entries = jax.vmap(push)(_gradients(outputs, theta, x1, e))
        return entries.astype(jnp.promote_types(entries.dtype, jnp.float32))

    return jnp.moveaxis(jax.lax.map(row, jnp.arange(_width(outputs, theta, x1))), 0, 2)


def _mirrored(block: Array) -> Array:
    """The block on the other side of the diagonal, Θ(x′, x) = Θ(x, x′)ᵀ, outputs included."""
    mirrored = jnp.swapaxes(block, 0, 1)
    return jnp.swapaxes(mirrored, 2, 3) if block.ndim == 4 else mirrored


_BLOCKS: dict[Output, Callable[[Outputs, Trained, Array, Array], Array]] = {
    "trace": _trace,
    "diagonal": _diagonal,
    "full": _full,
}

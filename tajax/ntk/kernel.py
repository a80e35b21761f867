"""The empirical neural tangent kernel, from vector-Jacobian and Jacobian-vector products alone.

The kernel of a model f with outputs [E] at parameters θ is Θ(x, x′) = J(x) J(x′)ᵀ, an E×E matrix for each pair of
inputs, where J(x) = ∂f(x)/∂θ over the leaves of a mask. The Jacobian itself never exists for more than one output
and one block of inputs at a time. The model must treat the examples of a batch independently.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PyTree

from tajax import trees
from tajax.types import ApplyFn, Mask, Params, Trained

Output = Literal["trace", "diagonal", "full"]
_CPU_TILE = 1280  # parameters; measured for 64 to 256 inputs and leaves of 25,000 to 600,000 entries
Outputs = Callable[[Trained, Array], Array]  # trained leaves and inputs [B, ...] to flat outputs [B, E]


class MemoryTooSmallError(ValueError):
    """Less memory is given than the inputs and two gradients take."""


def empirical_ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Float[Array | np.ndarray, "M ..."],
    x2: Float[Array | np.ndarray, "N ..."] | None = None,
    *,
    mask: Mask | None = None,
    output: Output = "trace",
    batch_size: int | None = None,
    memory: int | None = None,
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
        batch_size: half as many inputs as have their gradients kept at a time, of the full matrix as many; all by
            default. Memory depends on it, the result does not but for rounding.
        memory: bytes that gradients and inputs may take, for the trace and the diagonal: as many gradients are kept as
            fit, and at most 2 · `batch_size`.

    Returns:
        [M, N] for the trace, [M, N, E] for the diagonal, [M, N, E, E] in full, in the dtype of the parameters but at
        least float32; of narrower parameters gradients are as narrow, and so are the sums in the full matrix, which
        tangent passes take. With one set of inputs the kernel is symmetric to the last bit, and positive semi-definite
        up to rounding.

    With G gradients in memory, one output at a time, 7/8 G rows of the kernel are made together: their gradients stay,
    and those of the columns pass by them in eighths of G. Trace and diagonal of one set cost E · (M + 4/7 M² / G)
    backward passes and E · M²/2 inner products of gradients, those between two sets E · (M + 8/7 M N / G) and E · M N;
    the full matrix costs E · M backward and E · M · N tangent passes. `project_outputs` estimates the trace from a few
    of the E.

    Raises:
        ValueError: `output` or `batch_size` is out of range, `memory` does not hold the gradients of two inputs or is
            given for the full matrix, there are no inputs, or the mask trains nothing or does not fit the parameters.

    Example:
        >>> linear = lambda params, x: x @ params["w"]  # J(x) = x for each output
        >>> empirical_ntk(linear, {"w": jnp.zeros((2, 3))}, jnp.array([[1.0, 0.0], [1.0, 2.0]]))
        Array([[ 3.,  3.],
               [ 3., 15.]], dtype=float32)
    """
    return make_ntk(apply_fn, params, mask=mask, output=output, batch_size=batch_size, memory=memory)(x1, x2)


def make_ntk(
    apply_fn: ApplyFn,
    params: Params,
    *,
    mask: Mask | None = None,
    output: Output = "trace",
    batch_size: int | None = None,
    memory: int | None = None,
) -> Callable[..., Array]:
    """`empirical_ntk` of one model as a function of the inputs, `(x1, x2=None) -> kernel`, compiled once for many.

    Arguments, results and errors are those of `empirical_ntk`.

    Example:
        >>> kernel = make_ntk(lambda params, x: x @ params["w"], {"w": jnp.zeros((2, 3))}, output="diagonal")
        >>> kernel(jnp.ones((1, 2))), kernel(jnp.ones((1, 2)), jnp.zeros((1, 2)))
        (Array([[[2., 2., 2.]]], dtype=float32), Array([[[0., 0., 0.]]], dtype=float32))
    """
    if output not in _AGAINST:
        raise ValueError(f"output={output!r} is unknown; choose one of {', '.join(_AGAINST)}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if memory is not None and output == "full":
        raise ValueError("memory is for the trace and the diagonal; with output='full' give batch_size instead")
    theta, outputs = trained_outputs(apply_fn, params, mask)
    strip = jax.jit(functools.partial(_strip, outputs, output), static_argnames="symmetric")

    def kernel(x1: Array | np.ndarray, x2: Array | np.ndarray | None = None) -> Array:
        others = x1 if x2 is None else x2
        if not len(x1) or not len(others):
            raise ValueError(f"the kernel needs at least one input on each side; got {len(x1)} and {len(others)}")
        most = max(2, (1 if output == "full" else 2) * (batch_size or max(len(x1), len(others))))
        if memory is not None:
            most = min(most, _within(memory, outputs, theta, x1, x2))
        size, part = _sizes(len(x1), None if x2 is None else len(x2), most)
        blocks = _in_parts(x1, size)
        if x2 is not None:
            parts = _in_parts(x2, part)
            strips = [strip(theta, block, parts, 0, len(parts), symmetric=False)[1] for block in blocks]
            return jnp.concatenate(strips)[: len(x1), : len(x2)]
        parts = blocks.reshape(-1, part, *blocks.shape[2:])[: 0 if len(blocks) == 1 else None]
        end = -(-len(x1) // part)  # of the parts that are not padding alone
        each = [
            strip(theta, block, parts, (i + 1) * (size // part), end, symmetric=True) for i, block in enumerate(blocks)
        ]
        return _from_upper(each, size)[: len(x1), : len(x1)]

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


def _strip(
    outputs: Outputs,
    output: Output,
    theta: Trained,
    rows: Array,
    columns: Array,
    begin: ArrayLike,
    end: ArrayLike,
    *,
    symmetric: bool,
) -> tuple[Array | None, Array]:
    """The kernel of M rows, with themselves [M, M, …] if `symmetric`, and with C·N columns [M, C·N, …].

    Of the C parts of the columns those from `begin` to `end` are computed, and others are zero. Gradients of the rows
    are made once for each output.
    """
    against = functools.partial(_AGAINST[output], outputs, theta)
    parts, size, width = len(columns), columns.shape[1], _width(outputs, theta, rows)

    def of_output(e: Array) -> tuple[Array | None, Array]:
        gradients = _gradients(outputs, theta, rows, e)
        own = against(gradients, rows, rows, e) if symmetric else None
        shape = jax.eval_shape(against, gradients, rows, jax.ShapeDtypeStruct(columns.shape[1:], columns.dtype), e)
        found = jnp.zeros((parts, *shape.shape), shape.dtype)
        if parts:
            found = jax.lax.fori_loop(
                begin, end, lambda j, found: found.at[j].set(against(gradients, rows, columns[j], e)), found
            )
        return own, jnp.moveaxis(found, 0, 1).reshape(len(rows), parts * size, *shape.shape[2:])

    indices = jnp.arange(width)
    if output == "trace":
        zeros = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), jax.eval_shape(of_output, 0))
        return jax.lax.scan(lambda total, e: (jax.tree.map(jnp.add, total, of_output(e)), None), zeros, indices)[0]
    axis = 2 if output == "full" else -1
    return jax.tree.map(lambda each: jnp.moveaxis(each, 0, axis), jax.lax.map(of_output, indices))


def _products(outputs: Outputs, theta: Trained, gradients: Trained, rows: Array, x: Array, e: Array) -> Array:
    """Θ_ee between rows and x, [M, N]."""
    columns = gradients if x is rows else _gradients(outputs, theta, x, e)
    return jax.tree.reduce(jnp.add, jax.tree.map(_inner_products, gradients, columns))


def _entries(outputs: Outputs, theta: Trained, gradients: Trained, rows: Array, x: Array, e: Array) -> Array:
    """Θ_e· between rows and x, [M, N, E]."""
    push = lambda gradient: jax.jvp(lambda trained: outputs(trained, x), (theta,), (gradient,))[1]  # noqa: E731
    entries = jax.vmap(push)(gradients)
    return entries.astype(jnp.promote_types(entries.dtype, jnp.float32))


_AGAINST: dict[Output, Callable[[Outputs, Trained, Trained, Array, Array, Array], Array]] = {
    "trace": _products,
    "diagonal": _products,
    "full": _entries,
}


def _sizes(rows: int, columns: int | None, most: int) -> tuple[int, int]:
    """Inputs of a block of rows, and of a part of the columns, so that at most `most` gradients are kept, 2 or more.

    Within one set, where `columns` is None, parts divide blocks.

    Example:
        >>> _sizes(100, None, 100), _sizes(100, None, 64), _sizes(100, 10, 110), _sizes(100, 10, 64)
        ((100, 1), (56, 8), (100, 10), (50, 8))
    """
    if columns is None and rows <= most:
        return rows, 1
    part = max(1, most // 8)
    if columns is not None:
        part = min(part, columns)
        if rows + part <= most:
            return rows, min(columns, most - rows)
        return -(-rows // -(-rows // (most - part))), part
    blocks = -(-rows // (most // part * part - part))
    return -(-rows // (blocks * part)) * part, part


def _within(
    memory: int, outputs: Outputs, theta: Trained, x1: Array | np.ndarray, x2: Array | np.ndarray | None
) -> int:
    """How many gradients fit beside the inputs."""
    inputs = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in (x1, x2) if x is not None)
    one = gradient_bytes(outputs, theta, x1)
    if inputs + 2 * one > memory:
        raise MemoryTooSmallError(
            f"a kernel of {len(x1)} inputs takes {-(-(inputs + 2 * one) // 2**20)} MiB at least, for them and two "
            f"gradients of {trees.count_params(theta)} parameters, and memory is {memory // 2**20} MiB. "
            "Give more, or a mask of fewer parameters."
        )
    return (memory - inputs) // one


def gradient_bytes(outputs: Outputs, theta: Trained, x: Array | np.ndarray) -> int:
    """What the gradient of one output takes for each input, with what the backward pass keeps to make it.

    Nothing is computed or compiled. What XLA sets aside besides is about a copy of one leaf.

    Args:
        outputs: from `trained_outputs`, as `theta`.
        theta: the leaves that are differentiated in.
        x: inputs [B, ...], or their shape.
    """

    def kept(count: int) -> int:
        some = jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)
        found = jax.eval_shape(lambda theta, x: jax.vjp(lambda trained: outputs(trained, x), theta)[1], theta, some)
        return _bytes(found)

    return _bytes(theta) + kept(2) - kept(1)  # parameters are kept once for all inputs


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def _in_parts(x: Array | np.ndarray, size: int) -> Array:
    """The inputs in parts of a size, the last one filled up with copies of the last input."""
    filled = jnp.concatenate([jnp.asarray(x), jnp.repeat(jnp.asarray(x[-1:]), -len(x) % size, axis=0)])
    return filled.reshape(-1, size, *x.shape[1:])


def _from_upper(strips: Sequence[tuple[Array | None, Array]], size: int) -> Array:
    """The symmetric kernel of which there are the blocks on the diagonal and those to the right of it."""
    rows = []
    for i, (own, right) in enumerate(strips):
        assert own is not None
        both = (own + _mirrored(own)) / 2  # both halves were computed, in different orders of summation
        rows.append(right.at[:, i * size : (i + 1) * size].set(both) if len(strips) > 1 else both)
    whole = jnp.concatenate(rows)
    block = jnp.arange(len(whole)) // size
    below = (block[:, None] > block[None]).reshape(*whole.shape[:2], *[1] * (whole.ndim - 2))
    return jnp.where(below, _mirrored(whole), whole)


def _mirrored(block: Array) -> Array:
    """The block on the other side of the diagonal, Θ(x′, x) = Θ(x, x′)ᵀ, outputs included."""
    mirrored = jnp.swapaxes(block, 0, 1)
    return jnp.swapaxes(mirrored, 2, 3) if block.ndim == 4 else mirrored

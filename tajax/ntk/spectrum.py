"""Eigenfunctions of a kernel under an empirical distribution, and their values elsewhere.

Inputs x_1 … x_N with probabilities w_i, 1/N each by default, make the operator of a kernel k

    (T g)(x) = Σ_i w_i k(x, x_i) g(x_i).

Its eigenfunctions T φ_ρ = λ_ρ φ_ρ are orthonormal under that distribution, Σ_i w_i φ_ρ(x_i) φ_σ(x_i) = δ_ρσ, and
carried anywhere by the eigenvalue equation itself, φ_ρ(x) = (1 / λ_ρ) Σ_i w_i k(x, x_i) φ_ρ(x_i), the Nyström
extension. With equal weights the λ_ρ are the eigenvalues of K / N, and φ_ρ(x_i) is √N times entry i of a unit
eigenvector of K.

A kernel of E×E matrices, as the full NTK is, acts on functions with values in ℝᴱ: φ_ρ(x_i) is then a vector, and a
product of two of them an inner product. Sources: Williams and Seeger 2001 for the extension; Ortiz-Jimenez, Favero and
Frossard 2023, §5, for eigenfunctions of the NTK of CLIP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

FLOOR = 1e-6
"""Eigenvalues up to this multiple of the largest are taken for zero: in float32 they are rounding errors, and the
extension divides by them."""


class Spectrum(NamedTuple):
    """R leading eigenpairs on N inputs, the largest eigenvalue first; NumPy arrays of float64."""

    eigenvalues: Float[np.ndarray, " R"]
    """λ_ρ, all positive."""
    eigenfunctions: Float[np.ndarray, " N *outputs R"]
    """φ_ρ(x_i). Signs, and the basis of an eigenspace of several dimensions, are arbitrary."""
    weights: Float[np.ndarray, " N"]
    """w_i, the distribution they are orthonormal under."""


def eigenfunctions(
    kernel: Float[ArrayLike, "N N"],
    *,
    count: int | None = None,
    weights: Float[ArrayLike, " N"] | None = None,
    floor: float = FLOOR,
) -> Spectrum:
    """The leading eigenfunctions of a kernel that is written out, by a dense solver in float64.

    Args:
        kernel: K, k(x_i, x_j), symmetric up to rounding.
        count: how many eigenfunctions to keep, those of the largest eigenvalues; all of them by default. "Leading"
            always means this number: no gap is looked for.
        weights: w_i > 0 with sum 1; 1/N each by default.
        floor: eigenfunctions whose eigenvalue is at most `floor` times the largest are left out, so that there may be
            fewer than `count`.

    Raises:
        ValueError: `kernel` is no square matrix, not symmetric, has no positive eigenvalue, or an argument is out of
            range.

    Example:
        >>> found = eigenfunctions(np.diag([1.0, 4.0]))  # of K / 2
        >>> found.eigenvalues.round(6).tolist(), np.abs(found.eigenfunctions[:, 0]).round(3).tolist()
        ([2.0, 0.5], [0.0, 1.414])
    """
    matrix = np.asarray(kernel, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a kernel has shape [N, N], got {list(matrix.shape)}")
    if not np.allclose(matrix, matrix.T, rtol=1e-3, atol=1e-5 * np.abs(matrix).max()):
        raise ValueError("the kernel is not symmetric: is it one between two sets of inputs?")
    roots, count = _prepared(len(matrix), len(matrix), count, weights)
    # W^½ K W^½ has the eigenvalues of K W and orthonormal eigenvectors.
    values, vectors = np.linalg.eigh(roots[:, None] * (matrix + matrix.T) / 2 * roots)
    return _leading(values, vectors, (len(matrix),), roots, count, floor)


def eigenfunctions_of_product(
    product: Callable[[np.ndarray], ArrayLike],
    shape: tuple[int, ...],
    *,
    count: int,
    weights: Float[ArrayLike, " N"] | None = None,
    floor: float = FLOOR,
    tolerance: float = 1e-4,
) -> Spectrum:
    """The leading eigenfunctions of a kernel that is never written out: implicitly restarted Lanczos (ARPACK).

    Args:
        product: v ↦ K v, for arrays of `shape`, such as `tajax.ntk_vector_product`. Asked a few times `count` times.
        shape: of functions on the inputs: [N], or [N, E] for a kernel of matrices.
        count: how many eigenfunctions, below N · E.
        weights: as in `eigenfunctions`.
        floor: as in `eigenfunctions`.
        tolerance: of the eigenvalues, relative.

    Raises:
        ValueError: no eigenvalue is positive, or an argument is out of range.
        scipy.sparse.linalg.ArpackNoConvergence: the solver gave up.

    Example:
        >>> found = eigenfunctions_of_product(lambda v: np.array([1.0, 4.0, 8.0]) * v, (3,), count=1)
        >>> found.eigenvalues.round(6).tolist()
        [2.666667]
    """
    from scipy.sparse.linalg import LinearOperator, eigsh  # not needed to import tajax

    size = math.prod(shape)
    roots, count = _prepared(shape[0], size, count, weights)
    if count == size:
        raise ValueError(f"count is {count}, all there are: the solver finds fewer. Write the kernel out instead.")
    scale = np.broadcast_to(roots.reshape(-1, *[1] * (len(shape) - 1)), shape)

    def apply(v: np.ndarray) -> np.ndarray:
        return np.ravel(scale * np.asarray(product(scale * v.reshape(shape)), np.float64))

    operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(size)  # ARPACK would draw its own, another one each time
    values, vectors = eigsh(operator, k=count, which="LA", tol=tolerance, v0=start)
    return _leading(values, vectors, shape, roots, count, floor)


def extend(
    known: Spectrum, product: Callable[[np.ndarray], ArrayLike] | Float[ArrayLike, "M N"]
) -> Float[np.ndarray, " M *outputs R"]:
    """The eigenfunctions on M other inputs, φ_ρ(x) = (1 / λ_ρ) Σ_i w_i k(x, x_i) φ_ρ(x_i).

    On the inputs they were found on it gives them back. Elsewhere their mean square under the same distribution need
    not be 1: with few inputs it falls below, the more so the smaller λ_ρ.

    Args:
        known: the eigenfunctions on N inputs.
        product: k between M and N inputs; or a function v ↦ K v that takes values on the N inputs to the M.

    Raises:
        ValueError: the matrix does not have N columns.

    Example:
        >>> plane = np.array([[2.0, 0.0], [0.0, 1.0]])  # inputs of the kernel k(x, x′) = x · x′
        >>> found = eigenfunctions(plane @ plane.T)
        >>> np.abs(extend(found, np.array([[4.0, 0.0]]) @ plane.T)).round(3).tolist()  # φ_1 is linear: twice as far out
        [[2.828, 0.0]]
    """
    if not callable(product):
        matrix = np.asarray(product, np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != len(known.weights):
            raise ValueError(
                f"a kernel to {len(known.weights)} inputs has shape [M, {len(known.weights)}], got {list(matrix.shape)}"
            )
        weighted = matrix * known.weights
        return np.tensordot(weighted, known.eigenfunctions, axes=1) / known.eigenvalues
    weights = known.weights.reshape(-1, *[1] * (known.eigenfunctions.ndim - 2))
    carried = [np.asarray(product(weights * known.eigenfunctions[..., r])) for r in range(len(known.eigenvalues))]
    return np.stack(carried, axis=-1).astype(np.float64) / known.eigenvalues


def energies(values: Float[ArrayLike, " N *outputs R"]) -> Float[np.ndarray, "N R"]:
    """`|φ_ρ(x)|²` of each input and eigenfunction; the local energy E_loc(x) is its sum over ρ.

    Example:
        >>> energies(np.array([[[1.0, 2.0], [0.0, 1.0]]])).tolist()  # one input, two outputs, two eigenfunctions
        [[1.0, 5.0]]
    """
    squares = np.square(np.asarray(values, np.float64))
    return squares.sum(axis=tuple(range(1, squares.ndim - 1)))


def cosine_kernel(
    kernel: Float[ArrayLike, "M N"], first: Float[ArrayLike, " M"], second: Float[ArrayLike, " N"]
) -> Float[np.ndarray, "M N"]:
    """k(x, x′) / √(k(x, x) k(x′, x′)): the cosine of two gradients, so that no input weighs more by its norm.

    Args:
        kernel: k between M and N inputs.
        first: k(x, x) of the M.
        second: k(x′, x′) of the N.

    Raises:
        ValueError: an input has no gradient, k(x, x) ≤ 0.

    Example:
        >>> cosine_kernel(np.array([[9.0, 3.0], [3.0, 4.0]]), np.array([9.0, 4.0]), np.array([9.0, 4.0])).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    rows, columns = (np.asarray(side, np.float64) for side in (first, second))
    for side in (rows, columns):
        if not (side > 0).all():
            i = int(np.argmin(side))
            raise ValueError(f"k(x, x) of input {i} is {side[i]:g}: without a gradient it has no direction")
    return np.asarray(kernel, np.float64) / np.sqrt(rows)[:, None] / np.sqrt(columns)


def _prepared(inputs: int, size: int, count: int | None, weights: ArrayLike | None) -> tuple[np.ndarray, int]:
    """√w_i, and how many eigenfunctions to look for."""
    count = size if count is None else count
    if not 1 <= count <= size:
        raise ValueError(f"count is {count}, want a number of eigenfunctions from 1 to {size}")
    if weights is None:
        return np.full(inputs, inputs**-0.5), count
    given = np.asarray(weights, np.float64)
    if given.shape != (inputs,) or not (given > 0).all() or not np.isclose(given.sum(), 1, rtol=1e-6):
        raise ValueError(
            f"weights of {inputs} inputs are positive and sum to 1, got shape {given.shape}, "
            f"smallest {given.min():g}, sum {given.sum():g}"
        )
    return np.sqrt(given / given.sum()), count


def _leading(
    values: np.ndarray, vectors: np.ndarray, shape: tuple[int, ...], roots: np.ndarray, count: int, floor: float
) -> Spectrum:
    order = np.argsort(values)[::-1][:count]
    values, vectors = values[order], vectors[:, order]
    if not values[0] > 0:
        raise ValueError(f"the largest eigenvalue is {values[0]:g}: the kernel is zero, or not positive semi-definite")
    kept = values > floor * values[0]
    functions = vectors[:, kept].reshape(*shape, -1) / roots.reshape(-1, *[1] * len(shape))
    return Spectrum(values[kept], functions, roots**2)

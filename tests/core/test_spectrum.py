import jax
import numpy as np
import pytest

import tajax
from tajax.ntk import cosine_kernel, eigenfunctions, eigenfunctions_of_product, energies, extend

CIRCLE = 2 * np.pi * np.arange(12) / 12


def plane(angles, radius=1.0):
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def random_kernel(seed, size=9, rank=20):
    factors = np.random.default_rng(seed).standard_normal((size, rank))
    return factors @ factors.T


def test_eigenfunctions_of_the_linear_kernel_on_a_circle():
    """k(x, x′) = cos(a − a′) under the uniform distribution: λ = ½ twice, √2 cos a and √2 sin a, and no others."""
    model = lambda params, x: x @ params  # noqa: E731
    kernel = tajax.empirical_ntk(model, np.zeros((2, 1), np.float32), plane(CIRCLE).astype(np.float32))
    found = eigenfunctions(kernel)
    np.testing.assert_allclose(found.eigenvalues, [0.5, 0.5], rtol=1e-6)
    # The basis of the eigenspace is arbitrary, its projection is not: Σ_ρ φ_ρ(a) φ_ρ(a′) = 2 cos(a − a′).
    projection = found.eigenfunctions @ found.eigenfunctions.T
    np.testing.assert_allclose(projection, 2 * np.cos(CIRCLE[:, None] - CIRCLE), atol=1e-6)
    elsewhere = np.array([0.1, 1.0, 4.0])
    carried = extend(found, plane(elsewhere, radius=3.0) @ plane(CIRCLE).T)
    np.testing.assert_allclose(energies(carried).sum(axis=1), np.full(3, 2 * 9.0), rtol=1e-6)
    np.testing.assert_allclose(
        carried @ found.eigenfunctions.T, 6 * np.cos(elsewhere[:, None] - CIRCLE), rtol=1e-5, atol=1e-6
    )


def test_eigenfunctions_are_orthonormal_under_their_distribution_and_rebuild_the_kernel():
    kernel = random_kernel(0)
    weights = np.arange(1, 10) / 45
    for given in (None, weights):
        found = eigenfunctions(kernel, weights=given)
        w = np.full(9, 1 / 9) if given is None else given
        inner = np.einsum("i,ir,is->rs", w, found.eigenfunctions, found.eigenfunctions)
        np.testing.assert_allclose(inner, np.eye(9), atol=1e-12)
        # Mercer: k(x, x′) = Σ_ρ λ_ρ φ_ρ(x) φ_ρ(x′), and Σ_ρ λ_ρ = E k(x, x).
        rebuilt = (found.eigenfunctions * found.eigenvalues) @ found.eigenfunctions.T
        np.testing.assert_allclose(rebuilt, kernel, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.eigenvalues.sum(), w @ np.diag(kernel), rtol=1e-12)
        assert (np.diff(found.eigenvalues) <= 0).all()
        np.testing.assert_allclose(extend(found, kernel), found.eigenfunctions, rtol=1e-8, atol=1e-8)


def test_a_weight_is_a_number_of_copies():
    kernel = random_kernel(1, size=3)
    copies = [0, 0, 0, 1, 1, 2]
    weighted = eigenfunctions(kernel, weights=np.array([3, 2, 1]) / 6)
    copied = eigenfunctions(kernel[np.ix_(copies, copies)])
    np.testing.assert_allclose(copied.eigenvalues, weighted.eigenvalues, rtol=1e-10)  # the three others are zero
    np.testing.assert_allclose(energies(copied.eigenfunctions), energies(weighted.eigenfunctions)[copies], rtol=1e-9)


@pytest.mark.parametrize("weights", [None, np.arange(1, 10) / 45])
def test_products_alone_give_the_same_leading_eigenfunctions(weights):
    kernel = random_kernel(2)
    dense = eigenfunctions(kernel, count=4, weights=weights)
    found = eigenfunctions_of_product(lambda v: kernel @ v, (9,), count=4, weights=weights, tolerance=1e-10)
    np.testing.assert_allclose(found.eigenvalues, dense.eigenvalues, rtol=1e-9)
    np.testing.assert_allclose(energies(found.eigenfunctions), energies(dense.eigenfunctions), rtol=1e-7)
    others = np.random.default_rng(3).standard_normal((5, 9))
    by_product, by_matrix = (extend(known, others) for known in (found, dense))
    np.testing.assert_allclose(energies(by_product), energies(by_matrix), rtol=1e-7)
    np.testing.assert_allclose(extend(dense, lambda v: others @ v), by_matrix, rtol=1e-12)


def test_a_kernel_of_matrices_acts_on_functions_with_several_values():
    """k(x, x′) = x · x′ times diag(4, 1): every eigenfunction has one output, λ is 4 or 1 times that of x · x′."""
    points = plane(CIRCLE)
    scalar = points @ points.T
    found = eigenfunctions_of_product(
        lambda v: np.einsum("ij,e,je->ie", scalar, [4.0, 1.0], v), (12, 2), count=4, tolerance=1e-10
    )
    np.testing.assert_allclose(found.eigenvalues, [2, 2, 0.5, 0.5], rtol=1e-8)
    np.testing.assert_allclose(energies(found.eigenfunctions)[:, :2].sum(axis=1), np.full(12, 2.0), rtol=1e-6)
    np.testing.assert_allclose(found.eigenfunctions[:, 1, :2], np.zeros((12, 2)), atol=1e-6)
    far = plane(np.array([0.3]), radius=2.0) @ points.T
    carried = extend(found, lambda v: np.einsum("ij,e,je->ie", far, [4.0, 1.0], v))
    np.testing.assert_allclose(energies(carried).sum(axis=1), [2 * 2 * 4.0], rtol=1e-6)


def test_eigenvalues_of_rounding_size_are_left_out():
    kernel = np.outer([3.0, 4.0], [3.0, 4.0]) + 1e-7 * np.eye(2)
    assert len(eigenfunctions(kernel).eigenvalues) == 1
    assert len(eigenfunctions(kernel, floor=1e-12).eigenvalues) == 2


def test_the_cosine_kernel_does_not_see_norms():
    rng = np.random.default_rng(4)
    rows, columns = rng.standard_normal((4, 6)), rng.standard_normal((3, 6))
    scaled = rows * np.array([[1.0], [10.0], [0.1], [5.0]])
    cosines = [cosine_kernel(a @ columns.T, (a**2).sum(1), (columns**2).sum(1)) for a in (rows, scaled)]
    np.testing.assert_allclose(cosines[0], cosines[1], rtol=1e-12)
    assert np.abs(cosines[0]).max() <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eigenfunctions(np.ones((2, 3))), r"shape \[N, N\], got \[2, 3\]"),
        (lambda: eigenfunctions(np.array([[1.0, 2.0], [0.0, 1.0]])), "not symmetric"),
        (lambda: eigenfunctions(np.zeros((2, 2))), "largest eigenvalue is 0"),
        (lambda: eigenfunctions(np.eye(2), count=3), "count is 3, want a number of eigenfunctions from 1 to 2"),
        (lambda: eigenfunctions(np.eye(2), weights=[0.5, 0.6]), "sum 1.1"),
        (lambda: eigenfunctions_of_product(lambda v: v, (2,), count=2), "count is 2, all there are"),
        (lambda: extend(eigenfunctions(np.eye(2)), np.ones((1, 3))), r"shape \[M, 2\], got \[1, 3\]"),
        (lambda: cosine_kernel(np.ones((1, 1)), [0.0], [1.0]), r"k\(x, x\) of input 0 is 0"),
    ],
)
def test_what_cannot_be_decomposed_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_jax_arrays_are_taken_as_they_are(key):
    factors = jax.random.normal(key, (5, 8))
    assert eigenfunctions(factors @ factors.T, count=2).eigenfunctions.dtype == np.float64

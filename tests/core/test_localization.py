import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax.ntk import (
    cosine_kernel,
    eigenfunctions,
    energies,
    energy_share,
    make_ntk_operator,
    matrix_operator,
    mixture_reading,
    nystrom_reading,
    separation,
)

from .conftest import mlp, mlp_params


def linear_kernel(points):
    return points @ points.T


def nearby_kernel(points, width):
    return np.exp(-np.square(points[:, None] - points).sum(-1) / (2 * width**2))


@pytest.fixture
def two_subspaces():
    """Eight points in each of two orthogonal planes of ℝ⁴, the first three times as far out."""
    rng = np.random.default_rng(0)
    first, second = (np.linalg.qr(rng.standard_normal((8, 2)))[0] * np.sqrt(8) for _ in range(2))
    return np.block([[3 * first, np.zeros((8, 2))], [np.zeros((8, 2)), second]])


def test_a_kernel_that_keeps_tasks_apart_has_all_energy_on_its_own_side(two_subspaces):
    operator = matrix_operator(linear_kernel(two_subspaces))
    task, control = range(8), range(8, 16)
    nystrom = nystrom_reading(operator, task, control, count=2)
    np.testing.assert_allclose(nystrom.eigenvalues, [9, 9], rtol=1e-10)  # the points are white in their plane
    np.testing.assert_allclose(nystrom.own.mean(axis=0), [1, 1], rtol=1e-10)
    np.testing.assert_allclose(nystrom.control, np.zeros((8, 2)), atol=1e-20)
    np.testing.assert_allclose(nystrom.held_out_control, np.zeros((16, 2)), atol=1e-20)
    assert energy_share(nystrom.held_out, nystrom.held_out_control)[-1] == pytest.approx(1)
    assert separation(nystrom.held_out, nystrom.held_out_control) == 1

    # Of the mixture, the two largest eigenvalues (½ · 9) belong to the task and the others (½ · 1) to the control.
    mixture = mixture_reading(operator, task, control, count=4)
    np.testing.assert_allclose(mixture.eigenvalues, [4.5, 4.5, 0.5, 0.5], rtol=1e-10)
    np.testing.assert_allclose(mixture.share, [1, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(mixture.own.mean(axis=0), [2, 2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(mixture.contrast, np.ones(4), rtol=1e-10)
    assert mixture.excess == pytest.approx(1)


def test_only_the_cosine_kernel_is_blind_to_a_task_with_larger_gradients(two_subspaces):
    kernel = linear_kernel(two_subspaces)
    fair = cosine_kernel(kernel, np.diag(kernel), np.diag(kernel))
    shares = [mixture_reading(matrix_operator(k), range(8), range(8, 16), count=2).share for k in (kernel, fair)]
    np.testing.assert_allclose(shares[0], [1, 1], atol=1e-12)  # its two, for their size alone
    larger = two_subspaces * np.where(np.arange(16) < 8, 100.0, 1.0)[:, None]
    grown = linear_kernel(larger)
    np.testing.assert_allclose(cosine_kernel(grown, np.diag(grown), np.diag(grown)), fair, atol=1e-12)


def test_a_kernel_that_sees_no_difference_has_no_contrast():
    kernel = np.ones((8, 8))
    mixture = mixture_reading(matrix_operator(kernel), range(4), range(4, 8), count=1)
    np.testing.assert_allclose(mixture.share, [0.5])
    np.testing.assert_allclose(mixture.contrast, [0], atol=1e-12)
    nystrom = nystrom_reading(matrix_operator(kernel), range(4), range(4, 8), count=1)
    np.testing.assert_allclose(energy_share(nystrom.held_out, nystrom.held_out_control), [0.5])
    assert separation(nystrom.held_out.round(12), nystrom.held_out_control.round(12)) == 0.5


@pytest.mark.parametrize("width", [0.05, 0.3, 2.0])
def test_held_out_energies_of_one_distribution_agree_and_those_on_the_sample_do_not(width):
    """Task and control drawn alike: 0.5 is right for any kernel. The n images themselves say R, whatever k is."""
    shares, separations, excesses = [], [], []
    for seed in range(6):
        points = np.random.default_rng(seed).standard_normal((400, 2))
        operator = matrix_operator(nearby_kernel(points, width))
        found = nystrom_reading(operator, range(200), range(200, 400), count=16)
        shares.append(energy_share(found.held_out, found.held_out_control)[-1])
        separations.append(separation(found.held_out, found.held_out_control))
        excesses.append(mixture_reading(operator, range(200), range(200, 400), count=16).excess)
        np.testing.assert_allclose(found.own.mean(axis=0), np.ones(16), rtol=1e-9)
        if width == 0.05:
            assert energy_share(found.own, found.control)[-1] > 0.8
    # Deviations over such draws are up to 0.07, 0.05 and 0.05, a mean of six has less than half of that.
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.mean(separations) == pytest.approx(0.5, abs=0.05)
    assert np.mean(excesses) == pytest.approx(0, abs=0.05)


def test_an_image_is_held_out_of_its_own_half():
    """The readings by a slow, direct oracle; six images of the task, three control images."""
    kernel = linear_kernel(np.random.default_rng(2).standard_normal((9, 5)))
    found = nystrom_reading(matrix_operator(kernel), range(6), range(6, 9), count=2)
    for i in range(6):
        half = [j for j in range(6) if j % 2 != i % 2]
        known = eigenfunctions(kernel[np.ix_(half, half)], count=2)
        value = kernel[i, half] @ known.eigenfunctions / (3 * known.eigenvalues)
        np.testing.assert_allclose(found.held_out[i], value**2, rtol=1e-9)
    both = [eigenfunctions(kernel[np.ix_(half, half)], count=2) for half in ([0, 2, 4], [1, 3, 5])]
    crosses = kernel[6:, [0, 2, 4]], kernel[6:, [1, 3, 5]]
    values = [c @ k.eigenfunctions / (3 * k.eigenvalues) for c, k in zip(crosses, both, strict=True)]
    np.testing.assert_allclose(found.held_out_control, np.concatenate(values) ** 2, rtol=1e-9)


def test_chance_is_the_mean_over_all_assignments():
    kernel = linear_kernel(np.random.default_rng(3).standard_normal((6, 4)))
    whole = mixture_reading(matrix_operator(kernel), range(3), range(3, 6), count=3)
    contrasts = []
    for chosen in itertools.combinations(range(6), 3):
        others = [i for i in range(6) if i not in chosen]
        contrasts.append(mixture_reading(matrix_operator(kernel), chosen, others, count=3).contrast)
    np.testing.assert_allclose(np.mean(contrasts, axis=0), whole.chance, rtol=1e-8)
    alone = mixture_reading(matrix_operator(np.diag([4.0, 3.0, 2.0, 1.0])), [0, 1], [2, 3], count=4)
    np.testing.assert_allclose(alone.chance, np.ones(4))
    np.testing.assert_allclose(alone.contrast, np.ones(4))
    assert alone.excess == 0


def test_numbers_do_not_depend_on_the_scale_of_the_kernel():
    kernel = linear_kernel(np.random.default_rng(4).standard_normal((12, 7)))
    for reading in (nystrom_reading, mixture_reading):
        one, thousand = (reading(matrix_operator(c * kernel), range(6), range(6, 12), count=3) for c in (1, 1e3))
        np.testing.assert_allclose(thousand.eigenvalues, 1e3 * one.eigenvalues, rtol=1e-9)
        np.testing.assert_allclose(thousand.own, one.own, rtol=1e-7)
        np.testing.assert_allclose(thousand.control, one.control, rtol=1e-7)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_full_kernel_needs_no_jacobian(key, x64, batch_size):
    params, x = mlp_params(key, jnp.float64), jax.random.normal(key, (10, 3), jnp.float64)
    mask = tajax.param_mask(params, "attention")
    operator = make_ntk_operator(mlp, params, mask=mask, batch_size=batch_size)(x)
    full = np.asarray(tajax.empirical_ntk(mlp, params, x, mask=mask, output="full"))  # [M, N, E, E]
    chosen, others = [0, 2, 4, 6, 8, 9], [1, 3, 5, 7]
    found = operator.leading(chosen, 3)
    part = full[np.ix_(chosen, chosen)].transpose(0, 2, 1, 3).reshape(12, 12) / 6
    values, vectors = np.linalg.eigh(part)
    functions = np.sqrt(6) * vectors[:, ::-1][:, :3].reshape(6, 2, 3)
    np.testing.assert_allclose(found.eigenvalues, values[::-1][:3], rtol=1e-6)
    # The solver's tolerance is one of eigenvalues; eigenfunctions are less exact.
    np.testing.assert_allclose(energies(found.eigenfunctions), energies(functions), rtol=1e-3, atol=1e-4)
    carried = np.einsum("mnef,nfr->mer", full[np.ix_(others, chosen)], functions) / (6 * values[::-1][:3])
    np.testing.assert_allclose(energies(operator.carry(found, chosen, others)), energies(carried), rtol=1e-3, atol=1e-4)


def test_separation_counts_pairs():
    own, control = np.array([[1.0, 1.0], [0.0, 1.0], [4.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 0.0]])
    pairs = [(a > b) + (a == b) / 2 for a in (2.0, 1.0, 4.0) for b in (2.0, 0.0)]
    assert separation(own, control) == np.mean(pairs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: nystrom_reading(k, range(5), range(5, 8), count=3), "count is 3, .* half of the 5 images"),
        (lambda k: mixture_reading(k, range(5), range(5, 8), count=1), "got 5 and 3"),
    ],
)
def test_bad_counts_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(matrix_operator(np.eye(8)))

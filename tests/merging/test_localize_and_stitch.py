"""Localize-and-Stitch without data: by hand, and what holds of any density."""

import jax.numpy as jnp
import numpy as np
import pytest

from tajax import merging


def stitched(theta, taus, **options):
    merged = merging.localize_and_stitch(
        {"w": jnp.asarray(theta)}, [{"w": jnp.asarray(tau)} for tau in taus], **options
    )
    return np.asarray(merged["w"])


def test_an_entry_is_the_mean_of_those_who_keep_it_whatever_their_signs():
    taus = [[8.0, -6.0, 1.0, 0.0, 2.0], [-4.0, 1.0, 5.0, 0.0, 1.0], [6.0, 0.5, 7.0, 0.0, 0.5]]
    want = [10 + (8 - 4 + 6) / 3, 10 - 6, 10 + (5 + 7) / 2, 10, 10]
    np.testing.assert_allclose(stitched(np.full(5, 10.0, np.float32), taus, density=0.4), want, rtol=1e-6)


def test_vectors_that_do_not_overlap_are_all_kept_whole():
    """What task arithmetic gives at λ = 1, and here without interference at any number of tasks."""
    taus = np.diag([1.0, -2.0, 3.0, 4.0]).astype(np.float32)
    np.testing.assert_allclose(stitched(np.ones(4, np.float32), taus, density=0.25), [2, -1, 4, 5])


def test_one_vector_keeps_its_share_and_identical_ones_are_one(key):
    tau = np.linspace(-1, 1.02, 40, dtype=np.float32)
    one = stitched(np.zeros(40, np.float32), [tau], density=0.25)
    assert np.count_nonzero(one) == 10 and set(one[one != 0]) <= set(tau)
    np.testing.assert_allclose(stitched(np.zeros(40, np.float32), [tau] * 3, density=0.25), one, rtol=1e-6)
    np.testing.assert_array_equal(stitched(np.zeros(40, np.float32), [tau], density=1.0), tau)


@pytest.mark.parametrize("density", [0, 1.5, -0.1, float("nan")])
def test_density_has_a_range(density):
    with pytest.raises(ValueError, match=r"density is the share of entries to keep, in \(0, 1\]; got"):
        stitched(np.zeros(2), [np.ones(2)], density=density)

"""EMR-Merging and TALL masks: the model of each task against an oracle, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import merging
from tajax.merging import METHODS, emr, tall_masks
from tests.merging.agreement import tree_of, vector_of
from tests.merging.entrywise import slow_emr, slow_tall_masks
from tests.merging.test_contract import setting

__all__ = ["setting"]  # a fixture

BOTH = [emr, tall_masks]


def models_of(merged):
    return np.stack([vector_of(merged.params(task)) for task in range(len(merged.masks))])


def test_emr_agrees_with_a_slow_oracle(setting):
    theta, taus = setting
    got = models_of(jax.jit(emr)(tree_of(theta), list(map(tree_of, taus))))
    np.testing.assert_allclose(got, slow_emr(theta, taus), rtol=1e-5, atol=2e-6)


def test_tall_masks_agree_with_a_slow_oracle(setting):
    theta, taus = setting
    vectors = list(map(tree_of, taus))
    for given, each in ((0.37, [0.37] * 3), ((0.23, 0.37, 0.61), (0.23, 0.37, 0.61))):
        got = models_of(tall_masks(tree_of(theta), vectors, threshold=given))
        np.testing.assert_allclose(got, slow_tall_masks(theta, taus, each), rtol=1e-6)


@pytest.mark.parametrize("merge", BOTH)
def test_of_one_task_its_own_model_is_left(merge, setting):
    theta, tau = tree_of(setting[0]), tree_of(setting[1][0])
    whole = merge(theta, [tau]).params(0)
    np.testing.assert_allclose(vector_of(whole), setting[0] + setting[1][0], rtol=1e-6)


@pytest.mark.parametrize("merge", BOTH)
def test_tasks_that_share_no_entry_get_their_models_back(merge, setting):
    """What both papers promise of masks: nothing is lost where tasks do not interfere."""
    theta, tau = setting[0], setting[1][0]
    halves = [np.where(np.arange(len(tau)) % 2 == parity, tau, 0) for parity in (0, 1)]
    got = models_of(merge(tree_of(theta), list(map(tree_of, halves))))
    np.testing.assert_allclose(got, [theta + half for half in halves], rtol=1e-6)


def test_emr_gives_each_task_its_mean_magnitude(setting):
    taus = list(map(tree_of, setting[1]))
    merged = emr(jax.tree.map(np.zeros_like, taus[0]), taus)
    for tau, model in zip(setting[1], models_of(merged), strict=True):
        np.testing.assert_allclose(np.abs(model).sum(), np.abs(tau).sum(), rtol=1e-5)
        assert np.all((model == 0) | (np.sign(model) == np.sign(tau)))


def test_consensus_is_the_sum_where_so_many_masks_agree(setting):
    theta, taus = tree_of(0 * setting[0]), list(map(tree_of, setting[1]))
    masks = np.stack([vector_of(mask) for mask in tall_masks(theta, taus, threshold=0.37).masks])
    want = np.where(masks.sum(0) >= 2, setting[1].sum(0), 0)
    got = METHODS["consensus"](theta, taus, tasks=2, threshold=0.37)
    np.testing.assert_array_equal(vector_of(got), want)


@pytest.mark.parametrize("merge", BOTH)
def test_dtypes_stay_and_other_leaves_never_move(merge):
    pretrained = {"w": jnp.ones(4, jnp.bfloat16), "ids": jnp.arange(2)}
    tau = tajax.task_vector(pretrained, {"w": jnp.full(4, 3, jnp.bfloat16), "ids": jnp.arange(2)})
    merged = jax.jit(merge)(pretrained, [tau, tau])
    assert isinstance(merged, merging.PerTask) and merged.masks[1]["w"].dtype == bool
    assert {path: leaf.dtype.name for path, leaf in merged.params(1).items()} == {"w": "bfloat16", "ids": "int32"}
    np.testing.assert_array_equal(merged.params(1)["ids"], [0, 1])


@pytest.mark.parametrize("merge", BOTH)
def test_vectors_of_nothing_leave_the_model(merge, setting):
    theta = tree_of(setting[0])
    merged = merge(theta, [jax.tree.map(np.zeros_like, theta), tree_of(setting[1][0])])
    np.testing.assert_array_equal(vector_of(merged.params(0)), vector_of(theta))


def test_what_does_not_fit_is_named():
    for merge in BOTH:
        with pytest.raises(ValueError, match="'w' is in pretrained but not in task vector 1"):
            merge({"w": 1.0}, [{"w": 1.0}, {"v": 1.0}])
        with pytest.raises(ValueError, match="is empty"):
            merge({"w": 1.0}, [])
        for task in (-1, 2):
            with pytest.raises(ValueError, match=f"task is {task}, want its number, from 0 to 1"):
                merge({"w": 1.0}, [{"w": 1.0}] * 2).params(task)
    with pytest.raises(ValueError, match=r"2 task vectors need 2 thresholds, one each, or one for all; got \(0.3,\)"):
        tall_masks({"w": 1.0}, [{"w": 1.0}] * 2, threshold=(0.3,))
    with pytest.raises(ValueError, match="threshold is a number above 0; got 0"):
        tall_masks({"w": 1.0}, [{"w": 1.0}] * 2, threshold=(0.3, 0))

"""Masks that are learned from labels: by hand on a linear model, and the laws of what is marked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import merging
from tajax.merging.methods.localize_few_shot import learn_scores
from tajax.types import Batch, Head
from tests.merging import with_data
from tests.merging.test_with_data import rows_of

TASKS, N = ("signs", "shapes"), 6 * 5
LEARNING = {"density": 0.4, "steps": 4, "learning_rate": 100.0, "l1_strength": 1e-3, "initial": 1.0}
fit = merging.fit_localize_few_shot


def encode(params, inputs):
    return inputs @ params["w"]


@pytest.fixture
def setting(rng, x64):
    """θ₀, vectors with zeros in a row, two batches a task with padding in the last, heads of 3 classes out of 4."""
    draw = rng(930)
    pretrained, *taus = [{"w": jnp.asarray(draw.normal(size=(6, 5))).at[5].multiply(t < 1)} for t in range(3)]
    batches, heads = {}, {}
    for task in TASKS:
        inputs, labels, mask = draw.normal(size=(8, 6)), draw.integers(0, 3, 8), np.arange(8) < 7
        batches[task] = [Batch(inputs[s], labels[s], mask[s]) for s in (slice(0, 4), slice(4, 8))]
        heads[task] = Head(jnp.asarray(draw.normal(size=(5, 4))), jnp.int32(3), False)
    return pretrained, dict(zip(TASKS, taus, strict=True)), batches, heads


def counts(found):
    return np.count_nonzero(np.asarray(found["masks"]["w"]), axis=(1, 2))


def test_scores_take_the_steps_of_gradient_descent_and_masks_round_them(setting):
    pretrained, taus, batches, heads = setting
    found, masks = learn_scores(encode, *setting, **LEARNING), fit(encode, *setting, **LEARNING)["masks"]["w"]
    hand = {"density": 0.4, "steps": 4, "rate": 100.0, "strength": 1e-3, "initial": 1.0}
    for number, (task, scores) in enumerate(zip(TASKS, found, strict=True)):
        tau, weights = np.asarray(taus[task]["w"]), np.asarray(heads[task].weights)[:, :3]
        want = with_data.localized(np.asarray(pretrained["w"]), tau, *rows_of(batches[task]), weights, **hand)
        np.testing.assert_allclose(scores["w"], want, rtol=1e-9)
        ranked = sorted(want[tau != 0])[::-1]
        kept = (want >= ranked[round(0.4 * N) - 1]) & (want > 0) & (tau != 0)
        np.testing.assert_array_equal(masks[number], kept)
        start = with_data.localized(np.asarray(pretrained["w"]), tau, *[None] * 3, **hand | {"steps": 0})
        assert np.any(kept & (start < 0)) and np.any(~kept & (start > 0))  # the labels had a say


def test_a_linearised_model_is_learned_on_as_it_is(setting):
    """Of a linear encoder the expansion is the encoder; of another one it is not, and the scores are others."""
    tangent = tajax.linearize(encode, setting[0])
    for one, other in zip(
        learn_scores(encode, *setting, **LEARNING), learn_scores(tangent, *setting, **LEARNING), strict=True
    ):
        np.testing.assert_allclose(one["w"], other["w"], rtol=1e-9)

    def bent(params, inputs):
        return jnp.tanh(encode(params, inputs))

    pairs = zip(
        learn_scores(bent, *setting, **LEARNING),
        learn_scores(tajax.linearize(bent, setting[0]), *setting, **LEARNING),
        strict=True,
    )
    assert all(np.abs(one["w"] - other["w"]).max() > 1e-3 for one, other in pairs)


@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
def test_a_mask_has_no_more_marks_than_its_share_and_none_where_nothing_moved(setting, density):
    found = fit(encode, *setting, **LEARNING | {"density": density, "learning_rate": 300.0, "l1_strength": 0.0})
    assert np.all(counts(found) <= max(1, round(density * N))) and np.all(counts(found) > 0)
    assert not np.any(found["masks"]["w"][:, 5])
    assert found["masks"]["w"].dtype == bool


def test_the_stronger_the_norm_the_fewer_the_marks(setting):
    pretrained, taus, *_ = setting
    found = [fit(encode, *setting, **LEARNING | {"l1_strength": strength}) for strength in (0.0, 0.03, 1e3)]
    none, some, all_but = map(counts, found)
    assert np.all(none >= some) and np.sum(none) > np.sum(some) > 0 and np.all(all_but == 0)
    merged = merging.localize_few_shot(pretrained, list(taus.values()), **found[2])
    np.testing.assert_array_equal(merged["w"], pretrained["w"])


def test_a_task_does_not_see_the_others(setting):
    pretrained, taus, batches, heads = setting
    both = fit(encode, *setting, **LEARNING)["masks"]["w"]
    for number, task in enumerate(TASKS):
        alone = fit(
            encode, pretrained, {task: taus[task]}, {task: batches[task]}, heads={task: heads[task]}, **LEARNING
        )
        np.testing.assert_array_equal(alone["masks"]["w"], both[number : number + 1])


def test_without_learning_it_is_the_form_without_data(setting):
    pretrained, taus, *_ = setting
    found = fit(encode, *setting, **LEARNING | {"learning_rate": 1e-9})
    merged = merging.localize_few_shot(pretrained, list(taus.values()), **found)
    want = merging.localize_and_stitch(pretrained, list(taus.values()), density=0.4)
    np.testing.assert_array_equal(merged["w"], want["w"])


def test_the_entries_that_are_learned_lose_less_than_the_largest(setting):
    pretrained, taus, batches, heads = setting
    found = fit(encode, *setting, **LEARNING)

    def loss(merge, task, **options):
        model = merge(pretrained, [taus[task]], **options)["w"]
        x, y = rows_of(batches[task])
        return with_data.surprise(x @ np.asarray(model) @ np.asarray(heads[task].weights)[:, :3], y)

    for number, task in enumerate(TASKS):
        masks = jax.tree.map(lambda leaf, number=number: leaf[number : number + 1], found["masks"])
        learned = loss(merging.localize_few_shot, task, masks=masks)
        assert learned < loss(merging.localize_and_stitch, task, density=0.4) - 0.05


def test_masks_may_be_numbers_and_must_fit(setting):
    pretrained, taus, *_ = setting
    merge = functools.partial(merging.localize_few_shot, pretrained, list(taus.values()))
    masks = fit(encode, *setting, **LEARNING)["masks"]
    numbers = jax.tree.map(lambda leaf: np.float32(leaf.tolist()), masks)  # as a run reads them from its records
    np.testing.assert_array_equal(merge(masks=numbers)["w"], merge(masks=masks)["w"])
    with pytest.raises(ValueError, match=r"'w' has shape \(2, 6, 5\) in 2 task vectors but \(1, 6, 5\) in masks"):
        merge(masks={"w": masks["w"][:1]})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("density", 0.0, r"density is the share of entries to keep, in \(0, 1\]; got 0.0"),
        ("density", 1.5, r"density is the share of entries to keep, in \(0, 1\]; got 1.5"),
        ("steps", 0, "steps is 0, want 1 or more"),
        ("learning_rate", 0.0, "learning_rate is 0.0, want a finite number above 0"),
        ("learning_rate", float("inf"), "learning_rate is inf, want a finite number above 0"),
        ("l1_strength", -1.0, "l1_strength is -1.0, want a finite number, 0 or more"),
        ("initial", 0.0, "initial is 0.0, want a finite number above 0"),
    ],
)
def test_options_have_ranges(setting, option, value, message):
    with pytest.raises(ValueError, match=message):
        fit(encode, *setting, **LEARNING | {option: value})


def test_scores_that_are_not_numbers_are_named(setting):
    pretrained, taus, batches, heads = setting
    bad = batches | {"shapes": [Batch(np.full((2, 6), np.nan), np.zeros(2, int), np.ones(2, bool))]}
    with pytest.raises(ValueError, match=r"scores of task 'shapes' after 4 steps at learning_rate 100: .* of 'w'"):
        fit(encode, pretrained, taus, bad, heads, **LEARNING)

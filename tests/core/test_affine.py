"""One pass, all coefficients: against the tangent model itself, and the exact best α against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import affine, combine, scaling
from tajax.affine import AffineLogits, Interval, affine_logits, correct_intervals, logits_at, tally_at
from tajax.linearization import linearize
from tajax.losses import head_logits
from tajax.types import Head
from tests.core.conftest import mlp, mlp_params

CLASSES, COLUMNS, ROWS = 4, 6, 60


@pytest.fixture
def world(x64, key):
    """θ₀, three task vectors, a padded head, images and labels, all float64."""
    keys = iter(jax.random.split(key, 8))
    params = mlp_params(next(keys), jnp.float64)
    taus = [jax.tree.map(lambda leaf, k=k: jax.random.normal(k, leaf.shape), params) for k in jax.random.split(key, 3)]
    head = Head(3 * jax.random.normal(next(keys), (2, COLUMNS), jnp.float64), jnp.int32(CLASSES))
    images = jax.random.normal(next(keys), (ROWS, 3), jnp.float64)
    return params, taus, head, images, jax.random.randint(next(keys), (ROWS,), 0, CLASSES)


def shifted(params, taus, coefs):
    return jax.tree.map(jnp.add, params, combine(taus, list(coefs)))


def test_logits_at_any_coefficients_are_those_of_the_tangent_model(world, key):
    params, taus, head, images, _ = world
    rows = affine_logits(mlp, params, taus, head, images)
    model = linearize(mlp, params)
    for coefs in [np.zeros(3), np.eye(3)[1], np.asarray(2 * jax.random.normal(key, (3,)))]:
        want = head_logits(model(shifted(params, taus, coefs), images), head)
        np.testing.assert_allclose(logits_at(rows, coefs), want, rtol=1e-9)
        assert np.isneginf(want[:, CLASSES:]).all()


def test_a_mask_keeps_the_vectors_out_of_the_other_leaves(world):
    params, taus, head, images, _ = world
    mask = jax.tree.map(lambda leaf: False, params) | {"ln_1": {"scale": True}}
    kept = [jax.tree.map(jnp.zeros_like, tau) | {"ln_1": tau["ln_1"]} for tau in taus]
    got, want = (
        affine_logits(mlp, params, taus, head, images, mask=mask),
        affine_logits(mlp, params, kept, head, images),
    )
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalizes", [True, False])
def test_images_on_a_line_are_the_images_at_its_points(world, normalizes):
    params, taus, head, images, _ = world
    rows = affine_logits(mlp, params, taus, head._replace(normalizes=normalizes), images)
    base, direction = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.0, -0.5])
    line = affine.on_line(rows, base, direction)
    for alpha in (0.0, 1.0, -2.5):
        want = logits_at(rows, base + alpha * direction)
        np.testing.assert_allclose(logits_at(line, np.array([alpha])), want, rtol=1e-10)
    with pytest.raises(ValueError, match=r"base has shape \(2,\), want \[3\]"):
        affine.on_line(rows, base[:2], direction)


def predictions(rows, direction, alpha):
    return np.argmax(np.asarray(logits_at(rows, alpha * direction)), axis=1)


@pytest.mark.parametrize("direction", [np.ones(3), np.array([1.0, -2.0, 0.0])])
def test_an_image_is_correct_inside_its_interval_and_nowhere_else(world, direction):
    params, taus, head, images, labels = world
    rows = affine_logits(mlp, params, taus, head, images)
    lower, upper = map(np.asarray, correct_intervals(rows, labels, direction))
    some = (lower < upper) & (np.isfinite(lower) | np.isfinite(upper))
    assert 10 < some.sum()  # the images have something to say
    for alpha in np.linspace(-4, 4, 161):
        clear = (np.abs(lower - alpha) > 1e-9) & (np.abs(upper - alpha) > 1e-9)
        inside = (lower < alpha) & (alpha < upper)
        correct = predictions(rows, direction, alpha) == np.asarray(labels)
        np.testing.assert_array_equal(inside[clear], correct[clear])


def test_intervals_end_where_two_classes_tie():
    scores = np.array([[[1.0, 0.0, 9.0], [1.0, 2.0, 9.0]], [[1.0, 1.0, 9.0], [0.0, 0.0, 9.0]]])
    rows = AffineLogits(jnp.asarray(scores), jnp.ones((2, 2, 2)), jnp.int32(2))  # the third column is padding
    first = correct_intervals(rows, jnp.array([0, 0]), jnp.ones(1))
    second = correct_intervals(rows, jnp.array([1, 1]), jnp.ones(1))
    assert (first.lower.tolist(), first.upper.tolist()) == ([-np.inf, -np.inf], [1.0, np.inf])
    # In the second row the classes always tie, and the first of equals is predicted.
    assert (second.lower.tolist(), second.upper.tolist()) == ([1.0, np.inf], [np.inf, np.inf])


def test_an_image_without_finite_scores_is_never_correct():
    rows = AffineLogits(jnp.full((1, 2, 2), jnp.nan), jnp.ones((1, 2, 2)), jnp.int32(2))
    lower, upper = correct_intervals(rows, jnp.array([0]), jnp.ones(1))
    assert not (lower < upper).any()


def test_the_exact_coefficient_beats_every_other(world):
    """Against the objective itself, evaluated between all ends of intervals and on a fine grid."""
    params, taus, head, images, labels = world
    rows, labels = affine_logits(mlp, params, taus, head, images), np.asarray(labels)
    direction, single, bounds = np.ones(3), [0.9, 0.4], (-1.0, 2.0)
    parts = [slice(0, 25), slice(25, None)]
    intervals = [Interval(*(end[part] for end in correct_intervals(rows, labels, direction))) for part in parts]

    def objective(alpha):
        correct = predictions(rows, direction, alpha) == labels
        return np.mean([correct[part].mean() / s for part, s in zip(parts, single, strict=True)])

    best = scaling.exact_scaling_coef(intervals, single, bounds=bounds)
    ends = np.sort(np.concatenate([*bounds, *(np.asarray(end) for task in intervals for end in task)], axis=None))
    ends = ends[(ends >= bounds[0]) & (ends <= bounds[1])]
    tried = np.array([objective(alpha) for alpha in [*(ends[1:] + ends[:-1]) / 2, *np.linspace(*bounds, 301)]])
    assert best.value == pytest.approx(tried.max(), abs=1e-12)
    assert objective(best.scaling_coef) == pytest.approx(best.value, abs=1e-12)
    width = best.upper - best.lower
    for alpha in best.lower + width * np.array([0.01, 0.5, 0.99]):
        assert objective(alpha) == pytest.approx(best.value, abs=1e-12)
    assert tried.min() < best.value - 0.05  # there was something to choose
    grid = scaling.exact_scaling_coef(intervals, single, bounds=(0.0, 0.05))
    assert grid.value < best.value  # and bounds are kept
    assert 0.0 <= grid.scaling_coef <= 0.05


def test_tallies_at_every_subset_of_tasks(world):
    params, taus, head, images, labels = world
    rows = affine_logits(mlp, params, taus, head, images)
    got = tally_at(rows, labels, np.ones(ROWS, bool), scaling.subsets(3))
    for index, subset in enumerate(scaling.subsets(3)):
        logits = head_logits(linearize(mlp, params)(shifted(params, taus, subset), images), head)
        assert got.correct[index] == (np.argmax(logits, axis=1) == np.asarray(labels)).sum()
    assert len(set(got.correct.tolist())) > 2


def test_pairs_are_the_points_of_a_map():
    assert scaling.pairwise([0.0, 1.0]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("intervals", "single", "bounds", "message"),
    [
        ([Interval(np.zeros(1), np.ones(1))], [0.5], (1.0, 0.0), r"bounds is \(1.0, 0.0\)"),
        ([Interval(np.zeros(1), np.ones(1))], [0.5], (0.0, np.inf), "two finite numbers"),
        ([Interval(np.zeros(1), np.ones(1))], [0.5, 0.5], (0.0, 1.0), "1 tasks with intervals"),
        ([Interval(np.zeros(0), np.zeros(0))], [0.5], (0.0, 1.0), "task 0 has no image"),
        ([Interval(np.zeros(1), np.ones(1))], [-0.5], (0.0, 1.0), "must be numbers, 0 or more"),
    ],
)
def test_bad_input_is_named(intervals, single, bounds, message):
    with pytest.raises(ValueError, match=message):
        scaling.exact_scaling_coef(intervals, single, bounds=bounds)


def test_vectors_of_another_tree_are_refused(world):
    params, taus, head, images, _ = world
    with pytest.raises(ValueError, match="not in task vector 1"):
        affine.affine_logits(mlp, params, [taus[0], {"ln_1": taus[1]["ln_1"]}], head, images)


def test_through_the_norm_logits_are_affine_and_nothing_is_divided(world, key):
    """f / ‖f‖ linearised by hand: its unit vector at θ₀, and of each response what is orthogonal to it, over ‖f‖."""
    params, taus, head, images, labels = world

    def unit(params, images):
        features = mlp(params, images)
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    rows = affine_logits(unit, params, taus, head._replace(normalizes=False), images)
    origin = np.asarray(mlp(params, images))
    length = np.linalg.norm(origin, axis=1, keepdims=True)
    for coefs in [np.zeros(3), np.eye(3)[1], np.asarray(2 * jax.random.normal(key, (3,)))]:
        response = np.asarray(linearize(mlp, params)(shifted(params, taus, coefs), images)) - origin
        across = response - origin * (origin * response).sum(1, keepdims=True) / length**2
        want = ((origin + across) / length) @ np.asarray(head.weights)
        np.testing.assert_allclose(np.asarray(logits_at(rows, coefs))[:, :CLASSES], want[:, :CLASSES], rtol=1e-9)
    lower, upper = map(np.asarray, correct_intervals(rows, labels, np.ones(3)))
    correct = predictions(rows, np.ones(3), 0.7) == np.asarray(labels)
    np.testing.assert_array_equal((lower < 0.7) & (upper > 0.7), correct)

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tajax import metrics
from tajax.losses import cross_entropy, head_logits
from tajax.types import Head


def test_cross_entropy_is_the_log_of_a_probability(key, x64):
    logits = 30 * jax.random.normal(key, (6, 4), jnp.float64)
    labels = jnp.arange(6) % 4
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = jax.jit(cross_entropy)(logits, labels)
    np.testing.assert_allclose(losses, -np.log(probabilities[np.arange(6), labels]), rtol=1e-9)


def test_low_precision_logits_are_widened_first():
    logits = jnp.array([[100.0, 99.5]], jnp.bfloat16)
    assert cross_entropy(logits, jnp.array([1])).dtype == jnp.float32
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([1])), [np.log1p(np.exp(0.5))], rtol=1e-5)


def test_padded_classes_change_neither_values_nor_gradients(key):
    k1, k2 = jax.random.split(key)
    features, weights = jax.random.normal(k1, (5, 8)), 10 * jax.random.normal(k2, (8, 3))
    labels = jnp.array([0, 1, 2, 0, 1])
    padded = jnp.concatenate([weights, 1e6 * jnp.ones((8, 4))], axis=1)

    def loss(features, weights):
        return cross_entropy(head_logits(features, Head(weights, jnp.int32(3))), labels).sum()

    plain, wide = (jax.jit(jax.value_and_grad(loss))(features, w) for w in (weights, padded))
    np.testing.assert_allclose(plain[0], wide[0], rtol=1e-6)
    np.testing.assert_allclose(plain[1], wide[1], rtol=1e-5, atol=1e-6)


def test_logits_of_narrow_features_and_heads_are_float32():
    head = Head(jnp.eye(3, dtype=jnp.bfloat16), jnp.int32(3))
    logits = head_logits(jnp.array([[1.0, 2.0, 2.0]], jnp.bfloat16), head)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, [[1 / 3, 2 / 3, 2 / 3]], rtol=1e-6)


def test_a_head_sees_directions_only(key):
    features = jax.random.normal(key, (4, 8))
    head = Head(jax.random.normal(key, (8, 3)), jnp.int32(3))
    logits = jax.jit(head_logits)
    np.testing.assert_allclose(logits(features, head), logits(features * 70, head), rtol=1e-5)
    unit = np.asarray(features) / np.linalg.norm(features, axis=-1, keepdims=True)
    np.testing.assert_allclose(logits(features, head), unit @ np.asarray(head.weights), rtol=1e-5, atol=1e-6)
    zeros = jnp.zeros((4, 8))
    np.testing.assert_array_equal(logits(zeros, head), 0)
    assert np.isfinite(jax.jit(jax.grad(lambda x: head_logits(x, head).sum()))(zeros)).all()


tally = jax.jit(metrics.tally)


@given(st.lists(st.integers(1, 5), min_size=3, max_size=10), st.integers(0, 7))
def test_a_tally_does_not_see_how_examples_were_batched_or_padded(sizes, seed):
    rng = np.random.default_rng(seed)
    bounds = [*itertools.takewhile(lambda bound: bound < 13, itertools.accumulate(sizes, initial=0)), 13]
    logits, labels = rng.normal(size=(13, 3)).astype(np.float32), rng.integers(0, 3, 13)
    whole = tally(logits, labels, np.ones(13, bool))

    parts = []
    for start, stop in itertools.pairwise(bounds):
        padded_logits, padded_labels = np.zeros((13, 3), np.float32), np.zeros(13, int)  # would be hits
        padded_logits[: stop - start], padded_labels[: stop - start] = logits[start:stop], labels[start:stop]
        parts.append(tally(padded_logits, padded_labels, np.arange(13) < stop - start))
    merged = functools.reduce(metrics.add, parts)
    assert (int(merged.correct), int(merged.count)) == (int(whole.correct), 13)  # integers: exact
    np.testing.assert_allclose(merged.loss_sum, whole.loss_sum, rtol=1e-5)  # order of sums
    assert metrics.compute(whole)["top1"] == np.mean(logits.argmax(-1) == labels)


def test_a_model_that_broke_down_is_not_right_by_accident():
    broken = metrics.tally(jnp.full((4, 3), jnp.nan), jnp.zeros(4, jnp.int32), jnp.ones(4, bool))
    assert metrics.compute(broken)["top1"] == 0.0  # argmax of NaN is class 0
    assert np.isnan(metrics.compute(broken)["loss"])


def test_nothing_to_average_is_an_error():
    empty = metrics.tally(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), jnp.zeros(2, bool))
    with pytest.raises(ValueError, match="every row is masked"):
        metrics.compute(empty)


def test_ratios_of_the_papers_by_hand():
    np.testing.assert_allclose(metrics.normalized_accuracy([0.3, 0.8], [0.6, 0.8]), [0.5, 1.0])
    np.testing.assert_array_equal(metrics.normalized_accuracy([0.1, 0.1], [0.0, 0.5]), [np.nan, 0.2])  # no ratio to 0
    for wrong in (-0.1, np.nan):
        with pytest.raises(ValueError, match=r"0 or more, to normalise by; got \[.*, 0.5\]"):
            metrics.normalized_accuracy([0.1, 0.1], [wrong, 0.5])
    # From chance to perfect is an advantage of 1, whatever the number of classes.
    np.testing.assert_allclose(metrics.nonlinear_advantage(1.0, [1 / 2, 1 / 10], [2, 10]), 1.0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        metrics.nonlinear_advantage(1.0, 0.5, 1)

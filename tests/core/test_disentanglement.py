import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import apply_task_vector, combine
from tajax.disentanglement import (
    MODULES,
    AffineOutputs,
    affine_sums,
    curve_sums,
    disentanglement_terms,
    equivalent_coefs,
    mean_distances,
    mean_over_square,
    pointwise_sums,
    prediction_error,
    relative_terms,
    summed_distances,
    symmetric_kl,
)
from tajax.linearization import linear_responses, linearize
from tajax.types import Batch, Head
from tests.core.conftest import mlp, mlp_params

BY_CLASS = (prediction_error, prediction_error)  # of models that give logits
GRID = np.linspace(-2, 2, 9)
W0 = 0.75


def threshold(params, x):
    """Class 1 where w² exceeds the input: one weight that both tasks share. [B, 1] -> [B, 2]."""
    return jnp.concatenate([jnp.zeros_like(x), params["w"] ** 2 - x], axis=-1)


def threshold_terms(response):
    """ξ's terms for two tasks that both add α to w, given the response w ↦ w² or its expansion."""
    inputs = np.linspace(0.03, 4.03, 41), np.linspace(0.21, 2.21, 21)
    terms = np.zeros((2, 9, 9))
    for t, x in enumerate(inputs):
        for i, a in enumerate(GRID):
            for j, b in enumerate(GRID):
                alone, both = response((a, b)[t]), response(a + b)
                terms[t, i, j] = np.mean((alone > x) != (both > x))
    return inputs, terms


@pytest.mark.parametrize(
    ("linearized", "response"),
    [(False, lambda alpha: (W0 + alpha) ** 2), (True, lambda alpha: W0**2 + 2 * W0 * alpha)],
    ids=["model", "tangent model"],
)
def test_the_error_of_two_tasks_that_share_one_weight(linearized, response):
    inputs, want = threshold_terms(response)
    batches_1, batches_2 = (jnp.asarray(x, jnp.float32)[:, None] for x in inputs)
    # The second task arrives in uneven batches with padding that would change the mean if it counted.
    padded = [
        Batch(batches_2[:16], np.zeros(16, np.int32), np.ones(16, bool)),
        Batch(jnp.concatenate([batches_2[16:], jnp.full((11, 1), 0.5)]), np.zeros(16, np.int32), np.arange(16) < 5),
    ]
    tau = {"w": jnp.array(1.0)}
    arguments = (threshold, {"w": jnp.array(W0)}, tau, tau, [batches_1], padded)
    terms = disentanglement_terms(*arguments, coefs=GRID, distances=BY_CLASS, linearized=linearized)
    np.testing.assert_allclose(terms, want, atol=1e-12)  # counts: exact
    error = tajax.disentanglement_error(*arguments, coefs=GRID, distances=BY_CLASS, linearized=linearized)
    np.testing.assert_allclose(error, want.sum(0), atol=1e-12)
    assert error.max() > 0.5
    np.testing.assert_array_equal(terms[0][:, GRID == 0], 0)  # without τ₂ the first task cannot notice it
    np.testing.assert_array_equal(terms[1][GRID == 0], 0)


def test_the_expansion_agrees_with_a_linearised_model_given_as_such(key):
    keys = jax.random.split(key, 5)
    encode = lambda params, x: jnp.tanh(x @ params["w"])  # noqa: E731
    params0, tau_1, tau_2 = ({"w": jax.random.normal(k, (3, 4))} for k in keys[:3])
    x_1, x_2 = (jax.random.normal(k, (50, 3)) for k in keys[3:])
    heads = (Head(10 * jnp.eye(4), jnp.int32(4)), Head(jnp.flip(jnp.eye(4), 0), jnp.int32(3)))
    measures = {"heads": heads, "distances": (prediction_error, symmetric_kl)}
    terms = functools.partial(disentanglement_terms, coefs=[-1.0, 0.0, 1.5])
    fast = terms(encode, params0, tau_1, tau_2, [x_1], [x_2], **measures, linearized=True)
    lin = tajax.linearize(encode, params0)
    slow = terms(lin, params0, tau_1, tau_2, [x_1], [x_2], **measures)
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-6)
    assert slow.min() >= 0 and slow[0].max() > 0.1 and slow[1].max() > 0.01
    # Exchanging the tasks transposes the map.
    exchanged = {name: pair[::-1] for name, pair in measures.items()}
    swapped = terms(encode, params0, tau_2, tau_1, [x_2], [x_1], **exchanged, linearized=True)
    np.testing.assert_allclose(swapped, fast[::-1].transpose(0, 2, 1), rtol=1e-4, atol=1e-6)


def test_distances_by_hand():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    want = np.sum(p * np.log(p / q)) + np.sum(q * np.log(q / p))
    log_p, log_q = (jnp.log(jnp.array([[*v, 0.0]])) + 3 for v in (p, q))  # a padded class; logits may shift
    np.testing.assert_allclose(symmetric_kl(log_p, log_q), [want], rtol=1e-6)
    np.testing.assert_array_equal(symmetric_kl(log_p, log_p), [0])
    np.testing.assert_array_equal(prediction_error(log_p, log_q), [1])
    np.testing.assert_array_equal(prediction_error(log_p, log_p - 1), [0])
    broken = log_p.at[0, 0].set(jnp.nan)  # must not pass for agreement
    assert np.isnan(prediction_error(broken, log_p)) and np.isnan(symmetric_kl(broken, broken))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefs": 0.5}, r"list of finite numbers, got shape \(\)"),
        ({"coefs": [0.0, np.nan]}, "list of finite numbers"),
        ({"batches_2": []}, "batches_2 holds no input"),
        ({"tau_2": {"v": 1.0}}, "'w' is in params0 but not in task vector 1"),
    ],
)
def test_bad_input_is_named(change, message):
    x = jnp.ones((1, 1))
    arguments = {"params0": {"w": 1.0}, "tau_1": {"w": 1.0}, "tau_2": {"w": 1.0}, "batches_1": [x], "batches_2": [x]}
    with pytest.raises(ValueError, match=message):
        tajax.disentanglement_error(threshold, **{**arguments, "coefs": [0.0], "distances": BY_CLASS, **change})


def test_what_outputs_stand_for_must_be_said():
    x, tree = [jnp.ones((1, 1))], {"w": jnp.ones(())}
    arguments = (threshold, tree, tree, tree, x, x)
    head = Head(jnp.eye(2), jnp.int32(2))
    with pytest.raises(ValueError, match=r"Of features, give the tasks' heads=\(head_1, head_2\)"):
        tajax.disentanglement_error(*arguments, coefs=[0.0])
    for heads in (head, (head,), (head.weights, head.weights)):  # a head is a pair, too, of weights and a number
        with pytest.raises(TypeError, match="want the heads of both tasks"):
            tajax.disentanglement_error(*arguments, coefs=[0.0], heads=heads)
    for linearized in (False, True):
        with pytest.raises(ValueError, match=r"the model has 2 outputs, and heads\[1\] takes 3"):
            wrong = (head, Head(jnp.eye(3), jnp.int32(3)))
            tajax.disentanglement_error(*arguments, coefs=[0.0], heads=wrong, linearized=linearized)


def test_heads_decide_what_a_prediction_is():
    """Features [1, α] and [α, 1]: the largest of them changes at α = 1, but no prediction of a head that takes both."""
    features = lambda params, x: x + params["w"][None]  # noqa: E731
    params0, x = {"w": jnp.zeros(2)}, jnp.array([[1.0, 0.0]])
    tau_1, tau_2 = {"w": jnp.zeros(2)}, {"w": jnp.array([0.0, 2.0])}
    blind, sharp = Head(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.int32(2)), Head(jnp.eye(2), jnp.int32(2))
    for head, want in ((blind, 0), (sharp, 1)):
        measured = (features, params0, tau_1, tau_2, [x], [x])
        error = tajax.disentanglement_error(*measured, coefs=[0.0, 1.0], heads=(head, head))
        assert error[0, 1] == want


@pytest.mark.parametrize("linearized", [False, True])
def test_one_trace_serves_every_head(linearized):
    traces = []

    def distance(outputs, others):
        traces.append(outputs.shape)
        return prediction_error(outputs, others)

    batches, tau = [jnp.linspace(0, 4, 8)[:, None]], {"w": jnp.array(1.0)}
    arguments = (threshold, {"w": jnp.array(W0)}, tau, tau, batches, batches)
    options = {"coefs": [0.0, 1.0], "distances": (distance, distance), "linearized": linearized}
    errors = []
    for scale in (1.0, -1.0, 0.0):
        heads = (Head(jnp.eye(2), jnp.int32(2)), Head(scale * jnp.eye(2), jnp.int32(2)))
        errors.append(tajax.disentanglement_error(*arguments, **options, heads=heads))
    assert len(traces) == 1
    assert not np.array_equal(errors[0], errors[2])


def test_distances_of_few_bits_add_up():
    count = jnp.ones((1000, 2))
    (total,) = summed_distances((lambda a, b: jnp.ones(1000, jnp.bfloat16),), count, count, jnp.ones(1000, bool))
    assert (total, total.dtype) == (1000, jnp.float32)


@pytest.mark.parametrize("linearized", [False, True])
def test_one_trace_serves_both_sets_and_every_later_map(linearized):
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return threshold(params, x)

    batches, tau = [jnp.linspace(0, 4, 8)[:, None]], {"w": jnp.array(1.0)}
    first = {"w": jnp.array(W0)}
    options = {"distances": BY_CLASS, "linearized": linearized}
    error = tajax.disentanglement_error(counted, first, tau, tau, batches, batches, coefs=GRID, **options)
    after_one = len(traces)
    second = {"w": jnp.array(0.1)}
    other = tajax.disentanglement_error(counted, second, tau, tau, batches, batches, coefs=2 * GRID, **options)
    assert len(traces) == after_one == 1
    assert not np.array_equal(error, other)


@pytest.mark.parametrize("linearized", [False, True])
def test_batches_add_up_in_double_precision(linearized):
    """f(x) = w x, one large x and many small ones that a sum in float32 would lose: terms are |β| Σ x / N."""
    inputs = [2.0**24] + [1.0] * 7
    batches, tau = [jnp.array([[x]]) for x in inputs], {"w": jnp.array(1.0)}
    model = lambda params, x: params["w"] * x  # noqa: E731
    distances = (lambda outputs, others: jnp.abs(outputs - others)[:, 0],) * 2
    options = {"coefs": [0.0, 1.0], "distances": distances, "linearized": linearized}
    terms = disentanglement_terms(model, {"w": jnp.array(0.0)}, tau, tau, batches, batches, **options)
    np.testing.assert_array_equal(terms[0], np.mean(inputs) * np.array([[0, 1], [0, 1]]))  # exact: so are the batches'
    np.testing.assert_array_equal(terms[1], terms[0].T)


def test_the_curve_of_the_own_vector_does_not_see_the_second_one_nor_padding():
    """f(x) = w² x: the outputs move by |α² + 2 α w₀| x, whatever the batches."""
    coefs, x = [-1.0, 0.0, 0.5, 2.0], np.array([1.0, 2.0, 5.0, 4.0])
    distances = (lambda outputs, others: jnp.abs(outputs - others)[:, 0],)
    batches = [
        (lambda c, part=part: (W0 + c[0] + 9 * c[1]) ** 2 * jnp.asarray(part)[:, None], part != 5)
        for part in (x[:1], x[1:])
    ]
    (curve,) = mean_distances(functools.partial(curve_sums, distances, coefs), batches)
    want = np.abs(np.square(coefs) + 2 * W0 * np.array(coefs)) * np.mean([1, 2, 4])
    np.testing.assert_allclose(curve, want, rtol=1e-6)  # float32 outputs


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def naive_sums(model, params0, own, other, grid, x, head, mask):
    """Both modules at every point, each from a model built anew, in NumPy: predictions and features [2, A, A]."""
    sums = np.zeros((2, len(grid), len(grid)))
    weights = np.asarray(head.weights)[:, : int(head.num_classes)]
    for (i, a), (j, b) in itertools.product(enumerate(grid), repeat=2):
        alone = np.asarray(model(apply_task_vector(params0, own, a), x))[mask]
        both = np.asarray(model(apply_task_vector(params0, combine([own, other], [a, b])), x))[mask]
        p, q = softmax(alone), softmax(both)
        sums[0, i, j] = np.sum((alone @ weights).argmax(-1) != (both @ weights).argmax(-1))
        sums[1, i, j] = np.sum(p * np.log(p / q)) + np.sum(q * np.log(q / p))
    return sums


@pytest.mark.parametrize("linearized", [False, True])
def test_one_pass_gives_both_modules(linearized, x64, key):
    """Through a padded head and on the features, against the definition, point by point in float64."""
    keys, grid = jax.random.split(key, 5), np.array([-1.0, 0.0, 0.5, 2.0])
    params0, own, other = (mlp_params(k, jnp.float64) for k in keys[:3])
    x, mask = jax.random.normal(keys[3], (40, 3), jnp.float64), np.arange(40) < 31
    head = Head(jax.random.normal(keys[4], (2, 7), jnp.float64), jnp.int32(4))
    calls = []

    def outputs(coefs):
        calls.append(coefs)
        return mlp(apply_task_vector(params0, combine([own, other], coefs)), x)

    distances = tuple(MODULES.values())
    if linearized:
        origin, responses = linear_responses(mlp, params0, [own, other], x)
        got = affine_sums(distances, grid, AffineOutputs(origin, *responses), mask, head)
    else:
        got = pointwise_sums(distances, grid, outputs, mask, head)
        assert sorted(calls) == sorted(itertools.product(grid, repeat=2))  # no point twice
    want = naive_sums(linearize(mlp, params0) if linearized else mlp, params0, own, other, grid, x, head, mask)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    assert want[0].max() > 5 and want[1].max() > 5
    np.testing.assert_array_equal(np.asarray(got)[:, :, 1], 0)


def test_the_summary_is_the_mean_over_the_square_alone():
    """ξ's terms a² b² and 3 a² b² on −2, −1, …, 2: their mean over −1, 0, 1 is 2 · (2/3)²."""
    grid = np.linspace(-2, 2, 5)
    product = np.square(grid)[:, None] * np.square(grid)[None]
    np.testing.assert_allclose(mean_over_square(np.stack([product, 3 * product]), grid), 8 / 9, rtol=1e-12)
    with pytest.raises(ValueError, match=r"no coefficient of \[-2.0, 1.5\] lies in \[−1, 1\]"):
        mean_over_square(np.zeros((2, 2, 2)), [-2.0, 1.5])


def test_relative_measures_of_a_model_in_which_everything_is_known():
    """Own vectors move by 2a and 3a, the others by a quarter of α₂ and half of α₁ of that, a distance of degree 2."""
    grid = np.array([-1.0, 0.0, 0.25, 1.0])
    speeds, shares = np.array([2.0, 3.0]), np.array([0.25, 0.5])
    other = np.stack(np.broadcast_arrays(np.abs(grid)[None], np.abs(grid)[:, None]))
    terms = np.square((speeds * shares)[:, None, None] * other)
    curve = np.square(speeds[:, None] * grid[None])
    want = shares[:, None, None] * other
    np.testing.assert_allclose(relative_terms(terms, np.square(speeds), degree=2), want, rtol=1e-12)
    np.testing.assert_allclose(equivalent_coefs(terms, grid, curve, degree=2), want, rtol=1e-12)
    # A distance that saturates, 1 − exp(−d), changes the ratio to the whole but, at the grid, not the coefficient.
    saturated = equivalent_coefs(1 - np.exp(-terms[:, :, 3:]), grid, 1 - np.exp(-curve))
    np.testing.assert_allclose(saturated[0], 0.25, rtol=1e-12)
    beyond = equivalent_coefs(9 * terms + 99, grid, curve, degree=2)
    np.testing.assert_array_equal(beyond, 1)
    with pytest.raises(ValueError, match="must ascend and hold 0"):
        equivalent_coefs(terms, np.array([-1.0, 0.1, 0.25, 1.0]), curve)

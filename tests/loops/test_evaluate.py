"""Tallies that do not see the batching, and sweeps that equal the model at every coefficient."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import affine, evaluate, scaling, splits, task_vectors, trees
from tajax.linearization import linearize
from tajax.types import Batch, Head

ROWS = 19
COEFS = np.array([[0.0, 0.0], [1.0, 0.0], [-0.5, 0.25], [0.3, 0.3], [2.0, -1.0]], np.float32)


def cut(batch, sizes):
    """The rows of a batch in batches of the given sizes, in order; the last one is padded with masked rows."""
    start, cuts = 0, []
    for size in sizes:
        rows = Batch(*(a[start : start + size] for a in batch))
        missing = size - len(rows.label)
        pads = (np.full((missing, *a.shape[1:]), fill, a.dtype) for a, fill in zip(rows, (77, -1, False), strict=True))
        cuts.append(Batch(*(np.concatenate([a, pad]) for a, pad in zip(rows, pads, strict=True))))
        start += size
    assert start >= len(batch.label)
    return cuts


@pytest.fixture
def images(make_batch):
    return make_batch(ROWS, 4)  # the models below differ on them


def assert_same(got, want):
    """Counts exactly; sums of losses up to the order of float32 sums."""
    np.testing.assert_array_equal(got.correct, want.correct)
    np.testing.assert_array_equal(got.count, want.count)
    np.testing.assert_allclose(got.loss_sum, want.loss_sum, rtol=2e-6)


@pytest.mark.parametrize("linearized", [False, True])
def test_counts_do_not_depend_on_batch_size_padding_or_order(linearized, encode, params, taus, head, images):
    step = evaluate.make_sweep_step(encode, linearized=linearized)

    def tallies(batches):
        return evaluate.sweep(step, params, taus, COEFS, head, batches)

    want = tallies([images])
    assert want.count.tolist() == [ROWS] * len(COEFS)
    assert len(set(want.correct.tolist())) > 1  # the points differ, so a mix-up of points would show
    for sizes in ([8, 8, 8], [32]):
        assert_same(tallies(cut(images, sizes)), want)
    assert_same(tallies(cut(Batch(*(a[::-1] for a in images)), [8, 8, 8])), want)


def brute_force(model, params, taus, head, images):
    """Counts and losses at every coefficient, one model after the other, in float64 logits by NumPy."""
    model = jax.jit(model)
    correct, losses = [], []
    for coef in COEFS:
        theta = task_vectors.apply_task_vector(params, task_vectors.combine(taus, list(coef)))
        features = np.asarray(model(theta, images.inputs), np.float64)
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        logits = unit @ np.asarray(head.weights, np.float64)[:, : int(head.num_classes)]
        correct.append(int((logits.argmax(1) == images.label).sum()))
        picked = logits[np.arange(ROWS), images.label]
        losses.append((np.log(np.exp(logits).sum(1)) - picked).sum())
    return correct, losses


@pytest.mark.parametrize("linearized", [False, True])
def test_sweep_equals_the_model_at_every_coefficient(linearized, encode, params, taus, head, images):
    step = evaluate.make_sweep_step(encode, linearized=linearized)
    got = evaluate.sweep(step, params, taus, COEFS, head, cut(images, [8, 8, 8]))
    model = linearize(encode, params) if linearized else encode
    correct, losses = brute_force(model, params, taus, head, images)
    assert got.correct.tolist() == correct
    np.testing.assert_allclose(got.loss_sum, losses, rtol=1e-5)  # float32 features through a norm, temperature 4
    other, _ = brute_force(encode if linearized else linearize(encode, params), params, taus, head, images)
    assert other != correct  # the images can tell the two models apart


def test_without_task_vectors_the_pretrained_model_is_measured(encode, params, head, images):
    got = evaluate.sweep(evaluate.make_sweep_step(encode), params, (), np.zeros((1, 0)), head, [images])
    correct, _ = brute_force(encode, params, [jax.tree.map(jnp.zeros_like, params)] * 2, head, images)
    assert got.correct.tolist() == correct[:1]


class Counter:
    """An encoder that counts its traces."""

    def __init__(self, encode):
        self.encode, self.traces = encode, 0

    def __call__(self, params, images):
        self.traces += 1
        return self.encode(params, images)


@pytest.mark.parametrize("linearized", [False, True])
def test_one_trace_serves_a_whole_sweep(linearized, encode, params, taus, head, images):
    """Three batches, five coefficients; then another head with fewer classes and other vectors on the same grid."""
    counter = Counter(encode)
    step = evaluate.make_sweep_step(counter, linearized=linearized)
    evaluate.sweep(step, params, taus, COEFS, head, cut(images, [8, 8, 8]))
    evaluate.sweep(step, params, taus[::-1], -COEFS, Head(-head.weights, jnp.int32(3)), cut(images, [8, 8, 8]))
    assert counter.traces == 1


def test_nonlinear_grid_of_any_length_is_the_same_program(encode, params, taus, head, images):
    counter = Counter(encode)
    step = evaluate.make_sweep_step(counter)
    for count in (1, 3, 5):
        evaluate.sweep(step, params, taus, COEFS[:count], head, [images])
    assert counter.traces == 1


def spoilt(tau):
    return tau | {"position_embedding": tau["position_embedding"] * np.float32("nan")}


BAD = {
    "flat grid": (lambda taus: (taus, [0.0, 1.0]), r"coefs has shape \(2,\), expected \[G, 2\]"),
    "a column short": (lambda taus: (taus, [[0.0], [1.0]]), r"coefs has shape \(2, 1\), expected \[G, 2\]"),
    "no point": (lambda taus: (taus, np.zeros((0, 2))), r"coefs has shape \(0, 2\), expected \[G, 2\]"),
    "nan": (lambda taus: (taus, [[0.0, 1.0], [0.0, np.nan]]), "coefs row 1 is not finite"),
    "infinite vector": (lambda taus: ([taus[0], spoilt(taus[1])], COEFS), "task vector 1: .*'position_embedding'"),
    "missing leaf": (lambda taus: ([{"projection": taus[0]["projection"]}, taus[1]], COEFS), "not in task vector 0"),
    "shape": (
        lambda taus: ([taus[0], taus[1] | {"projection": {"kernel": np.ones(3)}}], COEFS),
        r"\(3,\) in task vector 1",
    ),
}


@pytest.mark.parametrize("linearized", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_the_encoder_is_traced(case, linearized, encode, params, taus, head, images):
    spoil, message = BAD[case]
    counter = Counter(encode)
    step = evaluate.make_sweep_step(counter, linearized=linearized)
    vectors, coefs = spoil(taus)
    with pytest.raises(ValueError, match=message):
        evaluate.sweep(step, params, vectors, coefs, head, [images])
    assert counter.traces == 0


def test_a_pass_over_the_images_serves_any_coefficients(encode, params, taus, head, images):
    """Ragged and padded batches, gathered; then the sweep's own tallies, without an image."""
    counter = Counter(encode)
    step = evaluate.make_affine_step(counter)
    split = evaluate.affine_split(step, params, taus, head, cut(images, [8, 8, 8]))
    assert counter.traces == 1
    np.testing.assert_array_equal(split.labels, images.label)
    got = affine.tally_at(split.rows, split.labels, np.ones(ROWS, bool), COEFS)
    want = evaluate.sweep(evaluate.make_sweep_step(encode, linearized=True), params, taus, COEFS, head, [images])
    assert_same(got, want)


@pytest.mark.parametrize("case", ["infinite vector", "missing leaf", "shape"])
def test_a_pass_refuses_bad_vectors_before_the_encoder_is_traced(case, encode, params, taus, head, images):
    spoil, message = BAD[case]
    counter = Counter(encode)
    with pytest.raises(ValueError, match=message):
        evaluate.affine_split(evaluate.make_affine_step(counter), params, spoil(taus)[0], head, [images])
    assert counter.traces == 0


@pytest.mark.parametrize("linearized", [False, True])
def test_leaves_that_no_vector_moves_are_not_carried_along(linearized, encode, params, taus, head, images):
    """Same tallies, and the linearised program does less: nothing is pushed through what does not move."""
    mask = trees.flatten_paths(trees.param_mask(params, "attention"))
    vectors = [
        trees.unflatten_paths({p: leaf * mask[p] for p, leaf in trees.flatten_paths(tau).items()}) for tau in taus
    ]
    moved = task_vectors.moved_leaves(vectors)
    assert [set(leaves) for leaves in moved] == [{path for path in mask if mask[path]}] * 2
    step = evaluate.make_sweep_step(encode, linearized=linearized)
    got = step(params, moved, COEFS, head, images)
    assert_same(got, step(params, vectors, COEFS, head, images))
    assert_same(got, evaluate.sweep(step, params, vectors, COEFS, head, [images]))


def test_vectors_of_zeros_leave_the_pretrained_model(encode, params, taus, head, images):
    zeros = [jax.tree.map(jnp.zeros_like, tau) for tau in taus]
    for linearized in (False, True):
        step = evaluate.make_sweep_step(encode, linearized=linearized)
        got = evaluate.sweep(step, params, zeros, COEFS, head, [images])
        assert set(got.correct.tolist()) == {brute_force(encode, params, zeros, head, images)[0][0]}


def test_no_batch_is_no_accuracy(encode, params, taus, head, make_batch):
    with pytest.raises(ValueError, match="the data set is empty"):
        evaluate.sweep(evaluate.make_sweep_step(encode), params, taus, COEFS, head, [])
    nothing = Batch(*(a[:8] for a in cut(make_batch(1, 5), [8])[0]))._replace(mask=np.zeros(8, bool))
    with pytest.raises(ValueError, match="the data set is empty"):
        evaluate.affine_split(evaluate.make_affine_step(encode), params, taus, head, [nothing])


def test_tied_coefficients_go_to_the_smallest_in_size():
    flat = np.array([[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.25, 0.25]])
    assert scaling.select_scaling_coef([-1.0, -0.25, 0.5, 1.0], flat, np.array([1.0, 0.5])) == 1


def test_coefficient_is_chosen_by_the_mean_of_ratios():
    """The ratio of means would choose the other one: task 1 is hard, so its gain weighs more."""
    accuracies, single = np.array([[0.9, 0.7], [0.1, 0.2]]), np.array([0.9, 0.2])
    assert accuracies.mean(0).argmax() == 0
    assert scaling.select_scaling_coef([0.5, 1.0], accuracies, single) == 1
    with pytest.raises(ValueError, match="0 or more, to normalise by"):
        scaling.select_scaling_coef([0.5, 1.0], accuracies, np.array([0.9, np.nan]))


def held(step, live, image_rows):
    """A step that notes how many arrays with rows of images are alive when it has been dispatched."""

    def noting(*args):
        result = step(*args)
        live.append(sum(array.nbytes for array in jax.live_arrays() if array.shape[:1] == (image_rows,)))
        return result

    return noting


def test_rows_wait_for_the_end_on_the_host(encode, params, taus, head, make_batch):
    """The devices hold two batches of rows, however many there are; the host all of them once, the same to the bit."""
    step, live, size = evaluate.make_affine_step(encode), [], 7
    batches = [make_batch(size, number, masked=number % 3) for number in range(12)]
    parts = [jax.device_get(step(params, tuple(taus), head, batch)) for batch in batches]
    split = evaluate.affine_split(held(step, live, size), params, taus, head, batches)
    real = [labels >= 0 for _, _, labels in parts]
    want = [np.concatenate([part[leaf][kept] for part, kept in zip(parts, real, strict=True)]) for leaf in range(3)]
    np.testing.assert_array_equal(split.rows.scores, want[0][..., : int(head.num_classes)])
    np.testing.assert_array_equal(split.rows.gram, want[1])
    np.testing.assert_array_equal(split.labels, want[2])
    assert all(type(leaf) is np.ndarray and leaf.flags.owndata for leaf in (*split.rows[:2], split.labels))
    one_batch = sum(leaf.nbytes for leaf in parts[0])
    assert live[0] >= one_batch
    assert max(live) <= 2 * one_batch


def test_the_host_holds_rows_once():
    """40 MB of rows in 80 batches: not a second copy to put them together."""
    rows = np.ones((256, 10, 50), np.float32), np.ones((256, 10, 10), np.float32), np.zeros(256, np.int32)
    head, batch = Head(jnp.ones((2, 50)), jnp.int32(50)), Batch(*(np.zeros((1, 1)),) * 3)
    tau = {"w": np.ones(1, np.float32)}
    tracemalloc.start()
    try:
        split = evaluate.affine_split(lambda *args: rows, tau, [tau], head, [batch] * 80)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = split.rows.scores.nbytes + split.rows.gram.nbytes
    assert size == 80 * sum(leaf.nbytes for leaf in rows[:2])
    assert peak < 1.3 * size


def test_parts_of_a_split_give_what_all_of_it_gives(encode, params, taus, head, images, monkeypatch):
    """Counts and ends of intervals to the bit; losses in another order of sums."""
    split = evaluate.affine_split(evaluate.make_affine_step(encode), params, taus, head, [images])
    direction = np.array([1.0, -0.5])
    whole = affine.tally_at(*split, np.ones(ROWS, bool), COEFS), affine.correct_intervals(*split, direction)
    assert np.isfinite(whole[1].lower).any()
    for bytes_a_part in (splits._PART, 1, 5 * (split.rows.scores[0].nbytes + split.rows.gram[0].nbytes)):
        monkeypatch.setattr(splits, "_PART", bytes_a_part)
        assert_same(splits.tally_at_coefs(split, COEFS), whole[0])
        for end, want in zip(splits.intervals(split, direction), whole[1], strict=True):
            np.testing.assert_array_equal(end, want)

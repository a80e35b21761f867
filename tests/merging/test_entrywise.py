"""Methods that see entries, tensors and layers: by hand, and by the laws of each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import merging
from tajax.merging import METHODS
from tajax.merging.methods.ties import keep_largest
from tajax.merging.order import kth_largest

ZERO = {"w": jnp.zeros(4)}


def merged(name, *vectors, **options):
    """What a method makes of vectors [N], one leaf each, around zero."""
    vectors = [jnp.asarray(vector, jnp.float32) for vector in vectors]
    return np.asarray(METHODS[name]({"w": jnp.zeros_like(vectors[0])}, [{"w": v} for v in vectors], **options)["w"])


@pytest.fixture
def vectors(key):
    """Three task vectors [60] of random numbers, no two of one magnitude."""
    return np.asarray(jax.random.normal(key, (3, 60)))


@pytest.mark.parametrize(
    ("name", "options", "times"),
    [
        ("breadcrumbs", {"smallest": 0.0, "largest": 0.0}, 2),
        ("consensus", {}, 2),
        ("della", {"key": jax.random.key(0), "drop_rate": 0.0, "window": 0.0}, 1),
        ("karcher", {}, 1),
        ("lines", {}, 1),  # the first layer's share of two
        ("magmax", {}, 1),
        ("model_stock", {}, 1),
        ("slerp", {"share": 0.3}, 1),
    ],
)
def test_of_two_vectors_that_are_one(vectors, name, options, times):
    np.testing.assert_allclose(merged(name, vectors[0], vectors[0], **options), times * vectors[0], rtol=1e-5)


@pytest.mark.parametrize("method", ["breadcrumbs", "della", "karcher", "model_stock", "slerp"])
def test_layers_that_are_stacked_are_tensors_of_their_own(key, method):
    """The longer a layer the more would it matter to the others, if they were ranked or turned together."""
    taus = [{"blocks": {"w": jax.random.normal(k, (2, 5, 4))}} for k in jax.random.split(key, 2)]
    taus = [jax.tree.map(lambda leaf: leaf * jnp.array([1.0, 100.0]).reshape(2, 1, 1), tau) for tau in taus]
    rates = {"drop_rate": 0.0, "window": 0.0, "key": key} if method == "della" else {}
    merge = functools.partial(METHODS[method], **rates)
    whole = merge(jax.tree.map(jnp.zeros_like, taus[0]), taus)["blocks"]["w"]
    for layer in range(2):
        alone = [{"w": tau["blocks"]["w"][layer]} for tau in taus]
        one = merge(jax.tree.map(jnp.zeros_like, alone[0]), alone, stacked=None)["w"]
        np.testing.assert_allclose(whole[layer], one, rtol=1e-5, atol=1e-6)


def test_breadcrumbs_drop_both_ends():
    tau = [9.0, -3.0, 0.1, 2.0, -7.0, 0.5, 1.0, 4.0, 0.2, -6.0]
    got = merged("breadcrumbs", tau, smallest=0.4, largest=0.1)
    np.testing.assert_array_equal(got, np.float32([0, -3, 0, 2, -7, 0, 0, 4, 0, -6]))
    both = merged("breadcrumbs", tau, np.flip(tau), smallest=0.4, largest=0.1, scaling_coef=0.5)
    np.testing.assert_allclose(both, 0.5 * (got + np.flip(got)))


@pytest.mark.parametrize(("smallest", "largest"), [(0.0, 0.0), (0.85, 0.007), (0.5, 0.25), (0.0, 0.5)])
def test_breadcrumbs_keep_so_many(vectors, smallest, largest):
    kept = np.count_nonzero(merged("breadcrumbs", vectors[0], smallest=smallest, largest=largest))
    assert kept == 60 - int(60 * smallest) - int(60 * largest)


def test_consensus_by_hand():
    # Sums 6, -1, 1, 4. Others' sums at the tasks: 2, -3, 0, 1 and 4, 2, 1, 3.
    first, second = [4.0, 2.0, 1.0, 3.0], [2.0, -3.0, 0.0, 1.0]
    wanted = {0: [6, -1, 1, 4], 1: [6, -1, 1, 4], 2: [6, -1, 0, 0]}  # of the last entry 1 is not above 0.4 · 3
    for tasks, want in wanted.items():
        np.testing.assert_array_equal(merged("consensus", first, second, tasks=tasks), want)
    np.testing.assert_array_equal(merged("consensus", first, second, threshold=0.3), [6, -1, 0, 4])


def test_consensus_of_no_votes_is_the_sum(vectors):
    np.testing.assert_allclose(merged("consensus", *vectors, tasks=0), vectors.sum(0), rtol=1e-5, atol=1e-6)
    sizes = [np.count_nonzero(merged("consensus", *vectors, tasks=k)) for k in range(4)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]


def test_magmax_by_hand():
    got = merged("magmax", [4.0, -2.0, 1.0, 0.0], [-5.0, 1.0, -1.0, 0.0], [3.0, -2.0, 0.5, 0.0], scaling_coef=0.5)
    np.testing.assert_array_equal(got, [-2.5, -1, 0, 0])


def test_lines_grow_with_depth():
    ones = {"blocks": {"w": jnp.ones((4, 2))}, "embedding": jnp.ones(3), "projection": jnp.ones(3)}
    zeros = jax.tree.map(jnp.zeros_like, ones)
    tree = METHODS["lines"](zeros, [ones, ones], scaling_coef=0.6)
    np.testing.assert_allclose(tree["blocks"]["w"][:, 0], [1.0, 1.4, 1.8, 2.2])  # 2 (1/2 + 0.6 l/3)
    np.testing.assert_allclose([*tree["embedding"], *tree["projection"]], 1.0)
    average = merging.weight_average(zeros, [ones, ones])
    jax.tree.map(np.testing.assert_array_equal, METHODS["lines"](zeros, [ones, ones], scaling_coef=0.0), average)
    deep = METHODS["lines"](zeros, [ones, ones], shallow=0.0, scaling_coef=0.5)
    np.testing.assert_allclose(deep["blocks"]["w"][:, 0], [0, 1 / 3, 2 / 3, 1])
    one = {"blocks": {"w": jnp.ones((1, 2))}}  # of a single layer, the first
    np.testing.assert_allclose(METHODS["lines"](one, [one], scaling_coef=5.0)["blocks"]["w"], 2)


def test_pcb_by_hand():
    first, second = np.array([4.0, 1.0, -2.0, 0.0]), np.array([2.0, -3.0, -1.0, 0.0])
    total = first + second
    scores = [np.exp(2 * (abs(tau) / abs(tau).max()) ** 2) * np.tanh(tau * total) for tau in (first, second)]
    # Of each task two of four have a weight: above the third-largest score.
    floors = [np.sort(score)[1] for score in scores]
    weights = [np.maximum(s - f, 0) / (s.max() - f) for s, f in zip(scores, floors, strict=True)]
    shared = weights[0] + weights[1]
    want = (weights[0] * first + weights[1] * second) / np.where(shared > 0, shared, 1)
    np.testing.assert_allclose(merged("pcb", first, second, ratio=0.5), want, rtol=1e-5)
    assert want[1] == -3  # where they disagree the task against the sum has no say


def test_pcb_of_one_task_keeps_its_largest(vectors):
    got = merged("pcb", vectors[0], ratio=0.2)
    np.testing.assert_allclose(got, keep_largest({"w": vectors[0]}, 0.2)["w"], rtol=1e-5)
    limited = merged("pcb", vectors[0], ratio=0.2, outliers=0.05)
    ceiling = np.sort(abs(vectors[0]))[-4]  # three outliers
    np.testing.assert_allclose(limited, np.clip(got, -ceiling, ceiling), rtol=1e-5)


def test_model_stock_goes_by_the_angle():
    first = np.float32([1, 0, 0])
    np.testing.assert_array_equal(merged("model_stock", first, [0, 2, 0]), 0)  # a right angle
    np.testing.assert_array_equal(merged("model_stock", first, [-1, 1, 0]), 0)  # a wider one
    np.testing.assert_allclose(merged("model_stock", first, [0.6, 0.8, 0]), 0.75 * np.array([0.8, 0.4, 0]), rtol=1e-6)
    three = [1, 1, 0], [1, 0, 1], [0, 1, 1]  # cosines of a half: t = 3/2 / (2/2 + 1) = 3/4
    np.testing.assert_allclose(merged("model_stock", *three), 0.75 * 2 / 3, rtol=1e-6)


def test_model_stock_is_nearest_to_the_centre(key):
    """What the paper derives t from: of equal lengths and angles, the point on the way to the mean that is nearest the
    foot of the perpendicular from θ₀ on the models' plane, whose distance is ‖τ‖ √((1 + cos φ)/2) of two."""
    a, b = np.asarray(jnp.linalg.qr(jax.random.normal(key, (8, 2)))[0]).T
    for angle in (0.3, 1.0, 1.5):
        other = np.cos(angle) * a + np.sin(angle) * b
        share = np.linalg.norm(merged("model_stock", a, other)) / np.linalg.norm((a + other) / 2)
        np.testing.assert_allclose(share, 2 * np.cos(angle) / (1 + np.cos(angle)), rtol=1e-5)


def test_slerp_turns_by_a_share_of_the_angle(vectors):
    first, second = vectors[0] / np.linalg.norm(vectors[0]), vectors[1] / np.linalg.norm(vectors[1])
    angle = np.arccos(first @ second)
    for share in (0.0, 0.25, 0.5, 1.0):
        got = merged("slerp", first, second, share=share)
        np.testing.assert_allclose(np.linalg.norm(got), 1, rtol=1e-5)
        np.testing.assert_allclose([got @ first, got @ second], np.cos([share * angle, (1 - share) * angle]), atol=1e-5)
    np.testing.assert_allclose(merged("slerp", vectors[0], vectors[1], share=0.0), vectors[0], rtol=1e-6)
    np.testing.assert_allclose(merged("slerp", vectors[0], vectors[1], share=1.0), vectors[1], rtol=1e-6)


def test_slerp_takes_the_line_where_there_is_no_arc(vectors):
    tau = vectors[0]
    for other in (2 * tau, -tau, np.zeros_like(tau)):
        np.testing.assert_allclose(merged("slerp", tau, other, share=0.25), 0.75 * tau + 0.25 * other, rtol=1e-5)


def test_karcher_mean_of_two_is_the_middle_of_their_arc(vectors):
    first, second = vectors[0] / np.linalg.norm(vectors[0]), vectors[1] / np.linalg.norm(vectors[1])
    np.testing.assert_allclose(merged("karcher", first, second), merged("slerp", first, second), rtol=1e-4, atol=1e-6)


def test_karcher_mean_has_the_mean_length_and_no_tangent_left(vectors):
    scaled = vectors * np.array([[1.0], [10.0], [0.1]])
    got = merged("karcher", *scaled)
    lengths = np.linalg.norm(scaled, axis=1)
    np.testing.assert_allclose(np.linalg.norm(got), lengths.mean(), rtol=1e-5)
    mean, units = got / np.linalg.norm(got), scaled / lengths[:, None]
    angles = np.arccos(units @ mean)[:, None]
    tangent = np.mean(angles / np.sin(angles) * (units - np.cos(angles) * mean), axis=0)
    assert np.linalg.norm(tangent) < 2e-5  # the tolerance, and float32
    more = merged("karcher", *scaled, iterations=100, tolerance=1e-7)
    np.testing.assert_allclose(got, more, atol=1e-4 * np.linalg.norm(got))


def test_karcher_mean_turns_with_the_vectors(vectors, key):
    turn = np.asarray(jnp.linalg.qr(jax.random.normal(key, (60, 60)))[0])
    np.testing.assert_allclose(
        merged("karcher", *(vectors @ turn)), merged("karcher", *vectors) @ turn, rtol=1e-3, atol=1e-4
    )


def test_karcher_mean_where_vectors_are_zero_or_cancel(vectors):
    tau, nothing = vectors[0], np.zeros_like(vectors[0])
    np.testing.assert_allclose(merged("karcher", tau, nothing), tau / 2, rtol=1e-5)  # its direction, half its length
    np.testing.assert_array_equal(merged("karcher", tau, -3 * tau), 0)
    np.testing.assert_array_equal(merged("karcher", nothing, nothing), 0)


def test_della_drops_small_entries_more_often_and_keeps_the_mean(key):
    n, drop_rate, window = 50_000, 0.5, 0.8
    tau = np.linspace(1, 2, n, dtype=np.float32)
    got = merged("della", tau, key=key, drop_rate=drop_rate, window=window)
    rates = drop_rate + window * (0.5 - np.arange(n) / (n - 1))
    kept = got != 0
    np.testing.assert_allclose(got[kept], (tau / (1 - rates))[kept], rtol=1e-5)
    for tenth in np.split(np.arange(n), 10):  # five deviations of a share of 5000
        np.testing.assert_allclose(np.mean(~kept[tenth]), np.mean(rates[tenth]), atol=5 * 0.5 / np.sqrt(n / 10))
    deviation = np.sqrt(np.mean(rates / (1 - rates) * tau**2) / n)
    np.testing.assert_allclose(got.mean(), tau.mean(), atol=5 * deviation)
    again = merged("della", tau, key=key, drop_rate=drop_rate, window=window)
    np.testing.assert_array_equal(again, got)
    assert np.mean(kept != (merged("della", tau, key=jax.random.key(9), drop_rate=0.5, window=0.8) != 0)) > 0.2


def test_della_draws_for_each_task_and_layer(key):
    tau = {"blocks": {"w": jnp.ones((2, 400))}}
    zeros = jax.tree.map(jnp.zeros_like, tau)
    one, two = (METHODS["della"](zeros, [tau] * t, key=key, drop_rate=0.5, window=0.0)["blocks"]["w"] for t in (1, 2))
    assert not np.array_equal(one[0], one[1])
    assert 0.65 < np.mean(two != 0) < 0.85  # of two draws at a half, three of four


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("breadcrumbs", {"smallest": -0.1}, "shares of entries to drop.* got -0.1 and 0.007"),
        ("breadcrumbs", {"smallest": 0.5, "largest": 0.5}, "together below 1; got 0.5 and 0.5"),
        ("consensus", {"tasks": 3}, "from 0 to the 2 there are; got 3"),
        ("consensus", {"threshold": 0.0}, "threshold is a number above 0; got 0.0"),
        ("della", {"drop_rate": 0.05}, "got drop_rate 0.05 and window 0.14"),
        ("della", {"drop_rate": 0.95}, "shares below 1; got drop_rate 0.95"),
        ("karcher", {"iterations": 0}, "iterations is a number of steps, 1 or more; got 0"),
        ("karcher", {"tolerance": 0.0}, "tolerance is a length above 0; got 0.0"),
        ("lines", {"shallow": -1.0}, "shallow is .* 0 or more; got -1.0"),
        ("pcb", {"ratio": 0.0}, r"ratio is the share .* \(0, 1\]; got 0.0"),
        ("pcb", {"outliers": 1.0}, r"outliers is the share .* \[0, 1\); got 1.0"),
        ("slerp", {"share": 1.1}, r"share is how far .* \[0, 1\]; got 1.1"),
    ],
)
def test_options_out_of_range_are_named(name, options, message):
    drawn = {"key": jax.random.key(0)} if METHODS[name].random else {}
    with pytest.raises(ValueError, match=message):
        METHODS[name](ZERO, [ZERO, ZERO], **options, **drawn)


def test_methods_that_need_so_many_vectors_say_so():
    with pytest.raises(ValueError, match="slerp goes from one task vector to another and takes two; got 3"):
        METHODS["slerp"](ZERO, [ZERO] * 3)
    with pytest.raises(ValueError, match="model_stock .* needs two or more; got 1"):
        METHODS["model_stock"](ZERO, [ZERO])
    with pytest.raises(ValueError, match="from 0 to the 1 there are; got 2"):
        METHODS["consensus"](ZERO, [ZERO])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_kth_largest_of_any_sign(key, dtype, x64):
    leaves = [jax.random.normal(key, (7, 3), dtype), jnp.array([0.0, -0.0, 1e-30, -1e30, 3.0, 3.0], dtype)]
    order = np.sort(np.concatenate([np.ravel(leaf) for leaf in leaves]))[::-1]
    got = [kth_largest(leaves, k) for k in range(1, len(order) + 1)]
    np.testing.assert_array_equal(got, order)
    assert got[0].dtype == dtype
    sizes = np.sort(np.abs(order))[::-1]
    kept = [np.asarray(leaf) for leaf in leaves]
    for k in range(1, len(order) + 1):  # with and without a program around it
        want = {"got": kth_largest(kept, k, magnitudes=True)}
        want["traced"] = jax.jit(lambda leaves, k=k: kth_largest(leaves, k, magnitudes=True))(leaves)
        assert want == {"got": sizes[k - 1], "traced": sizes[k - 1]}


def test_rows_check_their_options_against_the_number_of_vectors():
    for method in METHODS.values():
        if method.check is not None:
            method.check(2, **{keyword: option.default for keyword, option in method.options.items()})
    with pytest.raises(ValueError, match="takes two"):
        METHODS["slerp"].check(3, share=0.5)


def test_merged_models_are_whole(vectors):
    """Nothing becomes NaN where one vector is zero in a whole tensor."""
    taus = [{"w": jnp.asarray(vectors[0]), "b": jnp.zeros(3)}, {"w": jnp.asarray(vectors[1]), "b": jnp.ones(3)}]
    for name, method in METHODS.items():
        if method.needs != "nothing":
            continue
        drawn = {"key": jax.random.key(0)} if method.random else {}
        tajax.trees.check_finite(method(jax.tree.map(jnp.zeros_like, taus[0]), taus, **drawn), name)

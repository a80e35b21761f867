"""Core Space: what it loses, which methods see the basis, what the rank does, and what is refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import merging, trees
from tajax.merging import METHODS, PREPARATIONS, core_space
from tajax.merging.svd import singular_values, svd
from tests.merging import spectral


def low_rank(key, *shape, rank=2):
    """A matrix [*L, in, out] as a product of factors of unlike lengths, as training leaves them."""
    *stack, rows, columns = shape
    a, b = jax.random.split(key)
    left, right = jax.random.normal(a, (*stack, rows, rank)), jax.random.normal(b, (*stack, rank, columns))
    scales = 3.0 ** -np.arange(rank)
    return jnp.asarray(np.asarray(left, np.float64) * scales @ np.asarray(right, np.float64))


def vectors(key, tasks=3, rank=2):
    """As of adapters: stacked and single matrices of low rank, and what adapters leave alone."""
    keys = jax.random.split(key, (tasks, 3))
    return [
        {
            "blocks": {"attn": {"kernel": low_rank(a, 2, 12, 9, rank=rank), "bias": jnp.zeros((2, 9))}},
            "projection": {"kernel": low_rank(b, 10, 14, rank=rank)},
            "scale": jax.random.normal(c, (5,)),
        }
        for a, b, c in keys
    ]


def zeros(tau):
    return jax.tree.map(jnp.zeros_like, tau)


def assert_near(got, want, share=1e-5):
    for path, leaf in trees.flatten_paths(want).items():
        np.testing.assert_allclose(
            trees.flatten_paths(got)[path], leaf, rtol=0, atol=share * max(1, np.abs(leaf).max()), err_msg=path
        )


@pytest.mark.parametrize(
    ("name", "rank"), [("iso_c", 4), ("star", 0), ("task_arithmetic", 2), ("tsv_m", 4), ("weight_average", 0)]
)
def test_methods_that_see_no_basis_make_the_same_model_in_it(key, name, rank):
    """tsv_m keeps ⌊K/T⌋ = r triplets there, all that there are; the mean of iso_c is of what is not zero."""
    taus = vectors(key)
    theta = jax.tree.map(jnp.ones_like, taus[0])
    scaled = {"scaling_coef": 0.7} if METHODS[name].scaled else {}
    assert_near(core_space(theta, taus, merge=name, rank=rank, **scaled), METHODS[name](theta, taus, **scaled))


def test_iso_c_with_the_mean_of_all_values_is_another_in_the_cores(key):
    """The paper's mean is over min(in, out) values without the cores, and over T r in them: the first is smaller."""
    taus = [{"kernel": low_rank(k, 12, 9)} for k in jax.random.split(key, 3)]
    got = np.linalg.svd(core_space(zeros(taus[0]), taus, merge="iso_c")["kernel"], compute_uv=False)
    values = np.linalg.svd(sum(np.asarray(tau["kernel"], np.float64) for tau in taus), compute_uv=False)
    np.testing.assert_allclose(got, [values.sum() / 6] * 6 + [0] * 3, atol=1e-4)
    assert values.mean() < 0.7 * got[0]


@pytest.mark.parametrize("name", ["iso_cts", "ties", "wudi"])
def test_methods_that_see_the_basis_merge_the_cores_of_the_oracle(key, name, x64):
    """Of lower rank than the sides, stacked layers each in their own bases; without cores it is another model."""
    taus = jax.tree.map(np.asarray, vectors(key))
    seen = []

    def oracle(small):
        nested = list(map(trees.unflatten_paths, small))
        seen.append({path: leaf.shape for path, leaf in small[0].items()})
        merged = METHODS[name](jax.tree.map(np.zeros_like, nested[0]), nested)
        return {path: np.asarray(leaf) for path, leaf in trees.flatten_paths(merged).items()}

    flat = list(map(trees.flatten_paths, taus))
    want = spectral.in_core_space(oracle, rank=2)({path: np.zeros_like(leaf) for path, leaf in flat[0].items()}, flat)
    got = core_space(jax.tree.map(np.zeros_like, taus[0]), taus, merge=name)
    assert_near(got, trees.unflatten_paths(want), share=1e-7)
    assert seen[0]["blocks/attn/kernel"] == (2, 6, 6) and seen[0]["projection/kernel"] == (6, 6)
    plain = METHODS[name](jax.tree.map(np.zeros_like, taus[0]), taus)["projection"]["kernel"]
    assert np.linalg.norm(plain - got["projection"]["kernel"]) > 0.01 * np.linalg.norm(plain)


def test_a_function_sees_cores_and_gives_back_what_they_were(key):
    """One that takes a single task gives its vector back: nothing of any task lies outside of the bases."""
    taus, seen = vectors(key), []

    def one(pretrained, taus, *, task):
        seen.append([trees.flatten_paths(pretrained), trees.flatten_paths(taus[task])])
        return taus[task]

    for task, tau in enumerate(taus):
        assert_near(core_space(zeros(tau), taus, merge=one, task=task), tau)
        assert not np.any(seen[-1][0]["projection/kernel"])  # θ₀ is zero there
    assert seen[0][1]["projection/kernel"].shape == (6, 6) and seen[0][1]["blocks/attn/kernel"].shape == (2, 6, 6)
    np.testing.assert_array_equal(seen[0][1]["scale"], taus[0]["scale"])


def shapes_of_cores(taus, **options):
    seen = {}

    def look(pretrained, taus):
        seen.update((path, np.shape(leaf)) for path, leaf in trees.flatten_paths(taus[0]).items())
        return taus[0]

    core_space(zeros(taus[0]), taus, merge=look, **options)
    return seen


@pytest.mark.parametrize(
    ("rank", "attention", "projection"), [(0, (6, 6), (6, 6)), (3, (9, 9), (9, 9)), (4, (12, 9), (10, 12))]
)
def test_bases_have_as_many_columns_as_tasks_times_rank_or_the_side(key, rank, attention, projection):
    found = shapes_of_cores(vectors(key), rank=rank)
    assert (found["blocks/attn/kernel"], found["projection/kernel"]) == ((2, *attention), projection)


def test_the_rank_that_is_found_is_the_largest_of_a_task_and_a_layer(key):
    a, b, c = jax.random.split(key, 3)
    taus = [
        {"blocks": {"kernel": low_rank(a, 2, 12, 9, rank=3).at[0].set(low_rank(c, 12, 9, rank=1))}},
        {"blocks": {"kernel": low_rank(b, 2, 12, 9, rank=1)}},
    ]
    assert shapes_of_cores(taus)["blocks/kernel"] == (2, 6, 6)
    got = core_space(zeros(taus[0]), taus, merge="tsv_m")  # keeps ⌊6/2⌋ of the first, not ⌊(3 + 1)/2⌋
    assert_near(got, METHODS["tsv_m"](zeros(taus[0]), taus), share=1e-4)


def test_rounding_of_the_model_counts_to_no_rank(key):
    """A vector is the difference of two models in float32: what that leaves beside the product is left out."""
    k, *keys = jax.random.split(key, 4)
    theta = {"kernel": jax.random.normal(k, (40, 30))}
    products = [0.02 * low_rank(k, 40, 30) for k in keys]
    taus = [{"kernel": (theta["kernel"] + product) - theta["kernel"]} for product in products]
    assert np.linalg.matrix_rank(np.asarray(taus[0]["kernel"], np.float64)) == 30
    assert shapes_of_cores(taus)["kernel"] == (6, 6)
    assert_near(core_space(zeros(theta), taus, merge="task_arithmetic"), {"kernel": sum(products)}, share=1e-5)


def test_tasks_that_share_their_factors_share_a_basis(key):
    """As the vectors of L-LoRA, with one A for all: columns of the basis that no task has are zero, not noise."""
    a, *keys = jax.random.split(key, 4)
    shared = jax.random.normal(a, (12, 2))
    taus = [{"kernel": shared @ jax.random.normal(k, (2, 9))} for k in keys]
    seen = []

    def total(pretrained, taus):
        seen.extend(tau["kernel"] for tau in taus)
        return merging.task_arithmetic(pretrained, taus)

    assert_near(core_space(zeros(taus[0]), taus, merge=total), merging.task_arithmetic(zeros(taus[0]), taus))
    assert all(core.shape == (6, 6) and not np.any(core[2:]) for core in seen)
    got = core_space(zeros(taus[0]), taus, merge="iso_c")
    assert_near(got, METHODS["iso_c"](zeros(taus[0]), taus), share=1e-4)


@pytest.mark.parametrize("name", ["ties", "tsv_m"])
def test_layers_are_merged_one_by_one(key, name):
    """With options under which no entry's rank in the whole vector matters."""
    options = {"density": 1.0} if name == "ties" else {}
    taus = [{"blocks": {"kernel": low_rank(k, 3, 7, 6)}} for k in jax.random.split(key, 2)]
    got = core_space(zeros(taus[0]), taus, merge=name, rank=2, **options)["blocks"]["kernel"]
    for layer, kernel in enumerate(got):
        alone = [{"kernel": tau["blocks"]["kernel"][layer]} for tau in taus]
        want = core_space(zeros(alone[0]), alone, merge=name, rank=2, **options)["kernel"]
        np.testing.assert_allclose(kernel, want, atol=1e-5)
    other = core_space(zeros(taus[0]), taus, merge="task_arithmetic", stacked=None)["blocks"]["kernel"]
    np.testing.assert_allclose(other, sum(tau["blocks"]["kernel"] for tau in taus), atol=1e-5)  # no matrix at all


def test_a_core_is_always_a_matrix_to_the_method_within(key):
    """Of one row it would be none, and be averaged: here a task alone has rank 1, and one of two tasks has nothing."""
    tau = {"kernel": low_rank(key, 6, 5, rank=1)}
    one = core_space(zeros(tau), [tau], merge="tsv_m")
    assert_near(one, tau)
    two = core_space(zeros(tau), [tau, zeros(tau)], merge="tsv_m")
    assert_near(two, tau)


def test_what_is_frozen_stays_to_the_bit(key):
    theta = {"blocks": {"kernel": jax.random.normal(key, (2, 6, 5))}, "kernel": jnp.full((5, 6), 0.3, jnp.bfloat16)}
    moves = {"blocks": {"kernel": low_rank(key, 2, 6, 5).at[1].set(0)}, "kernel": jnp.zeros((5, 6))}
    got = core_space(theta, [moves, zeros(moves)], merge="iso_c")
    np.testing.assert_array_equal(got["kernel"], theta["kernel"])
    np.testing.assert_array_equal(got["blocks"]["kernel"][1], theta["blocks"]["kernel"][1])
    moved = got["blocks"]["kernel"][0]
    assert got["kernel"].dtype == jnp.bfloat16 and np.isfinite(moved).all()
    assert np.abs(moved - theta["blocks"]["kernel"][0]).max() > 0.01


def test_one_program_serves_every_coefficient_and_is_what_is_found_without(key):
    taus, traces = vectors(key), []

    def method(pretrained, taus, **options):
        traces.append(options)
        return core_space(pretrained, taus, **options)

    merge = merging.compiled(method, merge="ties", rank=2, density=0.3)
    for coef in (0.5, -1.0):
        want = core_space(zeros(taus[0]), taus, merge="ties", density=0.3, scaling_coef=coef)
        assert_near(merge(zeros(taus[0]), taus, scaling_coef=coef), want)
    assert len(traces) == 1
    constants = jax.jit(lambda coef: core_space(zeros(taus[0]), taus, merge="ties", scaling_coef=coef))
    assert_near(constants(0.5), core_space(zeros(taus[0]), taus, merge="ties", scaling_coef=0.5))  # values are known


def test_it_merges_what_was_prepared(key):
    """What is trimmed has full rank, which is found of the trimmed vectors."""
    taus = vectors(key)
    method = merging.compose(PREPARATIONS["trim"], METHODS["core_space"])
    assert method.eager and method.affine
    want = core_space(zeros(taus[0]), PREPARATIONS["trim"](taus))
    assert_near(method(zeros(taus[0]), taus), want)


def test_a_rank_that_loses_is_refused_and_under_jit_gives_no_number(key):
    taus = vectors(key, rank=3)
    taus[1]["blocks"]["attn"]["kernel"] = taus[1]["blocks"]["attn"]["kernel"].at[0].multiply(1e-3)
    with pytest.raises(ValueError, match=r"rank is 2, .* leave out 0\.\d+ of the norm of blocks/attn/kernel, layer \d"):
        core_space(zeros(taus[0]), taus, rank=2, merge="task_arithmetic")
    for tau in taus:
        tau["blocks"]["attn"]["kernel"] = jnp.zeros((2, 12, 9)).at[1].set(low_rank(key, 12, 9))
    message = (
        "leave out .* of projection/kernel in task vector . Matrices of projection/kernel have rank 3. Give rank=0"
    )
    with pytest.raises(ValueError, match=re.compile(message.replace("vector .", r"vector \d\."))):
        core_space(zeros(taus[0]), taus, rank=2)
    got = jax.jit(functools.partial(core_space, rank=2))(zeros(taus[0]), taus)
    assert np.isnan(got["projection"]["kernel"]).all() and not np.isnan(got["blocks"]["attn"]["kernel"]).any()


def test_what_one_loses_where_a_basis_is_complete_is_nothing(key):
    """Rank 3 of 4 tasks fills both sides, though each task has rank 6."""
    taus = [{"kernel": low_rank(k, 8, 7, rank=6)} for k in jax.random.split(key, 4)]
    got = core_space(zeros(taus[0]), taus, merge="task_arithmetic", rank=3)
    assert_near(got, merging.task_arithmetic(zeros(taus[0]), taus))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge": "dare"}, "merge is 'dare', want a function or one of 'iso_c', .*'wudi'"),
        ({"rank": -1}, "rank is .* 0, which finds it; got -1"),
        ({"merge": "tsv_m", "fused": True}, "fused makes one matrix of query, key and value"),
        ({"density": 0.0}, "density is the share"),
    ],
)
def test_options_that_are_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        core_space({"kernel": jnp.ones((2, 2))}, [{"kernel": jnp.ones((2, 2))}], **options)


def test_under_jit_the_rank_must_be_given():
    theta = {"layer": {"kernel": jnp.ones((2, 2))}, "bias": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"under `jit` layer/kernel has none. Give rank=16, say"):
        merging.compiled(METHODS["core_space"])(theta, [theta])
    merging.compiled(METHODS["core_space"])({"bias": jnp.ones(2)}, [{"bias": jnp.ones(2)}])  # nothing has a rank


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 5)])
def test_singular_values_are_those_of_the_triplets(key, shape):
    matrices = jax.random.normal(key, shape)
    np.testing.assert_allclose(singular_values(matrices), svd(matrices).values, rtol=1e-5)

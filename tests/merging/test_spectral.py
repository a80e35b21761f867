"""Methods that see spectra: cases by hand, and the laws of singular values, of layers, and of what is not there."""

import functools
import inspect
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import merging, trees
from tajax.merging import METHODS, svd
from tajax.merging.matrices import map_matrices
from tajax.merging.wrapped import Wrapped
from tests.merging import spectral

SPECTRAL = ("cart", "iso_c", "iso_cts", "star", "svc", "tsv_m", "wudi")
FUSED = tuple(name for name in SPECTRAL if "fused" in METHODS[name].options)
RANDOMIZED = tuple(name for name in SPECTRAL if "svd" in METHODS[name].options)


@functools.cache
def program(name, **options):
    return merging.compiled(METHODS[name], **options)


def draw(key, *shape):
    return jax.random.normal(key, shape)


def merged(name, kernels, **options):
    """What a method makes of matrices [T, in, out], as if θ₀ were zero."""
    kernels = jnp.asarray(kernels, jnp.float32)
    model = program(name, **options)({"kernel": jnp.zeros(kernels.shape[1:])}, [{"kernel": k} for k in kernels])
    return np.asarray(model["kernel"], np.float64)


def values_of(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


def with_values(key, values, rows, columns):
    left, right = (
        jnp.linalg.qr(draw(k, n, len(values)))[0] for k, n in zip(jax.random.split(key), (rows, columns), strict=True)
    )
    return (left * jnp.asarray(values)[None, :]) @ right.T


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 6, 3), (2, 3, 3, 7)])
def test_triplets_make_up_the_matrix(key, shape):
    matrix = draw(key, *shape)
    found = svd.svd(matrix)
    identity = np.broadcast_to(np.eye(min(shape[-2:])), (*shape[:-2], *[min(shape[-2:])] * 2))
    np.testing.assert_allclose(svd.compose(*found), matrix, atol=1e-5)
    np.testing.assert_allclose(found.left.swapaxes(-1, -2) @ found.left, identity, atol=1e-5)
    np.testing.assert_allclose(found.right @ found.right.swapaxes(-1, -2), identity, atol=1e-5)
    np.testing.assert_allclose(found.values, np.linalg.svd(np.asarray(matrix), compute_uv=False), rtol=1e-5)


SPECTRA = {
    "0.9^i": (0.9 ** np.arange(1, 121), 1e-6),
    "1/i": (1 / np.arange(1, 121), 1e-4),
    "1/√i": (np.arange(1, 121) ** -0.5, 1e-3),
    "noise": (None, 5e-3),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rank", [1, 8, 30])
def test_the_error_of_subspace_iteration_is_what_the_docstring_says(key, spectrum, rank):
    values, bound = SPECTRA[spectrum]
    for rows, columns in ((160, 120), (120, 160)):
        matrix = draw(key, rows, columns) if values is None else with_values(key, values, rows, columns)
        left_over = [
            float(jnp.linalg.norm(matrix - svd.compose(*svd.leading(matrix, rank, algorithm))))
            for algorithm in get_args(svd.Algorithm)
        ]
        assert left_over[1] <= left_over[0] * (1 + bound + 1e-6)  # and rounding


def test_subspace_iteration_gives_the_same_triplets_again_alone_and_among_others(key):
    matrices = draw(key, 3, 60, 80)
    together = svd.leading(matrices, 4, "randomized")
    for matrix, *parts in zip(matrices, *together, strict=True):
        again = svd.leading(matrix, 4, "randomized")
        np.testing.assert_array_equal(again.values, svd.leading(matrix, 4, "randomized").values)
        np.testing.assert_allclose(svd.compose(*parts), svd.compose(*again), atol=1e-4)
    whole = svd.leading(matrices[0], 50, "randomized")  # no less than everything is followed: exact then
    np.testing.assert_array_equal(whole.values, svd.leading(matrices[0], 50).values)


def test_an_orthogonal_factor_keeps_what_is_there_alone(key):
    matrix = with_values(key, [3.0, 2.0, 1e-3], 6, 4)
    factor = np.asarray(svd.orthogonal_factor(matrix))
    np.testing.assert_allclose(values_of(factor), [1, 1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(factor, spectral.orthogonal(np.asarray(matrix, np.float64)), atol=1e-3)
    np.testing.assert_array_equal(svd.orthogonal_factor(jnp.zeros((3, 2))), np.zeros((3, 2)))


@pytest.mark.parametrize("name", SPECTRAL)
def test_nothing_that_is_frozen_moves_and_nothing_is_not_a_number(key, name):
    """In matrices that are frozen for all, θ₀ stays to the bit, as in attention-only vectors; a task may lack any."""
    keys, shape = iter(jax.random.split(key, 9)), (2, 5, 4)
    theta = {"blocks": {"a": {"kernel": draw(next(keys), *shape)}, "b": {"kernel": draw(next(keys), *shape)}}}
    theta["kernel"] = draw(next(keys), 4, 3).astype(jnp.bfloat16)
    still = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), theta)
    taus = []
    for _ in range(2):
        moves = draw(next(keys), *shape).at[1].set(0)
        taus.append(trees.unflatten_paths(trees.flatten_paths(still) | {"blocks/a/kernel": moves}))
    got = program(name)(theta, [*taus, still])
    np.testing.assert_array_equal(got["blocks"]["b"]["kernel"], theta["blocks"]["b"]["kernel"])
    np.testing.assert_array_equal(got["blocks"]["a"]["kernel"][1], theta["blocks"]["a"]["kernel"][1])
    np.testing.assert_array_equal(got["kernel"], theta["kernel"])
    moved = got["blocks"]["a"]["kernel"][0]
    assert np.isfinite(moved).all() and np.abs(moved - theta["blocks"]["a"]["kernel"][0]).max() > 0.1


@pytest.mark.parametrize("name", SPECTRAL)
def test_vectors_of_low_rank_stay_in_their_directions(key, name):
    """Of LoRA's vectors nothing comes from singular vectors that belong to zeros."""
    keys = jax.random.split(key, 6)
    kernels = jnp.stack([draw(a, 20, 2) @ draw(b, 2, 14) for a, b in zip(keys[:3], keys[3:], strict=True)])
    got = merged(name, kernels)
    assert np.isfinite(got).all()
    for wide, matrix in ((np.concatenate(kernels, axis=1), got), (np.concatenate(kernels, axis=0).T, got.T)):
        span = np.linalg.svd(np.asarray(wide, np.float64))[0][:, :6]
        np.testing.assert_allclose(span @ (span.T @ matrix), matrix, atol=2e-4 * np.abs(got).max())
    assert values_of(got)[2] > 1e-2 and values_of(got)[6] < 1e-4 * values_of(got)[0]


@pytest.mark.parametrize("name", SPECTRAL)
def test_layers_are_merged_one_by_one(key, name):
    taus = [{"blocks": {"kernel": draw(k, 3, 5, 4)}} for k in jax.random.split(key, 2)]
    theta = {"blocks": {"kernel": jnp.zeros((3, 5, 4))}}
    got = program(name)(theta, taus)["blocks"]["kernel"]
    for layer, kernel in enumerate(got):
        np.testing.assert_allclose(kernel, merged(name, [tau["blocks"]["kernel"][layer] for tau in taus]), atol=1e-5)
    averaged = program(name, stacked=None)(theta, taus)["blocks"][
        "kernel"
    ]  # three axes without layers are a convolution
    want = sum if name == "svc" else lambda kernels: sum(kernels) / 2
    np.testing.assert_allclose(averaged, want([tau["blocks"]["kernel"] for tau in taus]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FUSED)
def test_fused_they_are_one_matrix_side_by_side_as_open_clip_has_them(key, name):
    kernels = draw(key, 3, 3, 6, 4)  # of three tasks three each
    apart = [
        {"attn": {part: {"kernel": kernel} for part, kernel in zip(("key", "query", "value"), task, strict=True)}}
        for task in kernels
    ]
    parts = ("query", "key", "value")
    joined = jnp.stack([jnp.concatenate([tau["attn"][part]["kernel"] for part in parts], axis=1) for tau in apart])
    theta = jax.tree.map(jnp.zeros_like, apart[0])
    as_one, as_three = (program(name, fused=fused)(theta, apart)["attn"] for fused in (True, False))
    got = jnp.concatenate([as_one[part]["kernel"] for part in parts], axis=1)
    np.testing.assert_allclose(got, merged(name, joined), atol=1e-4)
    three = jnp.concatenate([as_three[part]["kernel"] for part in parts], axis=1)
    assert np.abs(three - got).max() > 0.01
    by_default = program(name)(theta, apart)["attn"]
    np.testing.assert_array_equal(by_default["query"]["kernel"], as_three["query"]["kernel"])


@pytest.mark.parametrize("name", RANDOMIZED)
def test_leading_triplets_by_iteration_make_nearly_the_same_model(key, name):
    kernels = [with_values(k, 0.9 ** np.arange(60), 80, 60) for k in jax.random.split(key, 3)]
    exact, randomized = (merged(name, kernels, svd=algorithm) for algorithm in get_args(svd.Algorithm))
    assert np.linalg.norm(randomized - exact) < 1e-3 * np.linalg.norm(exact)


def test_the_projection_of_the_text_tower_is_averaged_and_others_are_not(key):
    paths = ("image/projection/kernel", "text/projection/kernel", "text_projection/kernel", "context/projection/kernel")
    taus = [trees.unflatten_paths({path: draw(k, 4, 4) for path in paths}) for k in jax.random.split(key, 2)]
    theta = jax.tree.map(jnp.zeros_like, taus[0])
    for name in ("iso_c", "iso_cts", "tsv_m"):
        for options, averaged in (({}, paths[1:3]), ({"exclude": ""}, ()), ({"exclude": "projection/.*"}, paths[:2])):
            got = trees.flatten_paths(program(name, **options)(theta, taus))
            means = {path: np.mean([trees.flatten_paths(tau)[path] for tau in taus], axis=0) for path in paths}
            found = [path for path in paths if np.allclose(got[path], means[path], atol=1e-6)]
            assert set(averaged) <= set(found) and (options.get("exclude") or found == list(averaged))


@pytest.mark.parametrize("name", SPECTRAL)
def test_what_is_no_matrix_is_averaged_or_left_to_the_method_within(key, name):
    shapes = {"bias": (3,), "patch_embedding/kernel": (2, 2, 3, 4), "position_embedding": (5, 4), "scale": ()}
    taus = [trees.unflatten_paths({p: draw(k, *s) for p, s in shapes.items()}) for k in jax.random.split(key, 4)]
    got = program(name)(jax.tree.map(jnp.zeros_like, taus[0]), taus)
    factor = 1 if name == "svc" else 1 / 4  # the sum, of task arithmetic within
    jax.tree.map(lambda a, *b: np.testing.assert_allclose(a, factor * sum(b), rtol=1e-5, atol=1e-6), got, *taus)


@pytest.mark.parametrize("name", SPECTRAL)
def test_one_vector_and_the_same_vector_three_times(key, name):
    """Nobody is to be merged with; then all agree. A method that counts agreement once has the same model."""
    kernel = draw(key, 6, 5)
    one, three = (merged(name, [kernel] * tasks) for tasks in (1, 3))
    flat = values_of(kernel).mean() * spectral.orthogonal(np.asarray(kernel, np.float64))
    want = {
        "cart": (kernel, kernel),
        "iso_c": (flat, 3 * flat),
        "iso_cts": (flat, None),
        "star": (spectral.star([kernel], 0.4), spectral.star([kernel], 0.4)),
        "svc": (kernel, kernel),
        "tsv_m": (kernel, spectral.low_rank(np.asarray(kernel, np.float64), 1)),
        "wudi": (kernel, None),
    }[name]
    for got, wanted in zip((one, three), want, strict=True):
        if wanted is not None:
            np.testing.assert_allclose(got, wanted, atol=1e-4)  # the smallest value of the matrix is 0.017
    if name == "wudi":  # a ridge draws towards three of them
        np.testing.assert_allclose(merged(name, [kernel] * 3, ridge=0.0), kernel, atol=1e-4)


def test_the_spectra_are_what_the_methods_are_named_for(key):
    kernels = np.asarray(draw(key, 3, 9, 12))
    whole = values_of(kernels.sum(0))
    np.testing.assert_allclose(values_of(merged("iso_c", kernels)), whole.mean(), rtol=1e-5)
    both = values_of(merged("iso_cts", kernels, common=0.6))
    np.testing.assert_allclose(both, both[0], rtol=1e-5)
    np.testing.assert_allclose(merged("iso_cts", kernels, common=1.0), merged("iso_c", kernels), atol=1e-5)
    np.testing.assert_allclose(merged("star", kernels, share=1.0), kernels.mean(0), atol=1e-5)
    one = values_of(merged("star", kernels[:1], share=0.5))
    assert one[-1] < 1e-5 < one[0]
    np.testing.assert_allclose(one.sum(), values_of(kernels[0]).sum(), rtol=1e-5)  # the nuclear norm is kept
    leading = np.concatenate([values_of(kernel)[:3] for kernel in kernels])
    np.testing.assert_allclose(values_of(merged("tsv_m", kernels)), sorted(leading)[::-1], rtol=1e-5)
    np.testing.assert_allclose(merged("cart", kernels, rank=1.0), kernels.mean(0), atol=1e-5)


def test_tasks_that_do_not_meet_are_added(key):
    """In inputs and outputs of their own, tasks cannot disturb one another: the sum has all of each."""
    kernels = np.zeros((2, 8, 6))
    kernels[0, :4, :3], kernels[1, 4:, 3:] = draw(key, 2, 4, 3)
    for name in ("tsv_m", "wudi"):
        np.testing.assert_allclose(merged(name, kernels), kernels.sum(0), atol=1e-5)
    half = merged("svc", kernels)  # of each direction s is 1 for one, and α = 1/2 for the other: γ = 2 / 1.5
    np.testing.assert_allclose(half, kernels.sum(0) * 4 / 3, atol=1e-5)


def test_more_tasks_than_singular_values_keep_one_each():
    """Twice (1, 0) and once (0, 1): columns (1, 0) / √2 are orthonormal rows, so the first is averaged, 2 · 3 / 2."""
    kernels = [[[3.0, 0.0], [0.0, 0.0]]] * 2 + [[[0.0, 0.0], [0.0, 2.0]]]
    np.testing.assert_allclose(merged("tsv_m", kernels), [[3, 0], [0, 2]], atol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("weights", ["norm", "one"])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_wudi_is_a_stationary_point_of_what_it_minimises(key, x64, shape, weights, ridge):
    taus = [{"kernel": draw(k, *shape)} for k in jax.random.split(key, 2)]
    got = METHODS["wudi"]({"kernel": jnp.zeros(shape)}, taus, weights=weights, ridge=ridge)["kernel"]
    total = sum(tau["kernel"] for tau in taus)
    lengths = [jnp.sum(tau["kernel"] ** 2) if weights == "norm" else 1 for tau in taus]
    gram = sum(tau["kernel"] @ tau["kernel"].T / n for tau, n in zip(taus, lengths, strict=True))
    rho = ridge * jnp.trace(gram) / shape[0]

    def disturbance(kernel):  # in the paper's orientation, [out, in]
        each = [tau["kernel"].T for tau in taus]
        terms = [jnp.sum(((kernel.T - d) @ d.T) ** 2) / n for d, n in zip(each, lengths, strict=True)]
        return sum(terms) + rho * jnp.sum((kernel - total) ** 2)

    np.testing.assert_allclose(jax.grad(disturbance)(got), np.zeros(shape), atol=1e-9)
    if not ridge:
        cubes = sum(t["kernel"] @ t["kernel"].T @ t["kernel"] / n for t, n in zip(taus, lengths, strict=True))
        np.testing.assert_allclose(np.linalg.solve(gram + 1e-8 * np.eye(shape[0]), cubes), got, atol=1e-4)


def test_wudi_stays_near_the_sum_where_equations_are_as_many_as_unknowns(key):
    """Of T = 4 tasks in the second layer of an MLP T · out = in: without a ridge noise is inverted."""
    kernels = jnp.stack([draw(k, 48, 12) for k in jax.random.split(key, 4)])
    length = np.linalg.norm(kernels.sum(0))
    assert np.linalg.norm(merged("wudi", kernels, ridge=0.0)) > 5 * length
    assert np.linalg.norm(merged("wudi", kernels)) < 1.5 * length
    np.testing.assert_allclose(merged("wudi", kernels, ridge=1e6), kernels.sum(0), atol=1e-4)


@pytest.mark.parametrize("name", get_args(Wrapped))
def test_svc_calibrates_what_any_method_makes(key, name):
    kernels = draw(key, 3, 6, 5)
    theta, taus = {"kernel": draw(key, 6, 5), "bias": jnp.ones(5)}, [{"kernel": k, "bias": k[0]} for k in kernels]
    method = METHODS[name]
    within = method(jax.tree.map(jnp.zeros_like, theta), taus)
    floor = 1 if name == "tsv_m" else 1 / 3
    want = spectral.calibrated(np.asarray(within["kernel"], np.float64).T, np.asarray(kernels.swapaxes(1, 2)), floor).T
    for merge in (name, method, method.merge):
        options = {} if isinstance(merge, str) else {"floor": floor}
        got = METHODS["svc"](theta, taus, merge=merge, scaling_coef=0.5, **options)
        if name.startswith("iso"):  # any orthonormal vectors are singular vectors of theirs: each basis has its γ
            assert np.isfinite(got["kernel"]).all()
        else:
            np.testing.assert_allclose(got["kernel"], theta["kernel"] + 0.5 * want, atol=2e-3 * np.abs(want).max())
        np.testing.assert_allclose(got["bias"], theta["bias"] + 0.5 * within["bias"], atol=1e-5)


def test_svc_takes_functions_with_keys_and_hands_on_options(key):
    theta, taus = {"kernel": jnp.ones((4, 4))}, [{"kernel": draw(k, 4, 4)} for k in jax.random.split(key, 2)]
    drawn = functools.partial(METHODS["dare"], key=key, drop_rate=0.5)
    got = METHODS["svc"](theta, taus, merge=drawn)["kernel"]
    assert np.isfinite(got).all() and np.abs(got - theta["kernel"]).max() > 0.1
    sparse, dense = (METHODS["svc"](theta, taus, merge="ties", density=d)["kernel"] for d in (0.2, 1.0))
    assert np.abs(sparse - dense).max() > 0.1
    bound = functools.partial(METHODS["ties"], density=0.2)
    np.testing.assert_allclose(METHODS["svc"](theta, taus, merge=bound)["kernel"], sparse, atol=1e-4)


def test_svc_by_name_takes_methods_that_need_nothing_and_move_along_one_vector():
    for name in get_args(Wrapped):
        assert METHODS[name].affine and not METHODS[name].random and METHODS[name].needs == "nothing"


def test_the_mean_of_cart_stays_whatever_the_coefficient(key):
    kernels = draw(key, 3, 6, 5)
    theta, taus = {"kernel": jnp.zeros((6, 5))}, [{"kernel": kernel} for kernel in kernels]
    at = {coef: program("cart")(theta, taus, scaling_coef=coef)["kernel"] for coef in (0.0, 0.5, 1.0)}
    np.testing.assert_allclose(at[0.0], kernels.mean(0), atol=1e-6)
    np.testing.assert_allclose(at[0.5], (at[0.0] + at[1.0]) / 2, atol=1e-5)


REFUSED = {
    "star": [({"share": 0}, "share is the share .* got 0"), ({"share": 1.1}, "got 1.1")],
    "cart": [({"rank": 0.0}, "rank is the share .* got 0.0"), ({"svd": "fast"}, "svd is 'fast', want one of 'exact'")],
    "iso_c": [({"exclude": "("}, r"exclude is '\(', which is not a valid regular expression")],
    "iso_cts": [({"common": -0.1}, "common is .* got -0.1"), ({"svd": "fast"}, "svd is 'fast'")],
    "svc": [
        ({"merge": "dare"}, "merge is 'dare', want a function or one of 'iso_c', .*'wudi'"),
        ({"floor": -1.0}, "floor is the least .* got -1.0"),
    ],
    "tsv_m": [({"svd": "fast"}, "svd is 'fast'"), ({"exclude": "("}, "not a valid regular expression")],
    "wudi": [
        ({"weights": "two"}, "weights is 'two', want one of 'norm', 'one'"),
        ({"ridge": -1.0}, "ridge is .* 0 or more; got -1.0"),
        ({"ridge": float("inf")}, "got inf"),
    ],
}


@pytest.mark.parametrize("name", SPECTRAL)
def test_options_that_are_out_of_range_are_refused(name):
    for options, message in REFUSED[name]:
        with pytest.raises(ValueError, match=message):
            METHODS[name]({"kernel": jnp.ones((2, 2))}, [{"kernel": jnp.ones((2, 2))}], **options)


def test_matrices_are_made_without_a_copy_for_each_layer_at_once():
    """What `matrix` needs beside the vectors is there for one layer at a time: nothing in it has an axis of layers."""
    taus = [{"blocks": {"kernel": jnp.ones((5, 3, 4))}}] * 2
    seen = []

    def matrix(kernels):
        seen.append(kernels.shape)
        return kernels[0] @ kernels[0].T @ kernels[1]

    got = map_matrices(matrix, lambda leaf: leaf[0], taus)
    assert set(seen) == {(2, 3, 4)} and got["blocks"]["kernel"].shape == (5, 3, 4)
    np.testing.assert_array_equal(got["blocks"]["kernel"], 12.0)


def test_every_spectral_row_has_its_options_in_the_function():
    for name in SPECTRAL:
        assert METHODS[name].layered and "stacked" in inspect.signature(METHODS[name].merge).parameters

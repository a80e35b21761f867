import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax.ntk import make_ntk, project_outputs
from tajax.ntk.kernel import _bytes, _sizes, _strip, gradient_bytes, trained_outputs

from .conftest import mlp, mlp_params


@pytest.fixture
def setting(key, x64):
    """Parameters and two sets of inputs, in double precision."""
    k1, k2, k3 = jax.random.split(key, 3)
    return mlp_params(k1, jnp.float64), *(jax.random.normal(k, (n, 3), jnp.float64) for k, n in ((k2, 6), (k3, 4)))


def explicit_kernel(params, x1, x2, mask=None):
    """Θ [M, N, E, E] by writing the whole Jacobian down."""

    jacrev = jax.jit(jax.jacrev(mlp))

    def jacobian(x):
        leaves = jax.tree.leaves(jacrev(params, x))
        kept = jax.tree.leaves(mask) if mask else [True] * len(leaves)
        rows = [leaf.reshape(*leaf.shape[:2], -1) for leaf, keep in zip(leaves, kept, strict=True) if keep]
        return np.concatenate(rows, axis=-1)

    return np.einsum("mep,nfp->mnef", jacobian(x1), jacobian(x2))


@pytest.mark.parametrize(
    ("rule", "output", "kept"),
    [("all", "full", "mnef->mnef"), ("attention", "trace", "mnee->mn"), ("attention", "diagonal", "mnee->mne")],
)
def test_the_kernel_is_the_product_of_explicit_jacobians(setting, rule, output, kept):
    params, x1, x2 = setting
    mask = tajax.param_mask(params, rule)
    got = tajax.empirical_ntk(mlp, params, x1, x2, mask=mask, output=output)
    np.testing.assert_allclose(got, np.einsum(kept, explicit_kernel(params, x1, x2, mask)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("output", "batch_size"), [("trace", 2), ("trace", 99), ("diagonal", 3), ("full", 3)])
def test_the_kernel_of_one_set_is_symmetric_positive_and_blind_to_batching(setting, output, batch_size):
    params, x, _ = setting
    kept = {"trace": "mnee->mn", "diagonal": "mnee->emn", "full": "mnef->menf"}[output]
    size = 12 if output == "full" else 6
    kernel = np.asarray(tajax.empirical_ntk(mlp, params, x, output=output, batch_size=batch_size))
    order = {"trace": (0, 1), "diagonal": (2, 0, 1), "full": (0, 2, 1, 3)}[output]
    want = np.einsum(kept, explicit_kernel(params, x, x)).reshape(-1, size, size)
    matrices = np.transpose(kernel, order).reshape(want.shape)
    np.testing.assert_allclose(matrices, want, rtol=1e-10, atol=1e-12)
    for matrix in matrices:
        np.testing.assert_array_equal(matrix, matrix.T)  # to the last bit
        assert np.linalg.eigvalsh(matrix).min() > -1e-12 * np.trace(matrix)


@pytest.mark.parametrize(("output", "fit"), [("trace", 2), ("diagonal", 5)])
def test_the_kernel_is_blind_to_the_memory_for_gradients(setting, output, fit):
    """With memory for two gradients, one row and one column at a time; and for five of six."""
    params, x1, x2 = setting
    each = gradient_bytes(*reversed(trained_outputs(mlp, params, None)), x1)
    kept = {"trace": "mnee->mn", "diagonal": "mnee->mne"}[output]
    for others in (None, x2):
        inputs = x1.nbytes if others is None else x1.nbytes + x2.nbytes
        kernel = tajax.empirical_ntk(mlp, params, x1, others, output=output, memory=inputs + fit * each)
        want = np.einsum(kept, explicit_kernel(params, x1, x1 if others is None else x2))
        np.testing.assert_allclose(kernel, want, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="6 inputs takes 1 MiB at least, .* memory is 0 MiB. Give more"):
        tajax.empirical_ntk(mlp, params, x1, output=output, memory=inputs + each)


def test_blocks_keep_as_many_gradients_as_they_may():
    for most in range(2, 40):
        for rows in range(1, 60):
            size, part = _sizes(rows, None, most)
            assert (size, part) == (rows, 1) if rows <= most else size + part <= most and size % part == 0
            for columns in range(1, 60, 7):
                size, part = _sizes(rows, columns, most)
                assert 1 <= size <= rows and 1 <= part <= columns and size + part <= most
                assert size + part == most or part == columns or size < rows or part < most // 8 + 1


def test_a_block_takes_the_memory_that_it_is_sized_by(key):
    """What XLA sets aside for a compiled strip, against the estimate: more by no more than a copy of two leaves."""
    params = [jnp.zeros((128, 128))] * 8

    def model(params, x):
        for weights in params:
            x = jnp.tanh(x @ weights)
        return x

    theta, outputs = trained_outputs(model, params, None)
    each = gradient_bytes(outputs, theta, jnp.zeros((1, 128)))
    assert _bytes(theta) < each < 1.1 * _bytes(theta)
    for size, part in ((14, 2), (28, 4)):
        strip = jax.jit(lambda theta, rows, parts: _strip(outputs, "trace", theta, rows, parts, 1, 3, symmetric=True))
        lowered = strip.lower(theta, jnp.zeros((size, 128)), jnp.zeros((3, part, 128)))
        taken = lowered.compile().memory_analysis().temp_size_in_bytes
        assert 0.9 < taken / ((size + part) * each) < 1.25


def test_the_product_with_a_vector_needs_no_kernel(setting):
    params, x1, x2 = setting
    mask = tajax.param_mask(params, ["query/.*", "scale"])
    v = jnp.sin(jnp.arange(8.0)).reshape(4, 2)
    between = jax.jit(lambda p, x1, v, x2: tajax.ntk_vector_product(mlp, p, x1, v, x2, mask=mask))(params, x1, v, x2)
    want = np.einsum("mnef,nf->me", explicit_kernel(params, x1, x2, mask), v)
    np.testing.assert_allclose(between, want, rtol=1e-10)
    within = jax.jit(lambda p, x, v: tajax.ntk_vector_product(mlp, p, x, v))(params, x2, v)
    np.testing.assert_allclose(within, np.einsum("mnef,nf->me", explicit_kernel(params, x2, x2), v), rtol=1e-10)


def test_the_kernel_of_the_tangent_model_is_the_same_everywhere(setting):
    params, x, _ = setting
    away = jax.tree.map(lambda leaf: leaf + 3, params)
    kernel = tajax.empirical_ntk(tajax.linearize(mlp, params), away, x)
    np.testing.assert_allclose(kernel, tajax.empirical_ntk(mlp, params, x), rtol=1e-11)
    assert not np.allclose(tajax.empirical_ntk(mlp, away, x), kernel, rtol=0.1)


def test_a_model_with_a_known_spectrum():
    """f(x) = xᵀw with orthonormal inputs scaled by s: the kernel is diag(s²)."""
    scales = jnp.array([3.0, 2.0, 1.0])
    kernel = tajax.empirical_ntk(
        lambda p, x: x @ p["w"], {"w": jnp.ones((3, 1)), "unused": jnp.ones(2)}, jnp.diag(scales)
    )
    np.testing.assert_allclose(kernel, np.diag([9.0, 4.0, 1.0]))


def test_low_precision_gradients_are_summed_in_float32(key):
    w, x = jnp.ones((300, 1), jnp.bfloat16), jnp.ones((1, 300), jnp.bfloat16)
    kernel = tajax.empirical_ntk(lambda params, x: x @ params, w, x)
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, [[300]])  # ones summed in bfloat16 stop at 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "sum"}, "output='sum' is unknown; choose one of trace, diagonal, full"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (
            {"memory": 2**20, "output": "full"},
            "memory is for the trace and the diagonal; with",
        ),
        ({"mask": {"w": False}}, "trains no leaf"),
        ({"mask": {"v": True}}, "'w' is in params but not in mask"),
        ({"x2": jnp.ones((0, 2))}, "got 1 and 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tajax.empirical_ntk(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 1))}, jnp.ones((1, 2)), **options)


def test_a_vector_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"v has shape \(1,\), but the outputs it multiplies have shape \(1, 1\)"):
        tajax.ntk_vector_product(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 1))}, jnp.ones((1, 2)), jnp.ones(1))


def test_projected_outputs_estimate_the_trace_without_bias(setting, key):
    params, x, _ = setting
    full = explicit_kernel(params, x, x)
    one = project_outputs(mlp, 2, 1, key)
    direction = project_outputs(lambda _, features: features, 2, 1, key)({}, jnp.eye(2, dtype=jnp.float64))[:, 0]
    np.testing.assert_allclose(
        tajax.empirical_ntk(one, params, x), np.einsum("e,mnef,f->mn", direction, full, direction), rtol=1e-9
    )
    every = project_outputs(mlp, 2, 2, key)
    np.testing.assert_allclose(tajax.empirical_ntk(every, params, x), np.einsum("mnee->mn", full), rtol=1e-9)
    directions = jax.vmap(lambda k: project_outputs(lambda _, f: f, 4, 3, k)({}, jnp.eye(4)))(
        jax.random.split(key, 900)
    )
    mean = np.einsum("kem,kfm->ef", directions, directions) / 900
    np.testing.assert_allclose(mean, np.eye(4), atol=0.06)  # deviation of a mean of 900: below 0.02


def test_long_leaves_are_multiplied_in_parts_that_cover_them(key):
    """Longer than a tile of the CPU by one tile and a rest: the products of whole rows."""
    x = jax.random.normal(key, (3, 3000))
    kernel = tajax.empirical_ntk(lambda params, x: x @ params, jnp.zeros((3000, 1)), x)
    np.testing.assert_allclose(kernel, np.asarray(x, np.float64) @ np.asarray(x, np.float64).T, rtol=1e-4, atol=1e-2)


def test_one_compilation_serves_many_inputs_of_a_shape():
    traces = []

    def model(params, x):
        traces.append(x.shape)
        return x @ params

    kernel = make_ntk(model, jnp.zeros((2, 1)))
    first = kernel(jnp.ones((4, 2)))
    seen = len(traces)
    np.testing.assert_array_equal(kernel(2 * jnp.ones((4, 2))), 4 * first)
    assert len(traces) == seen


def test_more_directions_than_outputs_are_refused(key):
    with pytest.raises(ValueError, match="count is 3, want a number of output directions from 1 to 2"):
        project_outputs(mlp, 2, 3, key)


@pytest.mark.parametrize("output", ["trace", "diagonal", "full"])
@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_the_kernel_of_narrow_parameters_is_float32(key, narrow, output):
    k1, k2 = jax.random.split(key)
    params, x = mlp_params(k1), jax.random.normal(k2, (5, 3))
    low = jax.tree.map(lambda leaf: leaf.astype(narrow), params)
    for others in (None, x[:2].astype(narrow)):
        got = tajax.empirical_ntk(mlp, low, x.astype(narrow), others, output=output)
        want = tajax.empirical_ntk(mlp, params, x, others if others is None else x[:2], output=output)
        assert got.dtype == jnp.float32
        # Products of gradients that were rounded to 8 bits, of a network of three layers.
        np.testing.assert_allclose(got, want, atol=16 * float(jnp.finfo(narrow).eps) * np.abs(want).max())

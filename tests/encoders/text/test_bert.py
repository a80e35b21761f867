"""The encoder against a slow oracle, its independence of padding, and its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax.encoders.text.bert import Bert, Block, Tokens
from tajax.encoders.text.convert import params_from_tensors
from tajax.encoders.text.geometry import BertConfig
from tajax.encoders.text.pooling import MODES
from tajax.trees import flatten_paths
from tests.encoders.text import oracle

LENGTHS = (9, 4, 1, 7)
EVERY = tuple(MODES)


@pytest.fixture(scope="module")
def params(tensors, config):
    return params_from_tensors(tensors, config)[0]


@pytest.fixture(scope="module")
def rows(config):
    random = np.random.default_rng(3)
    return [random.integers(0, config.vocab_size, length) for length in LENGTHS]


def batch(rows, length, *, filling=0):
    """Rows padded to a length with ids that mean nothing."""
    ids = np.full((len(rows), length), filling, np.int32)
    mask = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return Tokens(jnp.asarray(ids), jnp.asarray(mask))


def run(encoder, params, tokens):
    return np.asarray(jax.jit(encoder.apply)({"params": params}, tokens))


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
def test_features_are_the_oracles_in_float64(tensors, rows, config, hidden_act):
    config = BertConfig(**{**vars(config), "hidden_act": hidden_act})
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params_from_tensors(tensors, config)[0])
        ours = run(Bert(config, EVERY, unroll=True), params, batch(rows, 12))
    width = config.hidden_size
    for row, feature in zip(rows, ours, strict=True):
        x = oracle.tokens(tensors, config, row)
        for i, mode in enumerate(EVERY):
            want = oracle.pooled(x, mode)
            np.testing.assert_allclose(feature[i * width : (i + 1) * width], want, atol=1e-12, err_msg=mode)


@pytest.mark.parametrize("pooling", [("mean",), ("cls",), EVERY, ()], ids=len)
def test_padding_changes_nothing_whatever_stands_in_it(params, rows, config, pooling):
    encoder = Bert(config, pooling)
    narrow, wide = (run(encoder, params, batch(rows, n, filling=f)) for n, f in ((9, 0), (9, -7)))
    np.testing.assert_array_equal(narrow, wide)  # the same program on the same numbers
    far = run(encoder, params, batch(rows, 40, filling=10**6))
    for row, near, away in zip(rows, narrow, far, strict=True):
        used = slice(len(row)) if pooling == () else slice(None)
        np.testing.assert_allclose(away[used], near[used], atol=2e-6)  # sums over more zeros, in another order


def test_a_row_of_padding_alone_is_zero_and_has_finite_derivatives(params, rows, config):
    tokens = batch([*rows, np.zeros(0, int)], 9)
    encoder = Bert(config, EVERY)

    def loss(params):
        features = encoder.apply({"params": params}, tokens)
        return jnp.sum(jnp.sin(features)), features

    grads, features = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert not features[-1].any() and np.isfinite(features).all()
    for path, leaf in flatten_paths(grads).items():
        assert np.isfinite(leaf).all(), path
    alone = run(Bert(config, ()), params, tokens)
    assert np.isfinite(alone).all()


def test_no_gradient_reaches_what_stands_in_padding(params, rows, config):
    encoder, tokens = Bert(config, ("mean", "max")), batch(rows, 12, filling=config.vocab_size - 1)
    seen = {int(i) for row in rows for i in row}
    assert config.vocab_size - 1 not in seen
    gradient = jax.grad(lambda params: jnp.sum(encoder.apply({"params": params}, tokens) ** 2))(params)
    embedding = np.abs(gradient["token_embedding"]).sum(-1)
    assert all((embedding[i] > 0) == (i in seen) for i in range(config.vocab_size))
    assert not np.abs(gradient["position_embedding"][max(LENGTHS) :]).any()
    assert not np.abs(gradient["type_embedding"][1:]).any()


def test_derivatives_in_one_direction_are_finite_differences(tensors, rows, config):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params_from_tensors(tensors, config)[0])
        random = np.random.default_rng(8)
        tangent = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), params)
        tokens, encoder = batch(rows, 9), Bert(config, ("mean", "cls", "max"))

        @jax.jit
        def encode(params):
            return encoder.apply({"params": params}, tokens)

        features, pushed = jax.jvp(encode, (params,), (tangent,))
        _, linear = jax.linearize(encode, params)
        _, pull = jax.vjp(encode, params)
        step = 1e-6

        def moved(by):
            return encode(jax.tree.map(lambda p, t: p + by * t, params, tangent))

        difference = (moved(step) - moved(-step)) / (2 * step)
        np.testing.assert_allclose(pushed, difference, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(linear(tangent), pushed, rtol=1e-12, atol=1e-12)
        cotangent = jnp.asarray(random.normal(size=features.shape))
        (pulled,) = pull(cotangent)
        inner = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(pulled), jax.tree.leaves(tangent), strict=True))
        np.testing.assert_allclose(inner, jnp.vdot(cotangent, pushed), rtol=1e-10)


@pytest.mark.parametrize(
    ("how", "depth"),
    [({"unroll": True}, 3), ({"remat": "layers"}, 3), ({"remat": "dots"}, 3), ({"unroll": 2}, 1)],
    ids=str,
)
def test_scanned_unrolled_and_recomputed_layers_are_the_same(params, rows, config, how, depth):
    config = BertConfig(**{**vars(config), "num_hidden_layers": depth})
    params = params | {"blocks": jax.tree.map(lambda leaf: leaf[:depth], params["blocks"])}
    tokens = batch(rows, 9)

    def features_and_gradient(encoder):
        def loss(params):
            features = encoder.apply({"params": params}, tokens)
            return jnp.sum(features**3), features

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    one, other = (features_and_gradient(Bert(config, ("mean",), **k)) for k in ({}, how))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), one, other)


def test_what_a_layer_sows_comes_out(params, rows, config):
    tokens = batch(rows, 9)
    _, sown = Bert(config).apply({"params": params}, tokens, mutable=["intermediates"], capture_intermediates=True)
    (body,), (last,) = (sown["intermediates"]["blocks"][part]["__call__"] for part in ("body", "last"))
    x = sown["intermediates"]["ln_embedding"]["__call__"][0]
    for index, seen in enumerate([*body, last]):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], params["blocks"])
        x = Block(config, None).apply({"params": layer}, x, tokens.mask)
        np.testing.assert_allclose(seen, x, rtol=1e-4, atol=1e-5)


def test_a_narrow_computation_gives_float32_features(params, rows, config):
    wide, narrow = (run(Bert(config, EVERY, dtype), params, batch(rows, 9)) for dtype in (None, jnp.bfloat16))
    assert narrow.dtype == np.float32
    assert 1e-5 < np.abs(wide - narrow).max() < 0.2


@pytest.mark.parametrize(
    ("ids", "mask", "error", "message"),
    [
        (np.zeros((2, 49), int), np.ones((2, 49), bool), ValueError, r"L at most 48, got \[2, 49\]"),
        (np.zeros(3, int), np.ones(3, bool), ValueError, r"shape \[B, L\]"),
        (np.zeros((2, 0), int), np.ones((2, 0), bool), ValueError, r"shape \[B, L\]"),
        (np.zeros((2, 3), int), np.ones((2, 4), bool), ValueError, r"mask must be bool \[2, 3\].*got bool \[2, 4\]"),
        (np.zeros((2, 3), int), np.ones((2, 3), int), ValueError, r"got int32 \[2, 3\]"),
        (np.zeros((2, 3)), np.ones((2, 3), bool), TypeError, "integers, got float32"),
    ],
)
def test_other_tokens_are_refused(params, config, ids, mask, error, message):
    with pytest.raises(error, match=message):
        Bert(config).apply({"params": params}, Tokens(jnp.asarray(ids), jnp.asarray(mask)))

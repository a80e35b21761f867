"""Factors and energies against Jacobians, where they are exact, and against loops over tokens, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import tracing, trees
from tajax.curvature import factors as curvature
from tajax.curvature import penalty
from tajax.curvature.roles import Dense, roles
from tajax.encoders.text.bert import Bert, BertConfig, Tokens
from tajax.encoders.vit.geometry import VitConfig
from tajax.encoders.vit.tower import VisionTransformer
from tajax.models.clip import ImageEncoder, VisionConfig

EXAMPLES, DEPTH = 3, 2


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def clip():
    config = VisionConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        projection_dim=5,
    )
    return ImageEncoder(config), np.random.default_rng(0).normal(size=(EXAMPLES, 8, 8, 3))


def vit():
    config = VitConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        model_type="dinov2_with_registers",
        image_size=12,
        input_size=8,
        patch_size=4,
        layer_scale=0.5,
        num_registers=2,
    )
    return VisionTransformer(config), np.random.default_rng(1).normal(size=(EXAMPLES, 8, 8, 3))


def bert(length=4):
    config = BertConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        max_position_embeddings=6,
    )
    ids = np.random.default_rng(2).integers(0, 300, size=(EXAMPLES, 4))
    mask = np.arange(length) < np.array([[4], [2], [3]])
    return Bert(config), Tokens(np.pad(ids, ((0, 0), (0, length - 4))), mask)


TOWERS = {"clip": clip, "vit": vit, "bert": bert}


def made(module, inputs, seed=7):
    """A pure function and random parameters."""
    one = jax.tree.map(lambda leaf: leaf[:1], inputs)
    shapes = trees.flatten_paths(jax.eval_shape(module.init, jax.random.key(0), one)["params"])
    draw = np.random.default_rng(seed)
    flat = {path: jnp.asarray(0.4 * draw.normal(size=leaf.shape)) for path, leaf in shapes.items()}
    return lambda params, inputs: module.apply({"params": params}, inputs), trees.unflatten_paths(flat)


def whole(apply, params, inputs, cotangents, *, trained=None, stacked="blocks", weights=None):
    paths = list(trees.flatten_paths(params)) if trained is None else trained
    one = jax.tree.map(lambda leaf: leaf[:1], inputs)
    sums = curvature.make_sums(apply, params, one, paths, stacked=stacked)
    weights = jnp.ones(len(cotangents)) if weights is None else weights
    return curvature.mean_of(sums(params, inputs, cotangents, weights))


def every_direction(inputs, width):
    """Each example with √E times each unit vector of the features: their mean of vvᵀ is that of v ~ N(0, I)."""
    count = len(jax.tree.leaves(inputs)[0])
    again = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), width, axis=0), inputs)
    return again, jnp.tile(jnp.sqrt(width) * jnp.eye(width), (count, 1))


def response(apply, params, inputs, tau):
    """J τ, [B, E]; τ by path, zero elsewhere."""
    zeros = {path: jnp.zeros_like(leaf) for path, leaf in trees.flatten_paths(params).items()}
    return _pushed(apply, params, inputs, trees.unflatten_paths(zeros | tau))


@functools.partial(jax.jit, static_argnums=0)
def _pushed(apply, params, inputs, tangent):
    return jax.jvp(lambda params: apply(params, inputs), (params,), (tangent,))[1]


@pytest.mark.parametrize("tower", TOWERS)
def test_a_program_is_what_it_was_and_every_dense_layer_is_seen_with_its_bias(tower):
    module, inputs = TOWERS[tower]()
    apply, params = made(module, inputs)
    found = []
    features = jax.jit(lambda p, x: [found.append(r := tracing.run(apply, p, x)), r[0]][1])(params, inputs)
    seen = found[0][1]
    np.testing.assert_allclose(features, apply(params, inputs), rtol=1e-12)
    paths = trees.flatten_paths(params)
    taken = roles(seen, params, paths, stacked="blocks")
    kernels = {path: DEPTH if "blocks" in path else 1 for path in paths if path.endswith("kernel")}
    assert {one.kernel: one.layers for one in taken.dense} == kernels
    for one in taken.dense:
        bias = one.kernel.replace("kernel", "bias")
        assert one.bias == (bias if bias in paths else None)
        assert (one.inputs, one.outputs) == (np.prod(paths[one.kernel].shape) // one.outputs // one.layers, one.outputs)
    assert set(taken.rows) == ({"token_embedding"} if tower == "bert" else set())
    covered = {part for one in taken.dense for part in (one.kernel, one.bias)} | {*taken.rows, *taken.gram}
    assert covered - {None} == set(paths)


@pytest.mark.parametrize("tower", TOWERS)
def test_full_matrices_are_exact_leaf_by_leaf(tower, rng):
    module, inputs = TOWERS[tower]()
    apply, params = made(module, inputs)
    width = apply(params, inputs).shape[1]
    found = whole(apply, params, *every_direction(inputs, width))
    assert len(found.gram) >= 8
    for path in found.gram:
        shape = trees.flatten_paths(params)[path].shape
        for layer in range(DEPTH if "blocks" in path else 1):
            tau = jnp.asarray(rng(3).normal(size=shape))
            if "blocks" in path:
                tau = tau * (jnp.arange(DEPTH) == layer).reshape(-1, *[1] * (len(shape) - 1))
            want = jnp.mean(jnp.sum(response(apply, params, inputs, {path: tau}) ** 2, axis=1))
            np.testing.assert_allclose(penalty.energies(found, {path: tau})[path], want, rtol=1e-9)


def test_one_token_and_one_example_are_exact_in_every_dense_layer(rng):
    """A = aaᵀ and B = ggᵀ are then no approximation: the last layers of a CLIP have its class token alone."""
    module, inputs = clip()
    apply, params = made(module, inputs)
    one, v = inputs[:1], jnp.asarray(rng(5).normal(size=(1, 5)))
    found = whole(apply, params, one, v)
    checked = 0
    for name, factor in found.kronecker.items():
        if float(factor.tokens[-1]) != 1:
            continue
        tau = {}
        for path in name.split(" + "):
            leaf = trees.flatten_paths(params)[path]
            tau[path] = jnp.asarray(rng(6).normal(size=leaf.shape))
            if "blocks" in path:
                tau[path] = tau[path].at[:-1].set(0)
        want = jnp.sum(response(apply, params, one, tau) * v) ** 2
        np.testing.assert_allclose(penalty.energies(found, tau)[name], want, rtol=1e-9)
        checked += 1
    assert checked == 5  # query, out, fc_in, fc_out, projection


def test_the_output_projection_is_exact_for_all_examples(rng):
    module, inputs = clip()
    apply, params = made(module, inputs)
    found = whole(apply, params, *every_direction(inputs, 5))
    tau = {"projection/kernel": jnp.asarray(rng(8).normal(size=(8, 5)))}
    want = jnp.mean(jnp.sum(response(apply, params, inputs, tau) ** 2, axis=1))
    np.testing.assert_allclose(penalty.energies(found, tau)["projection/kernel"], want, rtol=1e-9)
    np.testing.assert_allclose(found.kronecker["projection/kernel"].outputs[0], np.eye(5), atol=1e-12)


N, K, H, M = 3, 4, 6, 2


def tokens_apart(params, x):
    """[B, N, K] -> [B, N·M]: each token has features of its own, under shared weights."""
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None, None])
    return (hidden @ params["second"]["kernel"]).reshape(len(x), N * M)


def two_layers(draw):
    params = {
        "first": {"kernel": draw.normal(size=(K, H)), "bias": draw.normal(size=H)},
        "second": {"kernel": draw.normal(size=(H, M))},
    }
    return jax.tree.map(jnp.asarray, params), jnp.asarray(draw.normal(size=(EXAMPLES, N, K)))


def test_factors_are_those_of_a_loop_over_tokens(rng):
    params, x = two_layers(rng(11))
    v = jnp.asarray(rng(12).normal(size=(EXAMPLES, N * M)))
    found = whole(tokens_apart, params, x, v, stacked=None)
    a, b = np.zeros((K + 1, K + 1)), np.zeros((H, H))
    for example in range(EXAMPLES):
        for token in range(N):
            given = np.append(x[example, token], 1)
            hidden = np.tanh(given @ np.vstack([params["first"]["kernel"], params["first"]["bias"]]))
            g = (params["second"]["kernel"] @ v[example].reshape(N, M)[token]) * (1 - hidden**2)
            a += np.outer(given, given) / N / EXAMPLES  # a mean over tokens
            b += np.outer(g, g) / EXAMPLES  # a sum
    factor = found.kronecker["first/kernel + first/bias"]
    np.testing.assert_allclose(factor.inputs[0], a, rtol=1e-12)
    np.testing.assert_allclose(factor.outputs[0], b, rtol=1e-12)
    assert float(factor.tokens[0]) == N
    np.testing.assert_allclose(found.feature_square, jnp.mean(jnp.sum(tokens_apart(params, x) ** 2, 1)), rtol=1e-12)


def test_shared_weights_are_exact_where_v_reaches_tokens_apart_and_a_mean_in_b_is_too_small_by_n(rng):
    params, x = two_layers(rng(13))
    found = whole(tokens_apart, params, *every_direction(x, N * M), stacked=None)
    tau = {"second/kernel": jnp.asarray(rng(14).normal(size=(H, M)))}
    want = jnp.mean(jnp.sum(response(tokens_apart, params, x, tau) ** 2, axis=1))
    np.testing.assert_allclose(penalty.energies(found, tau)["second/kernel"], want, rtol=1e-9)
    drawn = whole(tokens_apart, params, x, jnp.asarray(rng(30).normal(size=(EXAMPLES, N * M))), stacked=None)
    relative, paper = (penalty.energies(penalty.reweighted(drawn, w), tau) for w in ("response", "paper"))
    energy = penalty.energies(drawn, tau)["second/kernel"]
    np.testing.assert_allclose(relative["second/kernel"] * drawn.feature_square, energy, rtol=1e-9)
    np.testing.assert_allclose(paper["second/kernel"] * N, relative["second/kernel"], rtol=1e-9)


def test_a_and_g_that_are_independent_make_their_product_exact(rng):
    """A linear network of one token: g = W₂v, whatever a is."""
    draw = rng(15)
    params = {"first": jnp.asarray(draw.normal(size=(K, H))), "second": jnp.asarray(draw.normal(size=(H, M)))}
    x = jnp.asarray(draw.normal(size=(EXAMPLES, K)))

    def apply(params, x):
        return x @ params["first"] @ params["second"]

    found = whole(apply, params, *every_direction(x, M), stacked=None)
    for path in params:
        tau = {path: jnp.asarray(draw.normal(size=params[path].shape))}
        want = jnp.mean(jnp.sum(response(apply, params, x, tau) ** 2, axis=1))
        np.testing.assert_allclose(penalty.energies(found, tau)[path], want, rtol=1e-9)


def test_rows_of_a_table_that_v_reaches_apart_are_exact(rng):
    """Positions that end in features of their own, one distribution of g for all."""
    table = {"positions": jnp.asarray(rng(16).normal(size=(N, 900)))}
    x = jnp.asarray(rng(17).normal(size=(EXAMPLES, N, 900)))
    mix = jnp.asarray(rng(18).normal(size=(900, M)))

    def apply(params, x):
        return ((x + params["positions"][None]) @ mix).reshape(len(x), -1)

    found = whole(apply, table, *every_direction(x, N * M), stacked=None)
    np.testing.assert_allclose(found.kronecker["positions"].inputs[0], np.full(N, 1 / N), rtol=1e-12)
    tau = {"positions": jnp.asarray(rng(19).normal(size=(N, 900)))}
    want = jnp.mean(jnp.sum(response(apply, table, x, tau) ** 2, axis=1))
    np.testing.assert_allclose(penalty.energies(found, tau)["positions"], want, rtol=1e-9)


def test_padding_of_a_batch_and_of_texts_counts_for_nothing(rng):
    module, tokens = bert()
    apply, params = made(module, tokens)
    v = jnp.asarray(rng(20).normal(size=(EXAMPLES, 8)))
    plain = whole(apply, params, tokens, v)
    longer = bert(length=6)[1]
    padded = whole(apply, params, longer, v)
    twice = jax.tree.map(lambda leaf: jnp.concatenate([jnp.asarray(leaf)] * 2), tokens)
    weights = jnp.repeat(jnp.array([1.0, 0.0]), EXAMPLES)
    half = whole(apply, params, twice, jnp.concatenate([v, 9 * v]), weights=weights)
    for other in (padded, half):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11), plain, other)
    assert float(plain.kronecker["blocks/mlp/fc_in/kernel + blocks/mlp/fc_in/bias"].tokens[0]) == 3  # of 4, 2 and 3


def test_tasks_are_summed_exactly_or_in_one_pair_of_factors(rng):
    params, x = two_layers(rng(21))
    v = jnp.asarray(rng(22).normal(size=(EXAMPLES, N * M)))
    first, second = (whole(tokens_apart, params, x * scale, v, stacked=None) for scale in (1.0, 2.0))
    tau = {path: jnp.asarray(rng(23).normal(size=leaf.shape)) for path, leaf in trees.flatten_paths(params).items()}

    def total(factors):
        return {n: float(jnp.sum(e)) for n, e in jax.vmap(penalty.energies, (0, None))(factors, tau).items()}

    exact, pair, alone = (
        total(p) for p in (penalty.per_task([first, second]), penalty.summed([first, second]), penalty.summed([first]))
    )
    for name, energy in penalty.energies(first, tau).items():
        np.testing.assert_allclose(alone[name], energy, rtol=1e-9)
        np.testing.assert_allclose(exact[name], energy + penalty.energies(second, tau)[name], rtol=1e-9)
    np.testing.assert_allclose(pair["second/kernel"], exact["second/kernel"], rtol=1e-9)  # B is the same in both
    assert abs(pair["first/kernel + first/bias"] / exact["first/kernel + first/bias"] - 1) > 0.01


def test_what_is_not_understood_is_refused_by_name(rng):
    x = jnp.asarray(rng(24).normal(size=(EXAMPLES, 50)))

    def refused(apply, params, inputs=x):
        with pytest.raises(ValueError) as error:
            whole(apply, params, inputs, jnp.ones((EXAMPLES, 50)), stacked=None)
        return str(error.value)

    square = {"layer": {"kernel": jnp.eye(50)}}
    message = refused(lambda p, x: (x @ p["layer"]["kernel"]) @ p["layer"]["kernel"], square)
    assert "'layer/kernel' of shape (50, 50)" in message and "one product more than once" in message
    assert "mul" in refused(lambda p, x: x @ (p["layer"]["kernel"] * jnp.tanh(x).sum()), square)
    assert "dot_general" in refused(lambda p, x: x @ p["layer"]["kernel"].T, square)  # another order of entries
    big = {"conv": jnp.ones((3, 3, 16, 16))}
    images = jnp.ones((EXAMPLES, 4, 4, 16))

    def convolve(p, x):
        return jax.lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert "conv_general_dilated" in refused(lambda p, x: convolve(p, x).mean((1, 2)), big, images)
    found = whole(lambda p, x: x @ p["layer"]["kernel"], square, x, jnp.ones((EXAMPLES, 50)), stacked=None)
    with pytest.raises(ValueError, match="nothing of 'other'"):
        penalty.energies(found, {"other": x})
    with pytest.raises(ValueError, match="no factor for the leaf 'other'"):
        penalty.selected(found, ["layer/kernel", "other"])
    with pytest.raises(ValueError, match="choose one of paper, response"):
        penalty.reweighted(found, "papers")
    with pytest.raises(ValueError, match="no factors to put together"):
        penalty.summed([])
    with pytest.raises(ValueError, match="no example at all"):
        whole(lambda p, x: x @ p["layer"]["kernel"], square, x, jnp.ones((3, 50)), stacked=None, weights=jnp.zeros(3))


def test_small_leaves_of_any_use_and_matrices_in_any_form_are_taken(rng):
    """Heads in axes of their own, a product from the left, and scales of scales."""
    draw = rng(25)
    params = {
        "heads": jnp.asarray(draw.normal(size=(K, 2, 3))),
        "left": jnp.asarray(draw.normal(size=(50, 50))),
        "scale": jnp.asarray(draw.normal(size=6)),
    }
    x = jnp.asarray(draw.normal(size=(EXAMPLES, K)))

    def apply(params, x):
        heads = jnp.einsum("bk,khd->bhd", x, params["heads"]).reshape(len(x), 6)
        return heads * jnp.exp(params["scale"])[None]

    found = whole(apply, {k: params[k] for k in ("heads", "scale")}, *every_direction(x, 6), stacked=None)
    assert set(found.kronecker) == {"heads"} and set(found.gram) == {"scale"}
    for path in ("heads", "scale"):
        tau = {path: jnp.asarray(draw.normal(size=params[path].shape))}
        want = jnp.mean(jnp.sum(response(apply, {k: params[k] for k in ("heads", "scale")}, x, tau) ** 2, axis=1))
        np.testing.assert_allclose(penalty.energies(found, tau)[path], want, rtol=1e-9)


def test_dense_names():
    assert Dense("a/kernel", None, 1, 2, 3).name == "a/kernel"
    assert Dense("a/kernel", "a/bias", 1, 2, 3).name == "a/kernel + a/bias"

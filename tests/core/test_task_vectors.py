import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tajax
from tajax.task_vectors import cosine_matrix, gram_by_module

finite = st.floats(-4, 4, width=32, allow_subnormal=False)  # XLA flushes subnormal numbers to zero
vectors = hnp.arrays(np.float32, 5, elements=finite)


def assert_trees_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), **tolerance)


@given(vectors, vectors)
def test_applying_a_task_vector_restores_the_finetuned_model(p, q):
    params, finetuned = {"a": [jnp.asarray(p)], "b": jnp.asarray(p[0])}, {"a": [jnp.asarray(q)], "b": q[0]}
    tau = tajax.task_vector(params, finetuned)
    assert_trees_close(tajax.apply_task_vector(params, tau), finetuned, atol=1e-6)  # one rounding at size 8
    assert_trees_close(tajax.task_vector(params, params), jax.tree.map(jnp.zeros_like, params), atol=0)
    assert_trees_close(tajax.apply_task_vector(params, tau, scaling_coef=0.0), params, atol=0)


@given(hnp.arrays(np.float32, (3, 4), elements=finite), hnp.arrays(np.float32, 3, elements=finite), finite)
def test_combine_is_linear_in_vectors_and_in_coefficients(rows, coefs, factor):
    taus = [{"w": jnp.asarray(row)} for row in rows]
    got = tajax.combine(taus, jnp.asarray(coefs))["w"]
    np.testing.assert_allclose(got, coefs.astype(np.float64) @ rows.astype(np.float64), atol=2e-5)  # 3 products <= 16
    scaled = tajax.combine(taus, [factor * float(c) for c in coefs])["w"]
    np.testing.assert_allclose(scaled, factor * np.asarray(got), atol=2e-4)


def test_combine_does_not_see_the_order(key):
    # Small integers add exactly in float32, so the order may not show in a single bit.
    rows = jax.random.randint(key, (4, 6), -100, 100).astype(jnp.float32)
    want = np.asarray(tajax.combine([{"w": row} for row in rows])["w"])
    np.testing.assert_array_equal(want, np.asarray(rows).sum(0))
    for order in itertools.permutations(range(4)):
        np.testing.assert_array_equal(tajax.combine([{"w": rows[t]} for t in order])["w"], want)


def test_low_precision_weights_are_rounded_once(key):
    """Eight steps of 1/1000 move a bfloat16 weight of 1; added one after the other none of them would."""
    pretrained = {"w": jnp.ones(3, jnp.bfloat16), "v": jnp.ones(2, jnp.float16), "ids": jnp.arange(2)}
    tau = {"w": jnp.full(3, 1e-3), "v": jnp.full(2, 1e-3), "ids": jnp.zeros(2)}
    merged = tajax.apply_task_vector(pretrained, tajax.combine([tau] * 8))
    assert jax.tree.map(lambda leaf: leaf.dtype.name, merged) == {"w": "bfloat16", "v": "float16", "ids": "int32"}
    np.testing.assert_array_equal(merged["w"], jnp.bfloat16(1.008))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(tajax.task_vector(pretrained, merged))} == {"float32"}
    finetuned = {"w": jax.random.normal(key, (3,), jnp.bfloat16), "v": jnp.zeros(2, jnp.float16), "ids": jnp.arange(2)}
    restored = tajax.apply_task_vector(pretrained, tajax.task_vector(pretrained, finetuned))
    assert_trees_close(restored, finetuned, atol=0)


def test_double_precision_stays_double(x64):
    a, b = {"w": jnp.ones(2, jnp.float64)}, {"w": jnp.full(2, 1 + 1e-12)}
    tau = tajax.task_vector(a, b)
    np.testing.assert_allclose(tajax.norm(tau), np.sqrt(2) * 1e-12, rtol=1e-3)
    np.testing.assert_array_equal(tajax.apply_task_vector(a, tajax.combine([tau], [0.5]))["w"], 1 + (b["w"] - 1) / 2)


def test_leaves_without_direction_stay_and_must_agree():
    pretrained, finetuned = {"w": 1.0, "ids": jnp.arange(3)}, {"w": 2.0, "ids": jnp.arange(3)}
    tau = tajax.task_vector(pretrained, finetuned)
    np.testing.assert_array_equal(tau["ids"], np.zeros(3))
    np.testing.assert_array_equal(tajax.apply_task_vector(pretrained, tau, 5.0)["ids"], np.arange(3))
    with pytest.raises(ValueError, match="'ids' is int32 and differs between pretrained and finetuned"):
        tajax.task_vector(pretrained, finetuned | {"ids": jnp.ones(3, jnp.int32)})


def test_negation_and_analogy():
    tau = {"w": jnp.array([1.0, -2.0])}
    np.testing.assert_array_equal(tajax.combine([tau, tajax.negate(tau)])["w"], 0)
    a, b, c = ({"w": jnp.array(v)} for v in ([1.0, 0.0], [3.0, 1.0], [10.0, 10.0]))
    np.testing.assert_array_equal(tajax.analogy(a, b, c)["w"], [12.0, 11.0])


def test_geometry_against_the_flattened_vectors(key):
    k1, k2 = jax.random.split(key)
    a, b = ({"u": jax.random.normal(k, (3, 4)), "v": [jax.random.normal(k, (2,))]} for k in (k1, k2))
    flat_a, flat_b = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]).astype(np.float64) for t in (a, b)
    )
    np.testing.assert_allclose(tajax.dot(a, b), flat_a @ flat_b, rtol=1e-5)
    np.testing.assert_allclose(tajax.norm(a), np.linalg.norm(flat_a), rtol=1e-6)
    cosine = flat_a @ flat_b / np.linalg.norm(flat_a) / np.linalg.norm(flat_b)
    np.testing.assert_allclose(tajax.cosine_similarity(a, b), cosine, rtol=1e-5)
    np.testing.assert_allclose(tajax.cosine_similarity(a, tajax.combine([a], [-3.0])), -1, rtol=1e-6)
    assert np.isnan(tajax.cosine_similarity(a, tajax.combine([a], [0.0])))


def test_inner_products_of_modules_and_layers_make_up_the_whole(x64, key):
    """Each by slicing the trees by hand, and their sum against `dot`."""

    def draw(k):
        a, b, c, d = jax.random.split(k, 4)
        query = {"kernel": jax.random.normal(a, (3, 2, 2), float), "bias": jax.random.normal(b, (3, 2), float)}
        ends = {
            "class_embedding": jax.random.normal(c, (4,), float),
            "ln_post": {"scale": jax.random.normal(d, (2,), float)},
        }
        return {"blocks": {"attn": {"query": query}}} | ends

    taus = [draw(k) for k in jax.random.split(key, 3)]
    grams = gram_by_module(taus)
    assert {name: gram.shape for name, gram in grams.items()} == {
        "blocks/attn/query": (3, 3, 3),
        "class_embedding": (3, 3),
        "ln_post": (3, 3),
    }
    query = [tau["blocks"]["attn"]["query"] for tau in taus]
    for s, t, layer in itertools.product(range(3), range(3), range(3)):
        parts = [query[s][leaf][layer].ravel() @ query[t][leaf][layer].ravel() for leaf in ("kernel", "bias")]
        np.testing.assert_allclose(grams["blocks/attn/query"][s, t, layer], sum(parts), rtol=1e-12)
    total = sum(gram.sum(axis=tuple(range(2, gram.ndim))) for gram in grams.values())
    np.testing.assert_allclose(total, [[tajax.dot(a, b) for b in taus] for a in taus], rtol=1e-12)
    cosines = [[tajax.cosine_similarity(a, b) for b in taus] for a in taus]
    np.testing.assert_allclose(cosine_matrix(total), cosines, rtol=1e-12)
    renamed = [{"layer" if name == "blocks" else name: node for name, node in tau.items()} for tau in taus]
    again = gram_by_module(renamed, stacked="layer")
    jax.tree.map(np.testing.assert_array_equal, again, {n.replace("blocks", "layer"): g for n, g in grams.items()})
    by_layer = cosine_matrix(grams["blocks/attn/query"])
    np.testing.assert_allclose(by_layer[..., 1], cosine_matrix(grams["blocks/attn/query"][..., 1]), rtol=1e-12)
    np.testing.assert_allclose(jnp.diagonal(by_layer).T, 1, rtol=1e-12)
    assert np.abs(by_layer).max() <= 1 + 1e-12


def test_a_module_that_did_not_move_has_no_direction():
    taus = [{"a": jnp.zeros(2), "b": jnp.ones(2)}, {"a": jnp.ones(2), "b": jnp.ones(2)}]
    grams = gram_by_module(taus)
    assert np.isnan(cosine_matrix(grams["a"])).tolist() == [[True, True], [True, False]]
    np.testing.assert_allclose(cosine_matrix(grams["b"]), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="'a' is in task vector 0 but not in task vector 1"):
        gram_by_module([taus[0], {"b": jnp.ones(2)}])


def test_all_of_it_compiles_with_coefficients_as_arguments(key):
    taus = [{"w": jax.random.normal(k, (3,))} for k in jax.random.split(key, 2)]
    traces = []

    @jax.jit
    def merged(pretrained, taus, coefs):
        traces.append(1)
        return tajax.apply_task_vector(pretrained, tajax.combine(taus, coefs), coefs[0])

    for coefs in ([1.0, 2.0], [0.5, -1.0]):
        want = tajax.apply_task_vector({"w": jnp.ones(3)}, tajax.combine(taus, coefs), coefs[0])
        assert_trees_close(merged({"w": jnp.ones(3)}, taus, jnp.array(coefs)), want, rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("taus", "coefs", "error", "message"),
    [
        ([], None, ValueError, "is empty"),
        ({"w": 1.0}, None, TypeError, r"got one dict; write \[tau\]"),
        ([{"w": 1.0}] * 2, [1.0], ValueError, r"2 task vectors need 2 coefficients, one each; got shape \(1,\)"),
        ([{"w": 1.0}] * 2, jnp.ones((2, 1)), ValueError, r"got shape \(2, 1\)"),
        ([{"w": 1.0}] * 2, 0.3, ValueError, "one each; got 0.3"),
        ([{"w": 1.0}, {"v": 1.0}], None, ValueError, "'w' is in task vector 0 but not in task vector 1"),
    ],
)
def test_a_combination_that_does_not_fit_says_why(taus, coefs, error, message):
    with pytest.raises(error, match=message):
        tajax.combine(taus, coefs)

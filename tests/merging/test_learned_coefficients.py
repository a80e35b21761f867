"""Coefficients that are found from examples: by Adam as by hand, and exactly for linearised models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import merging, trees
from tajax.types import Batch, Head
from tests.merging import with_data
from tests.merging.test_with_data import CLASSES, TASKS, encode, rows_of, setting

__all__ = ["setting"]  # a fixture


def seen_by(setting):
    """What the oracle of learning takes: models, batches of rows that count, heads."""
    pretrained, taus, batches, heads = setting
    flat = [
        {p: np.asarray(leaf) for p, leaf in trees.flatten_paths(tree).items()} for tree in (pretrained, *taus.values())
    ]
    rows = [[rows_of([batch]) for batch in batches[task]] for task in TASKS]
    weights = [np.asarray(heads[task].weights)[:, : CLASSES[task]] for task in TASKS]
    return flat[0], flat[1:], rows, weights


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_coefficients_take_the_steps_of_adam_down_the_entropy(setting, granularity):
    found = merging.fit_adamerging(encode, *setting, granularity=granularity, steps=5, learning_rate=0.1)["coefs"]
    options = {"by_leaf": granularity == "layer", "initial": 0.3, "steps": 5, "rate": 0.1, "bounds": (0, 1)}
    want = with_data.learned(with_data.uncertainty, *seen_by(setting), **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, want)
    assert any(np.any(leaf != 0.3) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_coefficients_take_the_steps_of_adamw_down_the_cross_entropy(setting, granularity):
    settings = {"granularity": granularity, "steps": 5, "learning_rate": 0.1, "weight_decay": 0.3}
    found = merging.fit_atlas(encode, *setting, **settings)["coefs"]
    options = {"by_leaf": granularity == "layer", "initial": 0.0, "steps": 5, "rate": 0.1, "decay": 0.3, "longest": 1.0}
    want = with_data.learned(with_data.surprise, *seen_by(setting), **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, want)


@pytest.mark.parametrize("fit", [merging.fit_adamerging, merging.fit_atlas])
def test_affine_features_give_the_coefficients_that_the_encoder_gives(setting, fit):
    """Of a linearised model the images go through once; as an opaque function, in every step."""
    pretrained, *rest = setting
    tangent = tajax.linearize(encode, pretrained)
    once = fit(tangent, pretrained, *rest, granularity="task", steps=12, learning_rate=0.05)["coefs"]
    always = fit(
        lambda params, x: tangent(params, x), pretrained, *rest, granularity="task", steps=12, learning_rate=0.05
    )
    np.testing.assert_allclose(once, always["coefs"], rtol=1e-9)
    assert np.abs(once - once.mean()).max() > 1e-3
    ordinary = fit(encode, pretrained, *rest, granularity="task", steps=12, learning_rate=0.05)["coefs"]
    assert np.abs(once - ordinary).max() > 1e-4


def test_vectors_of_nothing_teach_nothing_and_bounds_hold(setting):
    pretrained, taus, batches, heads = setting
    nothing = jax.tree.map(jnp.zeros_like, taus)
    found = merging.fit_adamerging(encode, pretrained, nothing, batches, heads, steps=3)["coefs"]
    assert all(np.all(leaf == 0.3) for leaf in found.values())
    far = merging.fit_adamerging(encode, *setting, steps=20, learning_rate=0.5)["coefs"]
    values = np.concatenate([np.ravel(leaf) for leaf in far.values()])
    assert values.min() == 0 and values.max() == 1


def test_learning_lowers_what_it_minimises(setting):
    pretrained, taus, batches, heads = setting
    theta, vectors, rows, weights = seen_by(setting)

    def of(method, coefs, loss):
        model = {
            p: np.asarray(leaf)
            for p, leaf in trees.flatten_paths(method(pretrained, list(taus.values()), coefs=coefs)).items()
        }
        return sum(
            loss(with_data.perceptron_logits(model, w, *[x]), y)
            for w, r in zip(weights, rows, strict=True)
            for x, y in r
        )

    for method, fit, start, loss in (
        (merging.adamerging, merging.fit_adamerging, 0.3, with_data.uncertainty),
        (merging.atlas, merging.fit_atlas, 0.0, with_data.surprise),
    ):
        coefs = fit(encode, *setting, steps=60, learning_rate=0.02)["coefs"]
        assert of(method, coefs, loss) < of(method, jnp.full(2, start), loss) - 0.05


def test_layers_of_a_stack_have_coefficients_of_their_own(rng, x64):
    draw = rng(918)
    theta, *taus = [
        {"blocks": {"w": jnp.asarray(draw.normal(size=(2, 3, 3)))}, "b": jnp.asarray(draw.normal(size=3))}
        for _ in range(3)
    ]

    def looped(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["blocks"]["w"])[0] + params["b"][None]

    batches = {t: [Batch(draw.normal(size=(5, 3)), np.zeros(5, int), np.ones(5, bool))] for t in TASKS}
    heads = dict.fromkeys(TASKS, Head(jnp.asarray(draw.normal(size=(3, 2))), jnp.int32(2)))
    named = dict(zip(TASKS, taus, strict=True))
    found = merging.fit_adamerging(looped, theta, named, batches, heads, steps=4, learning_rate=0.05)["coefs"]
    assert {path: leaf.shape for path, leaf in found.items()} == {"b": (2,), "blocks/w": (2, 2)}
    merged = merging.adamerging(theta, taus, coefs=found)
    for layer in range(2):
        want = theta["blocks"]["w"][layer] + sum(
            c * tau["blocks"]["w"][layer] for c, tau in zip(found["blocks/w"][:, layer], taus, strict=True)
        )
        np.testing.assert_allclose(merged["blocks"]["w"][layer], want, rtol=1e-12)
    plain = merging.fit_adamerging(looped, theta, named, batches, heads, steps=1, stacked=None)["coefs"]
    assert plain["blocks/w"].shape == (2,)


def test_coefficients_that_do_not_fit_are_named(setting):
    pretrained, taus, *rest = setting
    for coefs, message in (
        (jnp.ones(3), r"coefs has shape \(3,\) at 'first/bias', want \(2,\): one for each of 2 task vectors"),
        ({"first/bias": jnp.ones(2)}, "coefs lacks first/kernel"),
        (dict.fromkeys(trees.flatten_paths(pretrained), jnp.ones((2, 4))), r"coefs has shape \(2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            merging.adamerging(pretrained, list(taus.values()), coefs=coefs)
    for options, message in (
        ({"granularity": "block"}, "granularity is 'block', want one of 'task', 'layer'"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            merging.fit_adamerging(encode, pretrained, taus, *rest, **options)


@pytest.fixture
def many(rng, x64):
    """Three tasks of a linear model with more examples, and the pass over them."""
    draw, tasks = rng(919), ("a", "b", "c")
    theta, *taus = [{"w": jnp.asarray(size * draw.normal(size=(6, 5)))} for size in (0.4, 1, 1, 1)]
    batches = {t: [] for t in tasks}
    for t in (*tasks, *tasks):
        batches[t].append(Batch(draw.normal(size=(20, 6)), draw.integers(0, 3, 20), np.arange(20) < 17))
    heads = {t: Head(jnp.asarray(draw.normal(size=(5, 3))), jnp.int32(3)) for t in tasks}
    return theta, dict(zip(tasks, taus, strict=True)), batches, heads


def accuracies(setting, coefs):
    """Of each task, in NumPy."""
    theta, taus, batches, heads = setting
    kernel = np.asarray(theta["w"]) + sum(c * np.asarray(tau["w"]) for c, tau in zip(coefs, taus.values(), strict=True))
    found = []
    for task in taus:
        x, y = rows_of(batches[task])
        found.append(np.mean(np.argmax(x @ kernel @ np.asarray(heads[task].weights), axis=1) == y))
    return np.array(found)


def test_no_coefficient_can_be_bettered_alone(many):
    tangent = tajax.linearize(lambda params, x: x @ params["w"], many[0])
    found = merging.fit_exact_coefficients(tangent, *many, upper=2.0)["coefs"]
    single = np.array([accuracies(many, one)[t] for t, one in enumerate(np.eye(3))])

    def value(coefs):
        return np.mean(accuracies(many, coefs) / single)

    reached, grid = value(found), np.linspace(0, 2, 2001)
    assert reached > max(value(np.full(3, c)) for c in grid) - 1e-9  # no worse than the best for all
    for task in range(3):
        tried = [value(np.where(np.arange(3) == task, c, found)) for c in grid]
        assert max(tried) <= reached + 1e-9
    assert len(set(found.tolist())) == 3 and found.min() >= 0 and found.max() <= 2
    merged = merging.exact_coefficients(many[0], list(many[1].values()), coefs=found)
    step = sum(c * tau["w"] for c, tau in zip(found, many[1].values(), strict=True))
    np.testing.assert_allclose(merged["w"], many[0]["w"] + step)


def test_vectors_that_do_not_meet_have_the_coefficients_that_each_has_alone(rng, x64):
    """Tasks with inputs and classes of their own: the best for all is the best of each."""
    draw = rng(920)
    theta = {"w": jnp.zeros((2, 4)).at[:, ::2].set(1.0)}
    taus = {t: {"w": jnp.zeros((2, 4)).at[k, 2 * k + 1].set(2.0)} for k, t in enumerate("ab")}
    batches, heads = {}, {}
    for k, t in enumerate("ab"):
        inputs = np.zeros((30, 2))
        inputs[:, k] = draw.uniform(0.5, 1, 30)
        labels = np.where(np.arange(30) % 3 == 0, k, 1 - k)  # two thirds of a want the vector, and one of b
        batches[t] = [Batch(inputs, labels, np.ones(30, bool))]
        weights = np.zeros((4, 2))
        weights[2 * k, 0] = weights[2 * k + 1, 1] = 1
        heads[t] = Head(jnp.asarray(weights), jnp.int32(2), False)
    tangent = tajax.linearize(lambda params, x: x @ params["w"], theta)
    found = merging.fit_exact_coefficients(tangent, theta, taus, batches, heads)["coefs"]
    assert found[0] > 0.5 > found[1]  # 2c beats 1 beyond a half


def test_exact_coefficients_are_of_linearised_models(setting):
    with pytest.raises(ValueError, match="exact coefficients are for linearised models"):
        merging.fit_exact_coefficients(encode, *setting)
    with pytest.raises(ValueError, match="upper is the largest coefficient, above 0; got 0"):
        merging.fit_exact_coefficients(tajax.linearize(encode, setting[0]), *setting, upper=0)

"""Methods that are fitted to examples of the tasks: by hand on a perceptron, and the laws that they obey."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import merging, trees
from tajax.merging import METHODS
from tajax.types import Batch, Head
from tests.merging import with_data

TASKS = ("signs", "shapes")
CLASSES = {"signs": 3, "shapes": 2}


def encode(params, inputs):
    """Two dense layers with a bias and a scale between them."""
    hidden = jnp.tanh(inputs @ params["first"]["kernel"] + params["first"]["bias"][None])
    return (hidden * params["scale"][None]) @ params["second"]["kernel"]


@pytest.fixture
def setting(rng, x64):
    """θ₀, vectors, batches of 4 with padding in the last, and heads padded to 4 classes; float64."""
    draw = rng(910)
    shapes = {"first": {"kernel": (3, 4), "bias": (4,)}, "scale": (4,), "second": {"kernel": (4, 5)}}

    def tree(size):
        leaves = jax.tree.map(
            lambda s: jnp.asarray(size * draw.normal(size=s)), shapes, is_leaf=lambda s: type(s) is tuple
        )
        return leaves

    pretrained, taus = tree(1.0), {task: tree(0.4) for task in TASKS}
    batches, heads = {}, {}
    for task in TASKS:
        inputs, labels = draw.normal(size=(8, 3)), draw.integers(0, CLASSES[task], 8)
        mask = np.arange(8) < 7
        batches[task] = [Batch(inputs[s], labels[s], mask[s]) for s in (slice(0, 4), slice(4, 8))]
        heads[task] = Head(jnp.asarray(3 * draw.normal(size=(5, 4))), jnp.int32(CLASSES[task]))
    return pretrained, taus, batches, heads


def rows_of(batches):
    """The inputs and labels that count."""
    return tuple(np.concatenate([np.asarray(b[leaf])[np.asarray(b.mask)] for b in batches]) for leaf in (0, 1))


def model_of(pretrained, tau):
    return {
        path: np.asarray(leaf + trees.flatten_paths(tau)[path])
        for path, leaf in trees.flatten_paths(pretrained).items()
    }


@pytest.mark.parametrize("labels", ["expected", "true"])
def test_fisher_information_is_the_mean_of_squared_gradients_of_single_examples(setting, labels):
    pretrained, taus, batches, heads = setting
    found = merging.fit_fisher(encode, *setting, labels=labels)["fishers"]
    for number, task in enumerate(TASKS):
        weights = np.asarray(heads[task].weights)[:, : CLASSES[task]]
        want = with_data.perceptron_fisher(model_of(pretrained, taus[task]), weights, *rows_of(batches[task]), labels)
        for path, leaf in trees.flatten_paths(found).items():
            np.testing.assert_allclose(leaf[number], want[path], rtol=1e-9, err_msg=path)


def test_moments_are_those_of_what_the_layers_of_each_model_are_given(setting):
    pretrained, taus, batches, _ = setting
    found = merging.fit_regmean(encode, *setting)["grams"]
    assert list(found) == ["first/kernel", "second/kernel"]
    for number, task in enumerate(TASKS):
        given = with_data.perceptron_inputs(model_of(pretrained, taus[task]), rows_of(batches[task])[0])
        for path, x in given.items():
            np.testing.assert_allclose(found[path][number, 0], x.T @ x / len(x), rtol=1e-10)


@pytest.mark.parametrize("off_diagonal", [0.9, 1.0])
def test_regmean_of_a_perceptron_solves_its_least_squares_problem(setting, off_diagonal):
    pretrained, taus, batches, _ = setting
    found = merging.fit_regmean(encode, *setting)
    merged = trees.flatten_paths(merging.regmean(pretrained, list(taus.values()), **found, off_diagonal=off_diagonal))
    models = {task: model_of(pretrained, tau) for task, tau in taus.items()}
    for path in ("first/kernel", "second/kernel"):
        inputs = [with_data.perceptron_inputs(models[task], rows_of(batches[task])[0])[path] for task in TASKS]
        kernels = [models[task][path] for task in TASKS]
        want = with_data.regression([x.T @ x for x in inputs], kernels, off_diagonal)
        np.testing.assert_allclose(merged[path], want, rtol=1e-8)
    for path in ("first/bias", "scale"):
        np.testing.assert_allclose(merged[path], np.mean([models[task][path] for task in TASKS], axis=0), rtol=1e-12)


def test_regmean_plusplus_sees_what_the_merged_layers_before_give(setting):
    pretrained, taus, batches, _ = setting
    found = merging.fit_regmean_plusplus(encode, *setting, off_diagonal=0.9)
    merged = merging.regmean_plusplus(pretrained, list(taus.values()), **found, off_diagonal=0.9)
    inputs = {task: rows_of(batches[task])[0] for task in TASKS}
    want = with_data.perceptron_plusplus([model_of(pretrained, taus[t]) for t in TASKS], list(inputs.values()), 0.9)
    for path, leaf in trees.flatten_paths(merged).items():
        np.testing.assert_allclose(leaf, want[path], rtol=1e-8, err_msg=path)
    other = merging.regmean(pretrained, list(taus.values()), **merging.fit_regmean(encode, *setting), off_diagonal=0.9)
    np.testing.assert_allclose(merged["first"]["kernel"], other["first"]["kernel"], rtol=1e-9)  # nothing is before it
    assert np.abs(merged["second"]["kernel"] - other["second"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize("name", ["regmean", "regmean_plusplus"])
def test_layers_of_a_linearised_model_have_the_inputs_that_they_have_at_the_start(setting, name):
    """Each share of J τ, given what reaches the layer at θ₀, by least squares; the vectors of the rest are averaged."""
    pretrained, taus, batches, _ = setting
    tangent = tajax.linearize(encode, pretrained)
    found = METHODS[name].fit(tangent, *setting)
    merged = trees.flatten_paths(METHODS[name](pretrained, list(taus.values()), **found, off_diagonal=0.9))
    start = model_of(pretrained, jax.tree.map(jnp.zeros_like, pretrained))
    steps = [model_of(jax.tree.map(jnp.zeros_like, pretrained), taus[task]) for task in TASKS]
    for path, leaf in merged.items():
        step = np.mean([one[path] for one in steps], axis=0)
        if path.endswith("kernel"):
            inputs = [with_data.perceptron_inputs(start, rows_of(batches[task])[0])[path] for task in TASKS]
            step = with_data.regression([x.T @ x for x in inputs], [one[path] for one in steps], 0.9)
        np.testing.assert_allclose(leaf, start[path] + step, rtol=1e-8, err_msg=path)
    ordinary = METHODS[name](pretrained, list(taus.values()), **METHODS[name].fit(encode, *setting), off_diagonal=0.9)
    assert np.abs(merged["second/kernel"] - ordinary["second"]["kernel"]).max() > 1e-3


def test_of_tasks_with_the_same_inputs_the_linearised_regmean_is_the_mean(setting):
    pretrained, taus, batches, heads = setting
    same = dict.fromkeys(TASKS, batches["signs"])
    found = merging.fit_regmean(tajax.linearize(encode, pretrained), pretrained, taus, same, heads)
    merged = merging.regmean(pretrained, list(taus.values()), **found)
    mean = merging.weight_average(pretrained, list(taus.values()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), merged, mean)
    found = merging.fit_regmean(encode, pretrained, taus, same, heads)  # the models differ, and so do their inputs
    ordinary = merging.regmean(pretrained, list(taus.values()), **found)
    assert np.abs(ordinary["second"]["kernel"] - mean["second"]["kernel"]).max() > 1e-3


def test_tasks_whose_inputs_do_not_meet_keep_their_responses(rng, x64):
    """Of a linearised layer behind a nonlinear one: at θ₀ each task is seen by units of its own, and J τ_t is kept."""
    draw = rng(921)
    theta = {"first": jnp.eye(4), "second": jnp.asarray(draw.normal(size=(4, 3)))}
    taus = {t: jax.tree.map(jnp.zeros_like, theta) | {"second": jnp.asarray(draw.normal(size=(4, 3)))} for t in TASKS}
    tangent = tajax.linearize(lambda params, x: jnp.tanh(x @ params["first"]) @ params["second"], theta)
    batches = {}
    for number, task in enumerate(TASKS):
        inputs = np.zeros((6, 4))
        inputs[:, 2 * number : 2 * number + 2] = draw.normal(size=(6, 2))
        batches[task] = [Batch(inputs, np.zeros(6, int), np.ones(6, bool))]
    found = merging.fit_regmean(tangent, theta, taus, batches, {})
    merged = merging.regmean(theta, list(taus.values()), **found, off_diagonal=1.0)
    for task, tau in taus.items():
        own = tangent(tajax.apply_task_vector(theta, tau), batches[task][0].inputs)
        np.testing.assert_allclose(tangent(merged, batches[task][0].inputs), own, rtol=1e-9)


@pytest.mark.parametrize("name", ["regmean", "regmean_plusplus"])
@pytest.mark.parametrize("stacked", [False, True])
def test_layers_of_a_stack_are_layers(rng, name, stacked, x64):
    """The same perceptron of four layers, as a loop over a stack and one by one."""
    draw = rng(911)
    kernels = [jnp.asarray(draw.normal(size=(4, 3, 3))) for _ in range(3)]
    batches = {t: [Batch(draw.normal(size=(5, 2, 3)), np.zeros(5, int), np.ones(5, bool))] for t in TASKS}

    def looped(params, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["blocks"])[0], axis=1)

    def listed(params, x):
        return jnp.sum(functools.reduce(lambda x, w: jnp.tanh(x @ params[w]), "0123", x), axis=1)

    def tree(kernel):
        return {"blocks": kernel} if stacked else dict(zip("0123", kernel, strict=True))

    theta, *taus = map(tree, kernels)
    fit = functools.partial(METHODS[name].fit, looped if stacked else listed, theta)
    found = fit(dict(zip(TASKS, taus, strict=True)), batches, {})
    merged = METHODS[name](theta, taus, **found)
    model, models = np.asarray(kernels[0]), np.stack([np.asarray(kernels[0] + tau) for tau in kernels[1:]])
    activations = {task: batches[task][0].inputs.reshape(10, 3) for task in TASKS}
    for layer in range(4):
        moments = [x.T @ x / 5 for x in activations.values()]
        model = with_data.regression(moments, models[:, layer], 0.95)
        got = merged["blocks"][layer] if stacked else merged[str(layer)]
        np.testing.assert_allclose(got, model, rtol=1e-7)
        own = [model] * 2 if name == "regmean_plusplus" else models[:, layer]
        activations = {t: np.tanh(x @ w) for (t, x), w in zip(activations.items(), own, strict=True)}


def read(params, ids):
    """A layer that is given the tokens of each text, one by one, and one that is given their mean."""
    mask = (ids != -1)[..., None]
    hidden = jnp.tanh(params["table"][jnp.where(mask[..., 0], ids, 0)] @ params["tokens"])
    return jnp.sum(jnp.where(mask, hidden, 0), axis=1) / jnp.sum(mask, axis=1) @ params["texts"]


@pytest.mark.parametrize("name", ["regmean", "regmean_plusplus"])
def test_padding_of_texts_counts_for_nothing(rng, name, x64):
    """Texts of 2, 3 and 4 tokens: alone, in a batch, in a batch that is longer; by hand those without padding."""
    draw = rng(922)
    shapes = {"table": (9, 3), "tokens": (3, 4), "texts": (4, 2)}
    theta, *taus = [{path: jnp.asarray(draw.normal(size=s)) for path, s in shapes.items()} for _ in range(3)]
    texts = {task: [draw.integers(0, 9, length) for length in (2, 3, 4)] for task in TASKS}

    def batch(rows, length):
        ids = np.full((len(rows), length), -1, np.int32)
        for ones, row in zip(ids, rows, strict=True):
            ones[: len(row)] = row
        return Batch(ids, np.zeros(len(rows), int), np.ones(len(rows), bool))

    forms = [
        {task: [batch([row], len(row)) for row in rows] for task, rows in texts.items()},
        {task: [batch(rows, 4)] for task, rows in texts.items()},
        {task: [batch(rows[:2], 7), batch(rows[2:], 5)] for task, rows in texts.items()},
    ]
    fit = functools.partial(METHODS[name].fit, read, theta, dict(zip(TASKS, taus, strict=True)))
    alone, *padded = (fit(form, {})["grams"] for form in forms)
    for grams in padded:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), grams, alone)
    for number, (task, tau) in enumerate(zip(TASKS, taus, strict=True)):
        mean = np.mean([one["table"] for one in taus], axis=0)
        table = np.asarray(theta["table"]) + (np.asarray(tau["table"]) if name == "regmean" else mean)
        x = np.concatenate([table[row] for row in texts[task]])
        np.testing.assert_allclose(alone["tokens"][number, 0], x.T @ x / 3, rtol=1e-10)


def kernel_of(rng, number, tasks=2):
    draw = rng(number)
    theta, taus = {"w": jnp.asarray(draw.normal(size=(6, 3)))}, draw.normal(size=(tasks, 6, 3))
    return theta, [{"w": jnp.asarray(tau)} for tau in taus]


def test_equal_moments_give_the_mean_and_one_task_its_model(rng, x64):
    theta, taus = kernel_of(rng, 912)
    x = rng(913).normal(size=(4, 6))  # of fewer inputs than there are entries, too
    same = {"w": jnp.asarray(np.stack([x.T @ x] * 2)[:, None])}
    want = theta["w"] + (taus[0]["w"] + taus[1]["w"]) / 2
    np.testing.assert_allclose(merging.regmean(theta, taus, grams=same)["w"], want, rtol=1e-12)
    one = merging.regmean(theta, taus[:1], grams={"w": same["w"][:1]})
    np.testing.assert_array_equal(one["w"], theta["w"] + taus[0]["w"])
    np.testing.assert_allclose(merging.regmean(theta, taus, grams={})["w"], want, rtol=1e-12)
    even = {"w": jnp.full((2, 6, 3), 0.3)}
    np.testing.assert_allclose(merging.fisher(theta, taus, fishers=even)["w"], want, rtol=1e-12)
    alone = merging.fisher(theta, taus[:1], fishers={"w": even["w"][:1]})
    np.testing.assert_allclose(alone["w"], theta["w"] + taus[0]["w"], rtol=1e-12)


def test_orthogonal_inputs_do_not_interfere(rng, x64):
    theta, taus = kernel_of(rng, 914)
    basis = np.linalg.qr(rng(915).normal(size=(6, 6)))[0]
    inputs = [rng(916).normal(size=(9, 2)) @ basis[:2], rng(917).normal(size=(9, 3)) @ basis[2:5]]
    grams = {"w": jnp.asarray(np.stack([x.T @ x for x in inputs])[:, None])}
    merged = merging.regmean(theta, taus, grams=grams, off_diagonal=1.0)["w"]
    for x, tau in zip(inputs, taus, strict=True):
        np.testing.assert_allclose(x @ merged, x @ (theta["w"] + tau["w"]), rtol=1e-7)


def test_entries_that_one_task_alone_needs_are_that_task_s(x64):
    theta, taus = {"w": jnp.zeros(3)}, [{"w": jnp.array([1.0, 2.0, 4.0])}, {"w": jnp.array([-3.0, 8.0, 6.0])}]
    fishers = {"w": jnp.array([[5.0, 0.0, 0.0], [0.0, 7.0, 0.0]])}
    merged = merging.fisher(theta, taus, fishers=fishers, floor=1e-12)["w"]
    np.testing.assert_allclose(merged, [1, 8, 5], rtol=1e-10)


def test_inputs_that_are_bad_are_refused_before_anything_is_compiled(setting):
    pretrained, taus, batches, heads = setting
    for name, method in METHODS.items():
        if method.fit is None:
            continue
        forward = tajax.linearize(encode, pretrained) if method.models == "linearized" else encode
        with pytest.raises(TypeError, match="missing 1 required keyword-only argument"):
            method(pretrained, list(taus.values()))
        with pytest.raises(ValueError, match="batches lacks shapes"):
            method.fit(forward, pretrained, taus, {"signs": batches["signs"]}, heads)
        with pytest.raises(ValueError, match="task 'shapes' has no example"):
            method.fit(forward, pretrained, taus, batches | {"shapes": []}, heads)
        if "regmean" not in name:
            with pytest.raises(ValueError, match="heads lacks signs"):
                method.fit(forward, pretrained, taus, batches, {"shapes": heads["shapes"]})
    ragged = batches | {"shapes": [Batch(np.zeros((2, 4)), np.zeros(2, int), np.ones(2, bool))]}
    with pytest.raises(ValueError, match="the examples have different shapes"):
        merging.fit_regmean_plusplus(encode, pretrained, taus, ragged, heads)


def test_options_have_ranges():
    theta, taus = {"w": jnp.ones((2, 1))}, [{"w": jnp.ones((2, 1))}] * 2
    for floor in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="floor is the least Fisher"):
            merging.fisher(theta, taus, fishers={"w": jnp.ones((2, 2, 1))}, floor=floor)
    with pytest.raises(ValueError, match=r"'w' has shape \(2, 2, 1\) in 2 task vectors but \(1, 2, 1\) in fishers"):
        merging.fisher(theta, taus, fishers={"w": jnp.ones((1, 2, 1))})
    with pytest.raises(ValueError, match="labels is 'guessed', want one of 'expected', 'true'"):
        merging.fit_fisher(encode, {}, {}, {}, {}, labels="guessed")
    for off_diagonal in (-0.1, 1.1):
        with pytest.raises(ValueError, match="off_diagonal multiplies .* got"):
            merging.regmean(theta, taus, grams={}, off_diagonal=off_diagonal)
    for shape in ((2, 1, 3, 3), (1, 1, 2, 2), (2, 2, 2), (2, 1, 2, 1)):
        with pytest.raises(ValueError, match=r"grams has shape .* at 'w', want \[T, L, K, K\] for 2 tasks"):
            merging.regmean(theta, taus, grams={"w": jnp.ones(shape)})
    with pytest.raises(ValueError, match="grams holds v, which is not in the task vectors"):
        merging.regmean(theta, taus, grams={"v": jnp.ones((2, 1, 2, 2))})

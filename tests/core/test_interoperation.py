"""Other people's models: one set of laws for the trees of NNX, Equinox, Haiku, Hugging Face's Flax and plain JAX."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict, freeze

import tajax
from tajax import trees, vector_files
from tajax.task_vectors import apply_task_vector, task_vector
from tajax.types import Batch, Head
from tests.merging.oracles import ORACLES

equinox = pytest.importorskip("equinox", reason="needs Equinox: pip install -e '.[test]'")


class Model(NamedTuple):
    """Parameters as a framework has them, and what is done with them there.

    All have the same shapes, so that one compilation serves all frameworks.
    """

    params: Any
    apply: Callable
    """`(params, x [B, 3]) -> [B, 3]`, by the framework's own means."""
    paths: tuple[str, ...]
    pattern: str
    """Of the user's own, for the weights of the first layer."""
    first: str
    """The path of these weights."""


class Moments(NamedTuple):
    """As of an optimiser."""

    mu: Any
    nu: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A layer in plain JAX, with a static field."""

    weight: Any
    bias: Any
    name: str = dataclasses.field(metadata={"static": True})


class Perceptron(nnx.Module):
    """Two layers, with statistics and noise that are no parameters."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)
        self.noise = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x):
        first, second = self.layers
        return second(self.noise(self.norm(jnp.tanh(first(x)))))


def affine(x, weight, bias):
    return x @ weight + bias[None]


def nnx_model():
    graph, params, rest = nnx.split(Perceptron(nnx.Rngs(0)), nnx.Param, ...)
    layers = [f"layers/{layer}/{leaf}" for layer in (0, 1) for leaf in ("bias", "kernel")]
    paths = (*layers, "norm/bias", "norm/scale")
    return Model(params, lambda p, x: nnx.merge(graph, p, rest)(x), paths, "layers/0/kernel", "layers/0/kernel")


def equinox_model():
    model = equinox.nn.MLP(3, 3, 3, 1, key=jax.random.key(0))
    params, static = equinox.partition(model, equinox.is_inexact_array)
    paths = tuple(f"layers/{layer}/{leaf}" for layer in (0, 1) for leaf in ("weight", "bias"))
    return Model(params, lambda p, x: jax.vmap(equinox.combine(p, static))(x), paths, "0/weight", "layers/0/weight")


def haiku_model():
    shapes = {"mlp/~/linear_0": (3, 3), "mlp/~/linear_1": (3, 3)}
    params = {name: {"w": normal(shape, name), "b": normal(shape[1:], name)} for name, shape in shapes.items()}

    def apply(params, x):
        first, second = (params[name] for name in shapes)
        return affine(jnp.tanh(affine(x, first["w"], first["b"])), second["w"], second["b"])

    paths = tuple(f"{name}/{leaf}" for name in shapes for leaf in "bw")
    return Model(params, apply, paths, "linear_0/w", "mlp/~/linear_0/w")


def hugging_face_model():
    shapes = {"0": (3, 3), "1": (3, 3)}
    layers = {n: {"dense": {"kernel": normal(s, n), "bias": normal(s[1:], n)}} for n, s in shapes.items()}
    params = freeze({"bert": {"encoder": {"layer": layers}}})

    def apply(params, x):
        first, second = (params["bert"]["encoder"]["layer"][name]["dense"] for name in "01")
        return affine(jnp.tanh(affine(x, first["kernel"], first["bias"])), second["kernel"], second["bias"])

    paths = tuple(f"bert/encoder/layer/{n}/dense/{leaf}" for n in "01" for leaf in ("bias", "kernel"))
    return Model(params, apply, paths, r"layer/0/.*/kernel", "bert/encoder/layer/0/dense/kernel")


def plain_model():
    params = Moments(Layer(normal((3, 3), "a"), normal((3,), "b"), "in"), [normal((3, 3), "c"), None])

    def apply(params, x):
        return jnp.tanh(affine(x, params.mu.weight, params.mu.bias)) @ params.nu[0]

    return Model(params, apply, ("mu/weight", "mu/bias", "nu/0"), "mu/weight", "mu/weight")


def mixed_model():
    """bfloat16, float16, an integer, a Boolean, a PRNG key, a Python number: what is no float stays where it is."""
    params = {
        "w": normal((3, 3), "a").astype(jnp.bfloat16),
        "b": normal((3,), "b").astype(jnp.float16),
        "index": jnp.arange(3),
        "key": jax.random.key(7),
        "scale": 2.0,
        "seen": np.array([True, False]),
    }
    trained = {"w": True, "b": True, "scale": True}

    def apply(params, x):
        x = x[:, params["index"]] + jax.random.normal(params["key"], (1, 3))
        return affine(x, params["w"].astype(jnp.float32), params["b"].astype(jnp.float32)) * params["scale"]

    return Model(params, apply, tuple(sorted({*params, *trained})), "w", "w")


def normal(shape, name):
    return jax.random.normal(jax.random.key(sum(map(ord, name))), shape)


MODELS = {
    "nnx": nnx_model,
    "equinox": equinox_model,
    "haiku": haiku_model,
    "hugging_face": hugging_face_model,
    "plain": plain_model,
    "mixed": mixed_model,
}
INPUTS = jnp.array([[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]])


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    """A model whose floats are multiples of 1/64, so that differences and sums of a few of them are exact."""
    made = MODELS[request.param]()
    return made._replace(params=changed(made.params, lambda leaf: np.round(64 * leaf) / 64))


def changed(params, change):
    """The tree with `change(leaf)` for each float, in its dtype; in NumPy, which compiles nothing."""

    def of(leaf):
        if not trees.is_float(leaf):
            return leaf
        return jnp.asarray(change(np.asarray(leaf, np.float32)), jnp.result_type(leaf))

    return jax.tree.map(of, params)


def finetuned(model, seed):
    """Parameters some 64ths away, in each leaf by another amount."""
    draw = np.random.default_rng(seed)
    return changed(model.params, lambda leaf: leaf + draw.integers(-9, 10, leaf.shape) / 64)


@pytest.fixture(scope="module")
def tuned(model):
    """Three fine-tuned copies."""
    return [finetuned(model, seed) for seed in range(3)]


def assert_same(a, b):
    """Equal containers, dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), (_, y) in zip(trees.flatten_paths(a).items(), trees.flatten_paths(b).items(), strict=True):
        assert jnp.result_type(x) == jnp.result_type(y), path
        x, y = (
            jax.random.key_data(leaf) if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key) else leaf
            for leaf in (x, y)
        )
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=path)


def test_paths_are_those_that_a_user_of_the_framework_would_write(model):
    assert tuple(trees.flatten_paths(model.params)) == model.paths


def test_a_task_vector_restores_the_finetuned_model_bit_for_bit(model, tuned):
    tau = task_vector(model.params, tuned[0])
    assert jax.tree.structure(tau) == jax.tree.structure(model.params)
    restored = apply_task_vector(model.params, tau)
    assert_same(restored, tuned[0])
    np.testing.assert_array_equal(model.apply(restored, INPUTS), model.apply(tuned[0], INPUTS))
    assert_same(apply_task_vector(restored, tajax.negate(tau)), apply_task_vector(model.params, tau, 0.0))


def test_addition_commutes_and_analogies_close(model, tuned):
    a, b, c = (task_vector(model.params, other) for other in tuned)
    assert_same(tajax.combine([a, b, c]), tajax.combine([c, a, b]))
    assert_same(tajax.combine([a, b], [1.0, -1.0]), tajax.combine([a, tajax.negate(b)]))
    assert_same(tajax.analogy(a, b, a), b)
    np.testing.assert_allclose(tajax.cosine_similarity(a, a), 1.0, rtol=1e-6)
    np.testing.assert_allclose(tajax.dot(a, b), tajax.dot(b, a), rtol=1e-6)


def test_a_mask_of_own_patterns_is_true_where_the_user_said(model):
    mask = tajax.param_mask(model.params, model.pattern)
    assert jax.tree.structure(mask) == jax.tree.structure(model.params)
    assert [path for path, trained in trees.flatten_paths(mask).items() if trained] == [model.first]
    every = trees.flatten_paths(tajax.param_mask(model.params, "all"))
    assert every == {path: trees.is_float(leaf) for path, leaf in trees.flatten_paths(model.params).items()}


def test_linearisation_is_the_model_at_the_start_and_affine_from_there(model, tuned):
    lin = jax.jit(tajax.linearize(model.apply, model.params))
    at_start = lin(model.params, INPUTS)
    np.testing.assert_allclose(at_start, model.apply(model.params, INPUTS), rtol=1e-6)
    taus = [task_vector(model.params, other) for other in tuned[:2]]
    ends = [lin(apply_task_vector(model.params, tau), INPUTS) for tau in taus]
    both = lin(apply_task_vector(model.params, tajax.combine(taus)), INPUTS)
    np.testing.assert_allclose(both - at_start, sum(end - at_start for end in ends), atol=1e-4)  # float32, sums of tens
    base, responses = tajax.linear_responses(model.apply, model.params, taus, INPUTS)
    np.testing.assert_allclose(base + responses.sum(0), both, atol=1e-4)


@pytest.mark.parametrize("name", tajax.merging.METHODS)
def test_every_merging_method_gives_a_model_of_the_framework(model, tuned, name, key):
    taus = [task_vector(model.params, other) for other in tuned[: ORACLES[name].tasks]]
    method, named = tajax.merging.METHODS[name], dict(zip("abc", taus, strict=False))
    options = {"key": key} if method.random else {}
    if method.fit:
        forward = tajax.linearize(model.apply, model.params) if method.models == "linearized" else model.apply
        batches = {
            task: [Batch(INPUTS[:, :3] * t, jnp.arange(2), jnp.ones(2, bool))] for t, task in enumerate("abc", 1)
        }
        head = Head(jnp.eye(3)[:, :2], jnp.int32(2))
        options |= method.fit(forward, model.params, named, batches, dict.fromkeys("abc", head))
    merged = tajax.merging.METHODS[name](model.params, taus, **options)
    assert jax.tree.structure(merged) == jax.tree.structure(model.params)
    assert jax.tree.map(jnp.result_type, merged) == jax.tree.map(jnp.result_type, model.params)
    assert model.apply(merged, INPUTS).shape == (2, 3)


def test_a_vector_comes_back_from_a_file_as_it_was(model, tuned, tmp_path):
    tau = task_vector(model.params, tuned[0])
    for mask in (None, tajax.param_mask(model.params, "all")):
        vector_files.save_task_vector(tmp_path / "tau.safetensors", tau, {"task": "own"}, mask=mask)
        loaded, metadata = vector_files.load_task_vector(tmp_path / "tau.safetensors", model.params)
        assert_same(loaded, tau)
        assert metadata["task"] == "own"


def test_wrong_trees_are_named_by_the_frameworks_path(model, tuned):
    flat = trees.flatten_paths(tuned[0])
    without = trees.unflatten_paths({path: leaf for path, leaf in flat.items() if path != model.first})
    with pytest.raises(ValueError, match=f"^'{model.first}' is in pretrained but not in finetuned"):
        task_vector(model.params, without)
    wider = trees.unflatten_paths(flat | {model.first: jnp.ones((7, 7))})
    with pytest.raises(
        ValueError, match=rf"^'{model.first}' has shape \(\d, \d\) in pretrained but \(7, 7\) in finetuned"
    ):
        task_vector(model.params, wider)
    with pytest.raises(ValueError, match=f"matches none of the \\d parameters(.|\n)*{model.first}"):
        tajax.param_mask(model.params, model.first + "s")


def test_nnx_model_is_updated_in_place_and_then_equals_the_finetuned_one():
    theirs = Perceptron(nnx.Rngs(0))
    model = nnx_model()
    state = finetuned(model, 0)
    tau = task_vector(nnx.state(theirs, nnx.Param), state)
    assert isinstance(tau, nnx.State)
    nnx.update(theirs, apply_task_vector(nnx.state(theirs, nnx.Param), tau))
    np.testing.assert_allclose(theirs(INPUTS), model.apply(state, INPUTS), rtol=1e-5)
    np.testing.assert_array_equal(theirs.layers[0].bias[...], state["layers"][0]["bias"][...])  # from zero: exact


def test_whole_nnx_models_are_trees_too_and_their_noise_stays():
    before, after = Perceptron(nnx.Rngs(0)), Perceptron(nnx.Rngs(0))
    nnx.update(after, finetuned(nnx_model(), 0))
    moved = apply_task_vector(before, task_vector(before, after))
    assert isinstance(moved, Perceptron)
    np.testing.assert_allclose(moved(INPUTS), after(INPUTS), rtol=1e-5)
    assert "noise/rngs/key" in trees.flatten_paths(before)
    with pytest.raises(ValueError, match="'noise/rngs/key' is key<fry> and differs"):
        task_vector(before, Perceptron(nnx.Rngs(1)))


def test_equinox_model_is_combined_again_and_keeps_what_is_no_array():
    model = equinox_model()
    _, static = equinox.partition(equinox.nn.MLP(3, 3, 3, 1, key=jax.random.key(0)), equinox.is_inexact_array)
    moved = apply_task_vector(model.params, task_vector(model.params, finetuned(model, 0)))
    whole = equinox.combine(moved, static)
    assert isinstance(whole, equinox.nn.MLP) and whole.activation is static.activation
    with pytest.raises(TypeError, match=r"^'activation': .* not an array.*`equinox.partition\(model, equinox.is_"):
        task_vector(whole, whole)


def test_containers_of_one_framework_agree_with_those_of_another():
    model = hugging_face_model()
    assert isinstance(model.params, FrozenDict)
    tau = task_vector(model.params, model.params.unfreeze())
    assert isinstance(tau, FrozenDict)
    state = nnx_model().params
    assert_same(task_vector(state, nnx.to_pure_dict(state)), task_vector(state, state))


def test_eight_bit_floats_and_complex_numbers_have_lengths():
    params = {"narrow": jnp.ones(4, jnp.float8_e4m3fn), "wave": jnp.array([1 + 1j, 0])}
    after = {"narrow": jnp.full(4, 3, jnp.float8_e4m3fn), "wave": jnp.array([1 + 4j, 4])}
    tau = task_vector(params, after)
    assert_same(apply_task_vector(params, tau), after)
    np.testing.assert_allclose(tajax.norm(tau), np.sqrt(4 * 2**2 + 3**2 + 4**2), rtol=1e-6)
    np.testing.assert_allclose(tajax.cosine_similarity(tau, tajax.negate(tau)), -1.0, rtol=1e-6)

"""TaLoS: sensitivities against a loop over examples, rounds by hand, and what is trained of the chosen entries."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import data, optim, sparse, trees
from tajax.finetune import finetune, init_state, make_train_step
from tajax.losses import head_logits
from tajax.parametrization import masked
from tajax.regimes import REGIMES
from tajax.training import Context, training_method
from tajax.training.talos import least_sensitive, sensitivity
from tajax.types import Head, Preprocessing

METHOD = training_method(REGIMES["talos"].method)


@pytest.mark.parametrize("rule", ["all", "attention"])
def test_sensitivity_is_the_sum_of_squared_gradients_of_single_examples(
    rule, x64, key, encode, params, head, make_batch
):
    """By a loop, with logits and softmax written out over the classes alone, labels from the same keys."""
    inputs, mask = jnp.asarray(make_batch(9, 4).inputs), trees.param_mask(params, rule)
    trained, restore = trees.split(params, mask)
    classes = int(head.num_classes)

    def log_probabilities(trained, image):
        features = encode(restore(trained), image[None])[0]
        return jax.nn.log_softmax(features / jnp.linalg.norm(features) @ head.weights[:, :classes])

    jacobian = jax.jit(jax.jacrev(log_probabilities))
    want, labels = {path: 0.0 for path in trained}, []
    for image, one in zip(inputs, jax.random.split(key, 9), strict=True):
        labels.append(int(jax.random.categorical(one, head_logits(encode(params, image[None]), head))[0]))
        for path, leaf in jacobian(trained, image).items():
            want[path] = want[path] + np.square(np.asarray(leaf[labels[-1]]))
    assert len(set(labels)) > 1
    found = jax.jit(lambda t, x: sensitivity(encode, restore, t, head, x, key))(trained, inputs)
    assert found.keys() == want.keys() and max(leaf.max() for leaf in want.values()) > 0
    for path, leaf in want.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-8, atol=1e-15, err_msg=path)


def test_labels_are_drawn_in_proportion_to_their_probabilities(x64, key):
    """One weight and two classes: over many draws F is Σ p (1 − p)² w² + (1 − p) p² w² = B p (1 − p) (2 w)² / 4."""
    head_of_two = Head(weights=jnp.array([[1.0, -1.0], [0.5, 0.5]]), num_classes=jnp.int32(2))
    encode = lambda p, x: jnp.stack([jnp.full(len(x), jnp.sin(p["t"])), jnp.full(len(x), jnp.cos(p["t"]))], axis=1)  # noqa: E731
    t, count = 0.3, 4000
    z = 2 * np.sin(t)  # the difference of the two logits
    p = 1 / (1 + np.exp(-z))
    # ∂ log p(1) = (1 − p) ∂z and ∂ log p(2) = −p ∂z, so that the mean of squares is p (1 − p) (∂z)².
    found = sensitivity(encode, lambda t: t, {"t": jnp.asarray(t)}, head_of_two, jnp.zeros(count), key)["t"]
    np.testing.assert_allclose(found / count, p * (1 - p) * (2 * np.cos(t)) ** 2, rtol=0.05)


def test_rounds_keep_the_smallest_and_score_with_what_was_dropped_at_a_tenth(key):
    """16 entries, four rounds down to one: 8, 4, 2, 1. The score is |θ|, by which a scaled entry would look small."""
    theta, seen = {"w": jnp.arange(1.0, 17.0)[::-1].reshape(4, 4)}, []

    def score(trained, key):
        seen.append((np.asarray(trained["w"]).reshape(-1), jax.random.key_data(key)))
        return {"w": jnp.abs(trained["w"])}

    kept = least_sensitive(score, theta, density=1 / 16, rounds=4, key=key)
    assert np.flatnonzero(kept["w"]).tolist() == [15]  # the entry that is 1; dropped ones do not come back
    plain = np.arange(16.0, 0, -1)
    for number, (given, drawn) in enumerate(seen):
        left = 16 // 2**number
        np.testing.assert_allclose(given, np.where(plain <= left, plain, 0.1 * plain), rtol=1e-6)
        np.testing.assert_array_equal(drawn, jax.random.key_data(jax.random.fold_in(key, number)))


@pytest.mark.parametrize(("density", "rounds"), [(0.1, 4), (0.25, 1), (0.5, 3), (1.0, 2)])
def test_the_count_is_exact_whatever_ties_and_zeros_there_are(density, rounds, rng, key):
    theta = {"a": jnp.ones((7, 9)), "b": jnp.ones(37)}
    levels = {path: jnp.asarray(rng(80).integers(3, size=leaf.shape), jnp.float32) for path, leaf in theta.items()}
    kept = least_sensitive(lambda t, key: levels, theta, density=density, rounds=rounds, key=key)
    assert sum(where.sum() for where in kept.values()) == round(100 * density)
    zero = sum(int(np.sum(kept[path] & (np.asarray(levels[path]) == 0))) for path in theta)
    met = sum(int(np.sum(np.asarray(leaf) > 0)) for leaf in levels.values())
    assert zero == max(0, round(100 * density) - met)  # what nothing meets comes last


def test_a_density_that_leaves_nothing_and_scores_that_say_nothing_are_refused(key):
    theta = {"w": jnp.ones(4)}
    options = {"density": 0.5, "rounds": 2, "key": key}
    with pytest.raises(ValueError, match="a density of 0.1 leaves none of the 4 entries"):
        least_sensitive(lambda t, key: t, theta, **options | {"density": 0.1})
    with pytest.raises(ValueError, match="all sensitivities are 0"):
        least_sensitive(lambda t, key: {"w": jnp.zeros(4)}, theta, **options)
    with pytest.raises(ValueError, match="the sensitivity of 'w' is not finite in 1 entries"):
        least_sensitive(lambda t, key: {"w": jnp.array([1.0, jnp.nan, 1.0, 1.0])}, theta, **options)


@pytest.fixture
def context(tmp_path, encode, params, head, make_batch):
    """Of a task of 40 images, with the encoder of one block."""
    batch = make_batch(40, 7)
    arrays = {
        f"{split}_{what}": a
        for split in ("train", "test")
        for what, a in zip(("images", "labels"), batch, strict=False)
    }
    np.savez(tmp_path / "noise.npz", class_names=["ant", "bee", "cat", "dog"], **arrays)
    inputs = Preprocessing(4, (0.5,) * 3, (0.5,) * 3)
    encoder = types.SimpleNamespace(
        params=params, apply=encode, inputs=inputs, identity=types.SimpleNamespace(sha256="0")
    )
    return Context(
        encoder=encoder,
        task=data.open_task(tmp_path / "noise.npz"),
        others=[],
        head=head,
        mask=trees.param_mask(params, "all"),
        options={"density": 0.1, "scored": 16, "rounds": 4},
        batch_size=8,
        seed=3,
        kept=tmp_path / "kept",
        workdir=tmp_path,
        share=(0, 1),
        workers=0,
    )


def places(context, parts):
    """Of each leaf the entries that a parametrization trains, found by moving them."""
    moved = parts.restore(
        context.encoder.params, {p: leaf + 1 for p, leaf in parts.init(context.encoder.params).items()}
    )
    return jax.tree.map(lambda a, b: np.asarray(a) != np.asarray(b), moved, context.encoder.params)


def test_training_moves_the_entries_alone_with_their_moments_and_is_the_same_again(context, make_batch):
    parts = METHOD.parametrization(context)
    chosen, params = places(context, parts), context.encoder.params
    count = round(0.1 * trees.count_params(params))
    assert METHOD.entries(trees.count_params(params), context.options) == count
    tx = optim.adamw(1e-2)
    step = make_train_step(context.encoder.apply, tx, parts)
    batches = [make_batch(8, number) for number in range(3)]
    state = finetune(step, init_state(parts.init(params), tx), params, context.head, batches, num_steps=3)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == 2 * count
    end = parts.finetuned(params, state.trained)
    rows = lambda leaf: np.asarray(leaf).reshape(-1).view(np.int32)  # noqa: E731
    for before, after, where in zip(*map(jax.tree.leaves, (params, end, chosen)), strict=True):
        assert np.all(where.reshape(-1) | (rows(before) == rows(after)))
    assert sum(where.sum() for where in jax.tree.leaves(chosen)) == count

    # Against training of everything in which the gradient of all other entries is zero: AdamW by hand knows no others.
    first, whole = {path: np.asarray(leaf) for path, leaf in parts.init(params).items()}, masked()
    grads = jax.grad(
        lambda p: (
            -jnp.sum(
                jax.nn.log_softmax(head_logits(context.encoder.apply(p, batches[0].inputs), context.head)[:, :4])[
                    jnp.arange(8), batches[0].label
                ]
            )
            / 8
        )
    )(params)  # noqa: E501
    g = {path: np.asarray(leaf)[trees.flatten_paths(chosen)[path]] for path, leaf in whole.init(grads).items()}
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in g.values()))
    one = finetune(step, init_state(parts.init(params), tx), params, context.head, batches, num_steps=1)
    for path, leaf in one.trained.items():
        clipped = g[path] * min(1.0, 1 / norm)
        want = first[path] - 1e-2 * (clipped / (np.abs(clipped) + 1e-8) + 0.1 * first[path])
        np.testing.assert_allclose(leaf, want, rtol=2e-4, atol=1e-5, err_msg=path)


def test_a_run_that_goes_on_reads_its_entries_and_another_scores_the_same(context, tmp_path):
    first = places(context, METHOD.parametrization(context))
    (file,) = context.kept.iterdir()
    content = file.read_bytes()
    again = context._replace(encoder=types.SimpleNamespace(**vars(context.encoder) | {"apply": None}))  # cannot score
    jax.tree.map(np.testing.assert_array_equal, places(again, METHOD.parametrization(again)), first)
    other = context._replace(kept=tmp_path / "other")
    jax.tree.map(np.testing.assert_array_equal, places(other, METHOD.parametrization(other)), first)
    assert (other.kept / file.name).read_bytes() == content
    for change in ({"seed": 4}, {"options": context.options | {"scored": 8}}):
        moved = context._replace(kept=tmp_path / f"kept{len(change)}{next(iter(change))}", **change)
        found = places(moved, METHOD.parametrization(moved))
        assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (found, first)), strict=True))


def test_entries_that_are_not_this_runs_are_refused_by_file(context):
    METHOD.parametrization(context)
    (file,) = context.kept.iterdir()
    with pytest.raises(ValueError, match=f'{file.name} holds entries of another run: .*"density": 0.1'):
        METHOD.parametrization(context._replace(options=context.options | {"density": 0.2}))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{file.name} .* is truncated, damaged"):
        METHOD.parametrization(context)


def test_a_density_too_small_for_what_is_trained_is_refused_before_a_run(context):
    METHOD.check(context.encoder, context.mask, context.options)
    few = trees.param_mask(context.encoder.params, "ln_1/bias")
    with pytest.raises(ValueError, match="finetune.density: a density of 0.05 leaves none of the 6 entries"):
        METHOD.check(context.encoder, few, context.options | {"density": 0.05})


def test_of_layers_that_are_frozen_no_entry_is_chosen(context):
    mask = trees.param_mask(context.encoder.params, "linear_layers", layers=(1, 3))  # rows stand for layers here
    chosen = places(context, METHOD.parametrization(context._replace(mask=mask)))
    assert not any(
        where[[0, *range(3, len(where))]].any() for where in jax.tree.leaves(chosen["blocks"]) if where.ndim == 2
    )
    assert sum(where.sum() for where in jax.tree.leaves(chosen)) == round(
        0.1 * trees.count_params(context.encoder.params, mask)
    )


def test_nobody_keeps_more_than_a_bit_an_entry(context):
    METHOD.parametrization(context)
    (file,) = context.kept.iterdir()
    total = trees.count_params(context.encoder.params)
    assert total / 8 <= file.stat().st_size < total / 8 + 3000  # a header
    assert sparse.packed(np.ones(9, bool)).nbytes == 2

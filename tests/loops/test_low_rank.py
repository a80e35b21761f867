"""Low-rank factors: the product by hand, the tangent space in factors and in θ, what A depends on, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tajax import encoders, finetune, linearization, optim, task_vectors, trees
from tajax.parametrization import masked
from tajax.training import linear_low_rank, low_rank
from tajax.types import Batch, Head

RANK, ALPHA = 3, 1.5
KERNELS = ("blocks/attn/query/kernel", "blocks/mlp/fc_in/kernel")


@pytest.fixture
def mask(params):
    return trees.param_mask(params, "|".join(KERNELS))


def drawn(rng, shapes, number=0):
    draw = rng(900 + number).normal
    return {name: jnp.asarray(draw(size=factor.shape), factor.dtype) for name, factor in shapes.items()}


def test_the_product_by_hand():
    """Two layers of 2 × 1 and rank 1, of which the second is trained, at α/r = 3."""
    pretrained = {"blocks": {"kernel": jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]])}, "scale": jnp.array([-0.0])}
    mask = {"blocks": {"kernel": np.array([False, True])}, "scale": False}
    lora = low_rank.low_rank(mask, rank=1, alpha=3.0, seed=0)
    factors = {"blocks/kernel/lora_a": jnp.array([[[2.0], [-1.0]]]), "blocks/kernel/lora_b": jnp.array([[[0.5]]])}
    assert {name: factor.shape for name, factor in lora.init(pretrained).items()} == {
        name: factor.shape for name, factor in factors.items()
    }
    theta = lora.finetuned(pretrained, factors)
    assert theta["blocks"]["kernel"].tolist() == [[[1.0], [2.0]], [[3.0 + 3 * 1.0], [4.0 - 3 * 0.5]]]
    assert theta["scale"] is pretrained["scale"]
    tangent = linear_low_rank.linear_low_rank(mask, rank=1, alpha=3.0, seed=0)
    (a,) = np.asarray(lora.init(pretrained)["blocks/kernel/lora_a"], np.float64)
    theta = tangent.finetuned(pretrained, {"blocks/kernel/lora_b": jnp.array([[[2.0]]])})
    np.testing.assert_allclose(theta["blocks"]["kernel"][1], [[3], [4]] + 6 * a, rtol=1e-6)
    assert theta["blocks"]["kernel"][0].tolist() == [[1.0], [2.0]]


def test_training_begins_at_the_pretrained_model(params, mask):
    for made in (low_rank.low_rank, linear_low_rank.linear_low_rank):
        parts = made(mask, rank=RANK, alpha=ALPHA, seed=1)
        begun = parts.restore(params, parts.init(params))
        for path, leaf in trees.flatten_paths(params).items():
            np.testing.assert_array_equal(trees.flatten_paths(begun)[path], leaf)
            assert path in KERNELS or trees.flatten_paths(begun)[path] is leaf


def test_the_tangent_space_in_the_factors_is_that_of_the_vector_that_is_kept(
    encode, x64, params, mask, rng, make_batch
):
    """f(θ₀) + J_B(B − 0) = f_lin(θ₀ + τ); and for A and B together A's movement has no first-order effect."""
    images = make_batch(9, 0).inputs
    tangent = linear_low_rank.linear_low_rank(mask, rank=RANK, alpha=ALPHA, seed=2)
    trained = drawn(rng, tangent.init(params))
    in_factors = linearization.linearize(lambda t, x: encode(tangent.restore(params, t), x), tangent.init(params))
    f_lin = linearization.linearize(encode, params, mask=mask)
    kept = tangent.finetuned(params, trained)
    got, want = in_factors(trained, images), f_lin(kept, images)
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)  # float64, sums of at most 48 terms
    assert np.max(np.abs(want - encode(kept, images))) > 1e-3  # the model is not linear: this says something

    both = low_rank.low_rank(mask, rank=RANK, alpha=ALPHA, seed=2)
    start = both.init(params)
    moved = start | trained | {n: a + drawn(rng, {n: a}, 1)[n] for n, a in start.items() if n.endswith("lora_a")}
    in_both = linearization.linearize(lambda t, x: encode(both.restore(params, t), x), start)
    np.testing.assert_allclose(in_both(moved, images), want, rtol=1e-11, atol=1e-12)
    tau = task_vectors.task_vector(params, kept)
    for path, leaf in trees.flatten_paths(tau).items():  # τ = (α/r) A₀B, in NumPy
        if path in KERNELS:
            a, b = (np.asarray(part, np.float64) for part in (start[f"{path}/lora_a"], trained[f"{path}/lora_b"]))
            np.testing.assert_allclose(leaf, ALPHA / RANK * a @ b, rtol=1e-12, atol=1e-14)
            assert np.linalg.matrix_rank(np.asarray(leaf), tol=1e-9) == RANK
        else:
            assert not np.any(leaf)


@pytest.mark.parametrize("made", [low_rank.low_rank, linear_low_rank.linear_low_rank])
def test_gradients_of_a_step_are_those_of_the_dense_kernel_through_the_factors(
    made, encode, x64, params, mask, rng, head, make_batch
):
    """∂/∂A = s G Bᵀ and ∂/∂B = s Aᵀ G for the gradient G of the kernel, by hand; the tangent step has G at θ₀."""
    parts, batch, linear = made(mask, rank=RANK, alpha=ALPHA, seed=3), make_batch(12, 0), made is not low_rank.low_rank
    trained = drawn(rng, parts.init(params), 2)
    if linear:  # where the expansion is the model
        trained = parts.init(params)
    tx = optax.sgd(1.0)
    step = finetune.make_train_step(encode, tx, parts, linearized=linear)
    state, _ = step(finetune.init_state(trained, tx), params, head, batch)
    whole = finetune.make_train_step(encode, tx, masked(mask))
    theta = parts.restore(params, trained)
    after, _ = whole(finetune.init_state(trees.split(theta, mask)[0], tx), theta, head, batch)
    for path in KERNELS:
        grad = np.asarray(trees.flatten_paths(theta)[path] - after.trained[path])
        a = low_rank.initial_factor(params, mask, path, rank=RANK, seed=3) if linear else trained[f"{path}/lora_a"]
        want = {f"{path}/lora_b": np.asarray(a).T @ grad}
        if not linear:
            want[f"{path}/lora_a"] = grad @ np.asarray(trained[f"{path}/lora_b"]).T
        for name, gradient in want.items():
            moved = np.asarray(trained[name] - state.trained[name])
            np.testing.assert_allclose(moved, ALPHA / RANK * gradient, rtol=1e-9, atol=1e-13, err_msg=name)
    assert set(state.trained) == {f"{p}/lora_{x}" for p in KERNELS for x in (("b",) if linear else ("a", "b"))}


def test_the_first_factor_is_the_same_whatever_else_is_trained_and_wherever_it_is_drawn(key):
    """Of the bound and moments that PEFT's draw has; another seed or path gives another."""
    stack = {"blocks": {name: {"kernel": jnp.zeros((3, 64, 32))} for name in ("one", "two")}}
    every, path = jax.tree.map(lambda leaf: True, stack), "blocks/one/kernel"
    some = {"blocks": {"one": {"kernel": np.array([False, True, True])}, "two": {"kernel": False}}}
    whole = low_rank.low_rank(every, rank=16, alpha=1.0, seed=5).init(stack)
    part = low_rank.low_rank(some, rank=16, alpha=1.0, seed=5).init(stack)
    np.testing.assert_array_equal(part[f"{path}/lora_a"], whole[f"{path}/lora_a"][1:])
    compiled = jax.jit(lambda tree: 1.0 * low_rank.initial_factor(tree, some, path, rank=16, seed=5))(stack)
    np.testing.assert_array_equal(compiled, part[f"{path}/lora_a"])
    drawn = np.asarray(whole[f"{path}/lora_a"], np.float64)
    assert np.abs(drawn).max() <= 1 / 8 and np.abs(drawn).max() > 0.99 / 8  # 1/√64
    np.testing.assert_allclose(drawn.std(), 1 / 8 / np.sqrt(3), rtol=0.05)  # 3,072 draws: 2.3 deviations
    assert not np.array_equal(drawn, whole["blocks/two/kernel/lora_a"])
    assert not np.array_equal(drawn[0], drawn[1])
    other = low_rank.low_rank(every, rank=16, alpha=1.0, seed=6 + 2**80).init(stack)
    assert not np.array_equal(drawn, other[f"{path}/lora_a"])


def test_training_lowers_the_loss_and_no_other_number_moves(encode, params, mask, head, make_batch):
    for made in (low_rank.low_rank, linear_low_rank.linear_low_rank):
        parts, tx, batch = made(mask, rank=RANK, alpha=ALPHA, seed=4), optim.adamw(0.1), make_batch(12, 0)
        step = finetune.make_train_step(encode, tx, parts, linearized=made is not low_rank.low_rank)
        state, losses = finetune.init_state(parts.init(params), tx), []
        for _ in range(20):
            state, metrics = step(state, params, head, batch)
            losses.append(float(metrics["loss"]))
        assert losses[-1] < 0.9 * losses[0]
        theta = trees.flatten_paths(parts.finetuned(params, state.trained))
        for path, leaf in trees.flatten_paths(params).items():
            assert np.array_equal(theta[path], leaf) == (path not in KERNELS)


@pytest.fixture(scope="module")
def tiny():
    return encoders.load("tiny")


def chosen(encoder, rule, layers=None):
    return trees.param_mask(encoder.params, rule, layers=layers, rules=encoder.rules, stacked=encoder.stacked)


def test_what_is_no_dense_kernel_is_refused_with_the_rules_that_fit(tiny):
    options = {"rank": 4, "alpha": 4.0}
    for rule in ("attention", "mlp", "linear_layers", "attention_query_value", "projection/kernel"):
        low_rank.check(tiny, chosen(tiny, rule), options)
    for rule, named in {
        "all": "blocks/attn/key/bias, blocks/attn/out/bias",
        "attention_with_bias": "blocks/attn/key/bias",
        "biases": "bias",
        "patch_embedding/kernel": "patch_embedding/kernel",  # a convolution
        "position_embedding": "position_embedding",
    }.items():
        with pytest.raises(ValueError, match=rf"dense kernels, and .* names .*{named}.* attention, .*linear_layers\.$"):
            low_rank.check(tiny, chosen(tiny, rule), options)


def test_a_rank_above_the_smaller_side_is_refused_by_name(tiny):
    mask = chosen(tiny, "attention", layers=(0, 2))
    side = tiny.params["blocks"]["attn"]["key"]["kernel"].shape[-1]
    low_rank.check(tiny, mask, {"rank": side, "alpha": 4.0})
    message = rf"rank is {side + 1}, but blocks/attn/key/kernel has .*\({side}, {side}\).*rank={side} or less"
    with pytest.raises(ValueError, match=message):
        low_rank.check(tiny, mask, {"rank": side + 1, "alpha": 4.0})


def test_as_many_numbers_are_trained_as_are_counted(tiny):
    for layers in (None, (1, 3)):
        mask, options = chosen(tiny, "linear_layers", layers), {"rank": 4, "alpha": 4.0}
        for module, made in ((low_rank, low_rank.low_rank), (linear_low_rank, linear_low_rank.linear_low_rank)):
            factors = made(mask, seed=0, **options).init(tiny.params)
            assert module.count(tiny.params, mask, options) == sum(factor.size for factor in factors.values())


def test_a_run_of_two_batches_never_sees_what_frozen_layers_hold(tiny):
    """Of stacked kernels with two trained layers, the others keep their bits and have no gradient."""
    mask = chosen(tiny, "attention", (2, 4))
    parts, tx = low_rank.low_rank(mask, rank=2, alpha=2.0, seed=0), optim.adamw(1e-2)
    step = finetune.make_train_step(tiny.apply, tx, parts)
    images = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
    batch, head = Batch(images, np.arange(4, dtype=np.int32), np.ones(4, bool)), Head(jnp.eye(128, 4), jnp.int32(4))
    state = finetune.init_state(parts.init(tiny.params), tx)
    for _ in range(2):
        state, _ = step(state, tiny.params, head, batch)
    tau = trees.flatten_paths(task_vectors.task_vector(tiny.params, parts.finetuned(tiny.params, state.trained)))
    for path, leaf in tau.items():
        moved = [bool(np.any(layer)) for layer in leaf] if path.startswith("blocks/") else [bool(np.any(leaf))]
        assert moved == (
            [False, False, True, True] if path.endswith("kernel") and "/attn/" in path else [False] * len(moved)
        )

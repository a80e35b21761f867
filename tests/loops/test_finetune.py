"""One step and the loop around it: what is trained, on what gradient, and how a run stops and goes on."""

import itertools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tajax import checkpoints, data, interrupts, optim, task_vectors, trees
from tajax.finetune import NonFiniteLossError, TrainState, finetune, init_state, make_train_step, train
from tajax.parametrization import Parametrization, masked
from tajax.types import Batch, Preprocessing


def bits(tree):
    return {path: np.asarray(leaf).tobytes() for path, leaf in trees.flatten_paths(tree).items()}


@pytest.mark.parametrize(
    ("rule", "layers"), [*((rule, None) for rule in trees.RULES), ("attention_with_bias", (2, 5)), ("biases", (1, 6))]
)
def test_frozen_leaves_are_bit_identical_and_the_others_move(rule, layers, encode, params, head, make_batch):
    mask = trees.param_mask(params, rule, layers=layers)  # the block is one layer; its rows stand for layers here
    parts, tx = masked(mask), optim.adamw(1e-2)
    step = make_train_step(encode, tx, parts)
    batches = [make_batch(8, number) for number in range(3)]
    state = finetune(step, init_state(parts.init(params), tx), params, head, batches, num_steps=3)
    end = parts.restore(params, state.trained)
    before, after = bits(params), bits(end)
    moved = {path for path in before if before[path] != after[path]}
    verdicts = trees.trained_layers(params, mask)
    assert moved == {path for path, trained in verdicts.items() if np.any(trained)}
    for path in moved:
        row = lambda tree: [np.asarray(row).tobytes() for row in trees.flatten_paths(tree)[path]]  # noqa: B023, E731
        rows = np.array([a != b for a, b in zip(row(params), row(end), strict=True)])
        np.testing.assert_array_equal(rows, np.broadcast_to(verdicts[path], rows.shape))
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert held == 2 * trees.count_params(params, mask)
    tau = trees.flatten_paths(task_vectors.task_vector(params, end))
    assert {path for path, leaf in tau.items() if np.any(leaf)} == moved


@pytest.fixture
def start(params, taus):
    """Parameters whose attention is away from θ₀, where tangent and ordinary gradients differ."""
    mask = trees.param_mask(params, "attention")
    moved = task_vectors.apply_task_vector(params, taus[0])
    return jax.tree.map(lambda p, m, trained: m if trained else p, params, moved, mask)


def by_hand(encode, params, start, head, batch):
    """Loss, top-1 and gradient in all leaves, of the ordinary and of the tangent model, over the rows that count."""
    rows, classes = np.flatnonzero(batch.mask), int(head.num_classes)

    def tangent(theta, images):
        return sum(jax.jvp(lambda p: encode(p, images), (params,), (jax.tree.map(jnp.subtract, theta, params),)))

    def loss(theta, model):
        features = model(theta, jnp.asarray(batch.inputs[rows]))
        logits = features / jnp.linalg.norm(features, axis=-1, keepdims=True) @ head.weights[:, :classes]
        picked = jax.nn.log_softmax(logits)[jnp.arange(len(rows)), batch.label[rows]]
        return -picked.mean(), (logits.argmax(1) == batch.label[rows]).mean(dtype=jnp.float64)

    return jax.jit(lambda p: [jax.value_and_grad(loss, has_aux=True)(p, m) for m in (encode, tangent)])(start)


def one_step(encode, params, start, head, batch, *, rule="all", data=None, **options):
    """Gradient and metrics of one step from `start`, by plain descent at rate 1."""
    parts, tx = masked(trees.param_mask(params, rule)), optax.sgd(1.0)
    step = make_train_step(encode, tx, parts, **options)
    state, metrics = step(init_state(parts.init(start), tx), params, head, batch, data)
    after = parts.restore(start, state.trained)
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), start, after), metrics


def test_gradient_of_a_step(encode, x64, params, start, head, make_batch):
    """On every row, and in parts with different numbers of rows that count, where a mean of means would be wrong."""
    batch, before = make_batch(12, 0, masked=5), bits((params, start))
    expected = by_hand(encode, params, start, head, batch)
    queries = [np.asarray(grads["blocks"]["attn"]["query"]["kernel"]) for _, grads in expected]
    assert not np.allclose(*queries, rtol=1e-2)  # ordinary and tangent gradient can be told apart
    for rule, linearized, parts in [("all", 0, 3), ("all", 1, 1), ("attention", 1, 3)]:
        got, metrics = one_step(
            encode, params, start, head, batch, rule=rule, linearized=bool(linearized), accumulation_steps=parts
        )
        (loss, top1), grads = expected[linearized]
        assert 0 < top1 < 1
        want = jax.tree.map(lambda g, trained: g * trained, grads, trees.param_mask(params, rule))
        got, want = trees.flatten_paths(got), trees.flatten_paths(want)
        for path, leaf in want.items():  # float64 everywhere; the difference of parameters of size 1 loses some digits
            np.testing.assert_allclose(got[path], leaf, rtol=1e-9, atol=1e-13, err_msg=f"{path} {rule} {linearized}")
        norm = np.sqrt(sum((leaf**2).sum() for leaf in got.values()))
        for name, value in {"loss": loss, "top1": top1, "grad_norm": norm}.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-9)
    assert bits((params, start)) == before  # steps donate their state, and neither θ₀ nor what it was copied from


@pytest.mark.parametrize("linearized", [False, True])
def test_a_penalty_is_added_once_whatever_the_parts(linearized, encode, x64, params, start, head, make_batch):
    """strength · ½‖θ − θ₀‖² has the gradient strength · (θ − θ₀); the model in training is there to be asked, too."""
    batch = make_batch(12, 0, masked=5)

    def penalty(trained, seen):
        tau = task_vectors.task_vector(seen.pretrained, seen.restore(trained))
        drift = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tau)) / 2
        return seen.data * drift + 0 * jnp.sum(seen.apply(trained, seen.batch.inputs))

    options = {"rule": "attention", "linearized": linearized, "accumulation_steps": 3}
    plain, without = one_step(encode, params, start, head, batch, **options)
    got, metrics = one_step(encode, params, start, head, batch, penalty=penalty, data=jnp.asarray(0.7), **options)
    tau = task_vectors.task_vector(params, start)
    want = trees.flatten_paths(jax.tree.map(lambda g, t: g + 0.7 * np.asarray(t), plain, tau))
    for path, leaf in trees.flatten_paths(got).items():
        np.testing.assert_allclose(leaf, want[path], rtol=1e-9, atol=1e-13, err_msg=path)
    np.testing.assert_allclose(metrics["penalty"], 0.7 * task_vectors.norm(tau) ** 2 / 2, rtol=1e-9)
    assert "penalty" not in without and float(metrics["loss"]) == float(without["loss"])


def test_any_coordinates_can_be_trained(encode, x64, params, head, make_batch):
    """One number that scales a leaf: its gradient is the leaf's gradient along the leaf, and nothing else moves."""
    path = "blocks/attn/query/kernel"

    def restore(pretrained, trained):
        scaled = lambda p, leaf: leaf * trained["scale"] if p == path else leaf  # noqa: E731
        return trees.unflatten_paths({p: scaled(p, v) for p, v in trees.flatten_paths(pretrained).items()})

    parts = Parametrization(init=lambda pretrained: {"scale": jnp.ones(())}, restore=restore)
    tx, batch = optax.sgd(1.0), make_batch(12, 0)
    step = make_train_step(encode, tx, parts)
    state, _ = step(init_state(parts.init(params), tx), params, head, batch)
    grads, _ = one_step(encode, params, params, head, batch)
    leaf, grad = (trees.flatten_paths(tree)[path] for tree in (params, grads))
    np.testing.assert_allclose(1 - state.trained["scale"], np.sum(np.asarray(leaf) * grad), rtol=1e-9)


def test_masked_rows_change_nothing_whatever_they_hold(rng, head, make_batch):
    """Operation by operation: compiled, XLA happens to make a selection of a product with a mask, and hides ∞ · 0."""
    params = {"kernel": jnp.asarray(rng(30).normal(size=(48, 5)), jnp.float32)}
    rubbish = make_batch(12, 3, masked=5)
    blank = Batch(*(np.where(rubbish.mask.reshape(-1, *[1] * (a.ndim - 1)), a, 0).astype(a.dtype) for a in rubbish))
    assert not np.array_equal(rubbish.label, blank.label)

    def encode(params, images):
        return (images.astype(jnp.float32) / 255).reshape(len(images), 48) @ params["kernel"]

    with jax.disable_jit():
        (grads, metrics), (others, same) = (one_step(encode, params, params, head, b) for b in (rubbish, blank))
    assert bits(grads) == bits(others)
    assert bits(metrics) == bits(same)
    assert np.isfinite(metrics["loss"])


def losses_of(values):
    """A step in place of a trained one, whose loss at step k is `values[k]`."""

    def step(state, pretrained, head, batch, data):
        return state._replace(step=state.step + 1), {"loss": np.float32(values[int(state.step)])}

    return step


def fake_run(values, head, make_batch, **options):
    state = TrainState(jnp.int32(0), {}, ())
    batches = [make_batch(2, 0)] * len(values)
    return finetune(losses_of(values), state, {}, head, batches, num_steps=len(values), **options)


def test_log_has_the_mean_since_the_last_call_and_the_last_step_is_not_lost(head, make_batch):
    calls = []
    fake_run([1, 2, 3, 5, 8], head, make_batch, log_every=2, on_log=lambda done, means: calls.append((done, means)))
    assert calls == [(2, {"loss": 1.5}), (4, {"loss": 4.0}), (5, {"loss": 8.0})]


def test_checkpoints_come_every_so_often_and_not_at_the_end(head, make_batch):
    """With the metrics not logged yet: what is logged does not depend on where a run was interrupted."""
    seen = []
    state = fake_run(
        [1, 2, 3, 4, 5, 6],
        head,
        make_batch,
        log_every=3,
        on_log=lambda done, means: seen.append((done, means["loss"])),
        checkpoint_every=2,
        on_checkpoint=lambda s, unlogged: seen.append((int(s.step), [values["loss"] for values in unlogged])),
    )
    assert seen == [(2, [1, 2]), (3, 2.0), (4, [4]), (6, 5.0)]
    assert int(state.step) == 6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_loss_stops_at_its_step_and_is_never_kept(bad, head, make_batch):
    """The loss is read from the device every fourth step alone; the step named is the first bad one."""
    kept = []
    with pytest.raises(NonFiniteLossError, match=f"{bad} at step 6 of task 'dtd', learning rate 0.5") as error:
        fake_run(
            [1, 1, 1, 1, 1, bad, 1, bad, 1],
            head,
            make_batch,
            log_every=4,
            checkpoint_every=1,
            on_checkpoint=lambda s, _: kept.append(int(s.step)),
            describe=lambda step: f" of task 'dtd', learning rate {0.1 * step:.3g}",
        )
    assert "Lower the learning rate" in str(error.value)  # the way out
    assert max(kept) == 5


def test_training_needs_a_batch_for_every_step(head, make_batch):
    state = TrainState(jnp.int32(0), {}, ())
    with pytest.raises(ValueError, match="the batches ended after 2 of 3 steps"):
        finetune(losses_of([0, 0, 0]), state, {}, head, [make_batch(4, n) for n in (0, 1)], num_steps=3)


@pytest.fixture
def task(tmp_path, make_batch):
    """40 images of the encoder's size in an .npz file."""
    batch = make_batch(40, 7)
    arrays = {
        f"{split}_{what}": a
        for split in ("train", "test")
        for what, a in zip(("images", "labels"), batch, strict=False)
    }
    np.savez(tmp_path / "noise.npz", class_names=["ant", "bee", "cat", "dog"], **arrays)
    return data.open_task(tmp_path / "noise.npz")


@pytest.mark.parametrize(
    ("rule", "linearized", "optimizer"),
    [("all", False, "adamw"), ("attention", False, "adamw"), ("all", True, "adamw"), ("all", False, "muon")],
)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    rule, linearized, optimizer, encode, params, head, task, tmp_path
):
    schedule = optim.make_schedule(learning_rate=1e-2, num_steps=7, warmup_steps=2)
    parts, tx = masked(trees.param_mask(params, rule)), optim.OPTIMIZERS[optimizer](schedule)
    step = make_train_step(encode, tx, parts, linearized=linearized)
    size = Preprocessing(4, (0.5,) * 3, (0.5,) * 3)

    def run(state, **options):
        batches = data.load(
            task,
            "train",
            batch_size=8,
            preprocessing=size,
            augment=True,
            seed=5,
            epochs=None,
            start_batch=int(state.step),
        )
        return finetune(step, state, params, head, batches, num_steps=7, **options)

    def losses(state, **options):
        logged = {}
        state = run(state, log_every=4, on_log=lambda done, means: logged.update({done: means}), **options)
        return state, logged

    def stop(state, unlogged):
        with checkpoints.Writer(tmp_path / "kept", config_hash="0") as writer:
            writer.save(state, step=int(state.step), notes={"unlogged": unlogged})
        raise KeyboardInterrupt

    start = parts.init(params)
    whole, logged = losses(init_state(start, tx))
    with pytest.raises(KeyboardInterrupt):
        run(init_state(start, tx), checkpoint_every=3, on_checkpoint=stop)
    restored, notes = checkpoints.restore_latest(tmp_path / "kept", init_state(start, tx))
    assert int(restored.step) == 3
    resumed, logged_later = losses(restored, **notes)
    assert [np.asarray(a).tobytes() for a in jax.tree.leaves(resumed)] == [
        np.asarray(a).tobytes() for a in jax.tree.leaves(whole)
    ]
    assert bits(resumed.trained) != bits(start)
    assert logged_later == logged  # the mean over steps before and after the stop, to the bit


def test_checkpoints_come_by_time_too(head, make_batch, monkeypatch):
    """Steps of one second each by a clock that stands in for the real one."""
    seconds, kept = itertools.count(), []
    monkeypatch.setattr("tajax.finetune.time.monotonic", lambda: next(seconds))
    options = {"checkpoint_seconds": 3.0, "on_checkpoint": lambda state, _: kept.append(int(state.step))}
    fake_run([1] * 9, head, make_batch, **options)
    assert kept == [3, 6]  # the clock is read once more after each


@pytest.mark.parametrize("at", [2, 4])
def test_signal_keeps_the_step_it_comes_in_and_leaves(at, head, make_batch):
    """In the middle or in the last of four steps; the loop of a process that ends at signals otherwise."""
    kept, values = [], [1.0, 2.0, 3.0, 4.0]

    def step(state, batch):
        if state.step + 1 == at:
            signal.raise_signal(signal.SIGTERM)
        return state._replace(step=state.step + 1), {"loss": np.float32(values[int(state.step)])}

    state = TrainState(jnp.int32(0), {}, ())
    options = {"num_steps": 4, "on_checkpoint": lambda state, unlogged: kept.append((int(state.step), unlogged))}
    with interrupts.handled(), pytest.raises(interrupts.Interrupted, match="SIGTERM") as stop:
        train(step, state, [make_batch(2, 0)] * 4, **options)
    assert kept == [(at, ({"loss": 1.0}, {"loss": 2.0}) if at == 2 else ())]
    assert interrupts.exit_code(stop.value) == 75

"""Fine-tuning of an image encoder under a frozen head: one pure step, and the loop around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tajax import optim, parallel
from tajax.linearize import linearize, split
from tajax.losses import cross_entropy, head_logits
from tajax.types import ApplyFn, Batch, Head, Mask, Params


class TrainState(NamedTuple):
    """All that changes from step to step: the number of steps taken, the parameters, the moments."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; the message says at which step and learning rate."""


TrainStep = Callable[[TrainState, Params, Head, Batch], tuple[TrainState, dict[str, jax.Array]]]


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step. Parameters are copied, because steps donate their input."""
    return TrainState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), tx.init(params))


def make_train_step(
    encode: ApplyFn,
    tx: optax.GradientTransformation,
    mask: Mask,
    *,
    linearized: bool = False,
    accumulation_steps: int = 1,
) -> TrainStep:
    """A compiled step of minimising the cross-entropy of the head's logits over the trained leaves.

    With `linearized` the encoder is its first-order expansion around the pre-trained parameters,
    f(θ₀) + J(θ − θ₀), before normalisation and head (Ortiz-Jimenez et al. 2023, §4).
    Frozen leaves cost no gradient: only the leaves of the mask are differentiated.

    Args:
        encode: `(params, images) -> features [B, E]`.
        tx: from `tajax.optim.make_optimizer` with the same mask.
        mask: like the parameters, from `tajax.param_mask`.
        linearized: train in the tangent space.
        accumulation_steps: the batch is cut into so many equal parts whose gradients are summed, which
            divides the memory of activations. Must divide the batch size.

    Returns:
        `step(state, pretrained, head, batch) -> (state, metrics)` with the scalars `loss` (mean over the
        rows that count), `top1` and `grad_norm`. The state given is donated: do not use it again.
    """

    def loss_sum(trained, params, pretrained, head, batch):
        apply_fn = linearize(encode, pretrained, mask=mask) if linearized else encode
        _, restore = split(params, mask)
        features = apply_fn(restore(trained), batch.image)
        logits = head_logits(features, head)
        hits = (jnp.argmax(logits, axis=-1) == batch.label) & batch.mask
        losses = jnp.where(batch.mask, cross_entropy(logits, batch.label), 0)  # labels of padding may be anything
        return jnp.sum(losses), jnp.sum(hits)

    def summed_grads(params, pretrained, head, batch):
        trained, _ = split(params, mask)
        grad_fn = jax.value_and_grad(loss_sum, has_aux=True)
        if accumulation_steps == 1:
            return grad_fn(trained, params, pretrained, head, batch)
        # Strided parts: each takes as many rows of every device, so that no row changes its device.
        parts = jax.tree.map(lambda a: a.reshape(-1, accumulation_steps, *a.shape[1:]).swapaxes(0, 1), batch)
        shapes = jax.eval_shape(grad_fn, trained, params, pretrained, head, jax.tree.map(lambda a: a[0], parts))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def accumulate(total, part):
            return jax.tree.map(jnp.add, total, grad_fn(trained, params, pretrained, head, part)), None

        return jax.lax.scan(accumulate, zeros, parts)[0]

    def step(state, pretrained, head, batch):
        (loss, hits), grads = summed_grads(state.params, pretrained, head, batch)
        count = jnp.maximum(jnp.sum(batch.mask), 1)
        grads = jax.tree.map(lambda g: g / count, grads)
        _, restore = split(jax.tree.map(jnp.zeros_like, state.params), mask)
        updates, opt_state = tx.update(restore(grads), state.opt_state, state.params)
        params = optim.apply_updates(state.params, updates, mask)
        metrics = {"loss": loss / count, "top1": hits / count, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(step, donate_argnums=0)


def finetune(
    train_step: TrainStep,
    state: TrainState,
    pretrained: Params,
    head: Head,
    batches: Iterable[Batch],
    *,
    num_steps: int,
    log_every: int = 10,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
    checkpoint_every: int | None = None,
    on_checkpoint: Callable[[TrainState], None] | None = None,
    describe: Callable[[int], str] = lambda step: "",
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """The state after `num_steps` optimiser steps in all, counted from the first step ever taken.

    Args:
        train_step: from `make_train_step`; it donates the state.
        state: where to start, from `init_state` or a checkpoint.
        pretrained: θ₀, the point of linearisation; unused by a non-linear step.
        head: the frozen head.
        batches: batches from the one that belongs to `state.step` onward.
        num_steps: the step to reach.
        log_every: steps between calls of `on_log`; metrics are read from the device only then.
        on_log: called with the number of steps done and the mean metrics since the last call. Before a checkpoint
            too: none is kept of a loss that is not finite, and a resumed run logs what an uninterrupted one does.
        checkpoint_every: steps between calls of `on_checkpoint`; None never calls it.
        on_checkpoint: called with the state, which it must not keep.
        describe: text for the error message of a step, such as the task and the learning rate.
        devices: local devices to divide each batch over; all by default.

    Returns:
        The last state.

    Raises:
        NonFiniteLossError: the loss of some step is NaN or infinite.
        ValueError: `batches` ended too early.
    """
    stream = iter(batches)
    devices = jax.local_devices() if devices is None else devices
    state, pretrained, head = (parallel.replicate(tree, devices) for tree in (state, pretrained, head))
    pending: list[dict[str, jax.Array]] = []
    for index in range(int(state.step), num_steps):
        batch = next(stream, None)
        if batch is None:
            raise ValueError(f"the batches ended after {index} of {num_steps} steps; training needs an endless stream")
        state, metrics = train_step(state, pretrained, head, parallel.split_batch(batch, devices))
        pending.append(metrics)
        jax.block_until_ready(pending[-3:-2])  # two steps ahead of the devices at most: each keeps its images there
        done = index + 1
        keep = on_checkpoint and checkpoint_every and done % checkpoint_every == 0 and done < num_steps
        if keep or done % log_every == 0 or done == num_steps:
            means = _means(jax.device_get(pending), first_step=done - len(pending), describe=describe)
            pending.clear()
            if on_log:
                on_log(done, means)
        if keep:
            on_checkpoint(state)
    return state


def _means(metrics: Sequence[Mapping], *, first_step: int, describe: Callable[[int], str]) -> dict[str, float]:
    for step, values in enumerate(metrics, start=first_step):
        if not math.isfinite(values["loss"]):
            raise NonFiniteLossError(
                f"the loss is {float(values['loss'])} at step {step + 1}{describe(step)}. "
                "Lower config.finetune.learning_rate, lengthen warmup_steps, or look at the data of this task."
            )
    return {name: float(sum(values[name] for values in metrics) / len(metrics)) for name in metrics[0]}

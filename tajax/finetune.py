"""Fine-tuning of an encoder under a frozen head: one pure step, and the loop around it.

The same config and seed give the same bits again on the same machine, whether or not a run was interrupted and however
many worker processes decode its images: the order of examples and their augmentation are functions of seed and step,
and XLA's programs for a CPU or a TPU give the same sums each time. On a GPU some of XLA's kernels add in an order that
changes from run to run; `XLA_FLAGS=--xla_gpu_deterministic_ops=true` excludes them, and autotuning may still pick
another kernel in another process unless `--xla_gpu_autotune_level=0` is given too. Another number of devices, another
`accumulation_steps`, another version of JAX or another kind of device adds in another order: equal up to rounding.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from tajax import interrupts
from tajax.linearization import linearize
from tajax.losses import cross_entropy, head_logits
from tajax.parallel import Placement, Replicated
from tajax.parametrization import Parametrization
from tajax.types import ApplyFn, Batch, Head, Params, Trained


class TrainState(NamedTuple):
    """All that changes from step to step: the number of steps taken, what is trained, its moments."""

    step: jax.Array
    trained: Any  # a pytree, such as what `Parametrization.init` gives
    opt_state: optax.OptState


BatchT = TypeVar("BatchT")
Metrics = Mapping[str, jax.Array | float]
Unlogged = Sequence[Mapping[str, float]]


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; the message says at which step and learning rate."""


TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
"""`(state, pretrained, head, batch, data=None, others=None) -> (state, metrics)`"""


class Penalized(NamedTuple):
    """What a penalty may look at."""

    pretrained: Params
    """θ₀."""
    restore: Callable[[Trained], Params]
    """From what is trained to the parameters, θ."""
    encode: ApplyFn
    """The encoder itself, `(params, inputs) -> features [B, E]`."""
    apply: ApplyFn
    """The model in training, `(trained, inputs) -> features [B, E]`; in the tangent space where that is trained."""
    respond: ApplyFn
    """`(trained, inputs) -> J(t − t₀) [B, E]`, the first-order response at θ₀ to what was trained so far."""
    batch: Batch
    """The examples of this step."""
    data: Any
    """What the penalty needs besides, a pytree of arrays given to the step."""
    others: Batch | None
    """Its own batch of this step, where it has a stream of them."""
    step: jax.Array
    """The number of steps taken before this one."""


Penalty = Callable[[Trained, Penalized], jax.Array]
"""A scalar that is added to the mean loss of a step: pure, differentiable in its first argument."""

Perturb = Callable[[Trained, Trained], Trained]
"""From what is trained and the gradient there to where the gradient of the step is taken."""


def init_state(trained: Any, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step. What is trained is copied, because steps donate their input."""
    return TrainState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, trained), tx.init(trained))


def place_state(state: TrainState, placement: Placement) -> TrainState:
    """A state on the devices of a placement, its moments where those go."""
    step, trained = placement.params((state.step, state.trained))
    return TrainState(step, trained, placement.params(state.opt_state, moments=True))


def make_train_step(
    encode: ApplyFn,
    tx: optax.GradientTransformation,
    parametrization: Parametrization,
    *,
    linearized: bool = False,
    penalty: Penalty | None = None,
    perturb: Perturb | None = None,
    accumulation_steps: int = 1,
    placement: Placement | None = None,
) -> TrainStep:
    """A compiled step of minimising the cross-entropy of the head's logits over what is trained.

    With `linearized` the encoder is its first-order expansion in what is trained, f(t₀) + J(t − t₀), before
    normalisation and head; for a mask that is f(θ₀) + J(θ − θ₀) (Ortiz-Jimenez et al. 2023, §4). Gradients, moments and
    clipping see what is trained and nothing else.

    Args:
        encode: `(params, images) -> features [B, E]`.
        tx: for what is trained, such as `tajax.optim.adamw`.
        parametrization: what is trained, such as `tajax.parametrization.masked(mask)`.
        linearized: train in the tangent space.
        penalty: added to the loss.
        perturb: the gradient of the loss is taken there instead, as of sharpness-aware minimisation; that of a penalty
            is not. A step then costs two gradients.
        accumulation_steps: the batch is cut into so many equal parts whose gradients are summed, which
            divides the memory of activations. Must divide the batch size. A penalty sees the whole batch.
        placement: where arrays live, that of `finetune`; whole on every device of this process by default.

    Returns:
        `step(state, pretrained, head, batch, data=None, others=None) -> (state, metrics)` with the scalars `loss` (mean
        over the rows that count), `top1`, `grad_norm` and, with one, `penalty`, whose `data` and batch `others` are.
        Loss and accuracy are those before the step, without perturbation. The state given is donated: do not use it
        again.
    """
    place = placement or Replicated()

    def ordinary(pretrained: Params) -> ApplyFn:
        return lambda trained, inputs: encode(parametrization.restore(pretrained, trained), inputs)

    def model(pretrained: Params) -> ApplyFn:
        apply = ordinary(pretrained)
        return linearize(apply, parametrization.init(pretrained)) if linearized else apply

    def respond(pretrained: Params) -> ApplyFn:
        def response(trained: Trained, inputs: jax.Array) -> jax.Array:
            start, apply = parametrization.init(pretrained), ordinary(pretrained)
            # Its gradient is taken: `linear_responses` is for forward mode alone.
            _, push = jax.linearize(lambda at: apply(at, inputs), start)
            return push(jax.tree.map(jnp.subtract, trained, start))

        return response

    def loss_sum(trained: Trained, pretrained: Params, head: Head, batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits = head_logits(model(pretrained)(trained, batch.inputs), head)
        hits = (jnp.argmax(logits, axis=-1) == batch.label) & batch.mask
        losses = jnp.where(batch.mask, cross_entropy(logits, batch.label), 0)  # labels of padding may be anything
        return jnp.sum(losses), jnp.sum(hits)

    def summed_grads(trained: Trained, pretrained: Params, head: Head, batch: Batch) -> Any:
        grad_fn = jax.value_and_grad(loss_sum, has_aux=True)
        if accumulation_steps == 1:
            return grad_fn(trained, pretrained, head, batch)
        # Strided parts: each takes as many rows of every device, so that no row changes its device.
        parts = jax.tree.map(lambda a: a.reshape(-1, accumulation_steps, *a.shape[1:]).swapaxes(0, 1), batch)
        shapes = jax.eval_shape(grad_fn, trained, pretrained, head, jax.tree.map(lambda a: a[0], parts))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def accumulate(total: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, grad_fn(trained, pretrained, head, part)), None

        return jax.lax.scan(accumulate, zeros, parts)[0]

    def step(
        state: TrainState,
        pretrained: Params,
        head: Head,
        batch: Batch,
        data: Any = None,
        others: Batch | None = None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        (loss, hits), grads = summed_grads(state.trained, pretrained, head, batch)
        if perturb is not None:
            _, grads = summed_grads(perturb(state.trained, grads), pretrained, head, batch)
        count = jnp.maximum(jnp.sum(batch.mask), 1)
        grads = jax.tree.map(lambda g: g / count, grads)
        metrics = {"loss": loss / count, "top1": hits / count}
        if penalty is not None:
            restore = functools.partial(parametrization.restore, pretrained)
            models = model(pretrained), respond(pretrained)
            seen = Penalized(pretrained, restore, encode, *models, batch, data, others, state.step)
            metrics["penalty"], more = jax.value_and_grad(penalty)(state.trained, seen)
            grads = jax.tree.map(jnp.add, grads, more)
        updates, opt_state = tx.update(grads, state.opt_state, state.trained)
        trained = place.keep(optax.apply_updates(state.trained, updates))
        after = TrainState(state.step + 1, trained, place.keep(opt_state, moments=True))
        return after, metrics | {"grad_norm": optax.tree.norm(grads)}

    return place.compiled(step)


def train(
    step: Callable[[TrainState, BatchT], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterable[BatchT],
    *,
    num_steps: int,
    log_every: int = 10,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
    checkpoint_every: int | None = None,
    checkpoint_seconds: float | None = None,
    on_checkpoint: Callable[[TrainState, Unlogged], None] | None = None,
    unlogged: Unlogged = (),
    asked: Callable[[int], int] = lambda number: number,
    describe: Callable[[int], str] = lambda step: "",
    advice: str = "Lower the learning rate, lengthen the warm-up, or look at the data of this task.",
) -> TrainState:
    """The state after `num_steps` optimiser steps in all, counted from the first step ever taken.

    What it computes and logs does not depend on when checkpoints were made or the run was interrupted, if it goes on
    from the state and the metrics that `on_checkpoint` was given. Asked to end (`tajax.interrupts`), it makes a
    checkpoint after the step it is in.

    Args:
        step: `(state, batch) -> (state, metrics)`, which may donate the state. Metrics are scalars, `loss` among them.
        state: where to start.
        batches: batches from the one that belongs to `state.step` onward.
        num_steps: the step to reach.
        log_every: steps between calls of `on_log`; metrics are read from the device only then.
        on_log: called with the number of steps done and the mean metrics since the last call.
        checkpoint_every: steps between calls of `on_checkpoint`; None: not by steps.
        checkpoint_seconds: time between them; None: not by time. Whichever comes first.
        on_checkpoint: called with the state, which it must not keep, and the metrics of each step since the last log.
            Not at the last step, unless the run is asked to end; never with a loss that is not finite.
        unlogged: what `on_checkpoint` was given with `state`.
        asked: called once a step with the number of the signal that this process has received, or 0; the number that
            counts. `Placement.largest`: several processes stop after the same step.
        describe: text for the error message of a step, such as the task and the learning rate.
        advice: the way out in the message about a loss that is not finite.

    Returns:
        The last state.

    Raises:
        NonFiniteLossError: the loss of some step is NaN or infinite.
        ValueError: `batches` ended too early.
        Interrupted: the process was asked to end, and did its last step and checkpoint.
    """
    stream = iter(batches)
    pending: list[Any] = list(unlogged)  # metrics, on devices until somebody wants them
    kept_at = time.monotonic()
    with interrupts.deferred():
        for index in range(int(state.step), num_steps):
            batch = next(stream, None)
            if batch is None:
                raise ValueError(
                    f"the batches ended after {index} of {num_steps} steps; training needs an endless stream"
                )
            state, metrics = step(state, batch)
            pending.append(metrics)
            jax.block_until_ready(pending[-3:-2])  # two steps ahead of the devices at most: each keeps its images there
            done, stop = index + 1, asked(interrupts.requested_by())
            log = done % log_every == 0 or done == num_steps
            late = checkpoint_seconds is not None and time.monotonic() - kept_at >= checkpoint_seconds
            due = late or (checkpoint_every is not None and done % checkpoint_every == 0)
            keep = bool(stop or (due and done < num_steps))
            if log or (keep and on_checkpoint):
                pending = _on_host(pending)
                _check_finite(pending, last_step=done, describe=describe, advice=advice)
            if log:
                if on_log:
                    on_log(done, _means(pending))
                pending = []
            if keep and on_checkpoint:
                on_checkpoint(state, tuple(pending))
                kept_at = time.monotonic()
            if stop:
                interrupts.ask(stop)
                interrupts.leave()
    return state


def finetune(
    train_step: TrainStep,
    state: TrainState,
    pretrained: Params,
    head: Head,
    batches: Iterable[Batch],
    *,
    data: Any = None,
    others: Iterable[Batch] | None = None,
    placement: Placement | None = None,
    **options: Any,
) -> TrainState:
    """`train` on the devices of a placement: the state after so many steps of fine-tuning under a frozen head.

    Args:
        train_step: from `make_train_step`; it donates the state.
        state: where to start, from `init_state` or a checkpoint.
        pretrained: θ₀, the point of linearisation; unused by a non-linear step.
        head: the frozen head.
        batches: batches from the one that belongs to `state.step` onward.
        data: of the step's penalty, the same at every step.
        others: batches of the step's penalty, one a step, beginning where `batches` do.
        placement: that of the step; by default whole on every device of this process, which share each batch.
        **options: of `train`; `num_steps` is required.

    Returns:
        The last state; with several processes this one's copy.

    Raises:
        NonFiniteLossError, ValueError, Interrupted: as `train`.
    """
    placement = placement or Replicated()
    state, constants = place_state(state, placement), placement.params((pretrained, head, data))

    def step(state: TrainState, pair: tuple[Batch, Batch | None]) -> tuple[TrainState, Metrics]:
        given, besides = _arguments(state, constants, *pair, placement)
        return train_step(*given, **besides)

    pairs = zip(batches, itertools.repeat(None) if others is None else others, strict=False)
    return placement.host(train(step, state, pairs, asked=placement.largest(), **options))


def step_arguments(
    state: TrainState,
    pretrained: Params,
    head: Head,
    batch: Batch,
    *,
    data: Any = None,
    others: Batch | None = None,
    placement: Placement | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `finetune` calls a step with, on its devices; `step.lower(*given, **besides).compile()` is the program.

    Compiled so, and then given to `finetune`, a step of these shapes is not compiled again.

    Args:
        state: as of `finetune`, and so are `pretrained`, `head`, `data` and `placement`.
        pretrained: θ₀.
        head: the frozen head.
        batch: of the shapes in question.
        data: of the step's penalty.
        others: the batch of the step's penalty, of the shapes in question.
        placement: where arrays live.
    """
    placement = placement or Replicated()
    state, constants = place_state(state, placement), placement.params((pretrained, head, data))
    return _arguments(state, constants, batch, others, placement)


def _arguments(
    state: TrainState, constants: Sequence[Any], batch: Batch, others: Batch | None, placement: Placement
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    pretrained, head, data = constants
    besides = {} if others is None else {"others": placement.batch(others)}
    return (state, pretrained, head, placement.batch(batch), data), besides


def _on_host(metrics: Sequence[Metrics]) -> list[dict[str, float]]:
    """Plain numbers, which come back from a checkpoint as they were."""
    return [{name: float(value) for name, value in values.items()} for values in jax.device_get(metrics)]


def _check_finite(metrics: Unlogged, *, last_step: int, describe: Callable[[int], str], advice: str) -> None:
    for step, values in enumerate(metrics, start=last_step - len(metrics)):
        if not math.isfinite(values["loss"]):
            raise NonFiniteLossError(f"the loss is {values['loss']} at step {step + 1}{describe(step)}. {advice}")


def _means(metrics: Unlogged) -> dict[str, float]:
    return {name: statistics.fmean(values[name] for values in metrics) for name in metrics[0]}

"""τJp: a task vector is kept from moving the features of the other tasks' images (Yoshida et al. 2025).

In the tangent space at θ₀ the response of an image x to a task vector is J(x)τ. Where it is zero on the images of every
other task, adding τ changes nothing there, whatever its coefficient. The penalty is the mean length of that response,

    λ · mean_{s ≠ t} mean_{x ∈ D_s} ‖J(x)τ_t‖₂,

not squared, with features before normalisation (through it with `config.linearize_through_norm`), on training images of
the other tasks. Their labels are not read, and the control task is never among them.

Source: Yoshida et al., ICLR 2025, "Mastering Task Arithmetic: τJp as a Key Indicator for Weight Disentanglement". Its
published code takes images of the control task as well, and a penalty of its own for each part of an accumulated batch:
neither is done here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tajax import data
from tajax.finetune import Penalized
from tajax.training import Context, TrainingMethod
from tajax.types import Batch, Trained

__all__ = ["METHOD", "penalty", "stream"]


def penalty(trained: Trained, seen: Penalized) -> jax.Array:
    """The mean of ‖J(x)τ‖₂ over the images of other tasks in this step, a scalar; padding counts for nothing.

    Each task has as many images in a step as any other, so that the mean over images is the mean over tasks of means.
    Where a response is zero, as all are at the first step, its length has no gradient and gets none.
    """
    assert seen.others is not None  # which the method's stream gives
    response = seen.respond(trained, seen.others.inputs)
    squares = jnp.sum(response.astype(jnp.promote_types(response.dtype, jnp.float32)) ** 2, axis=-1)
    moved = (squares > 0) & seen.others.mask
    lengths = jnp.where(moved, jnp.sqrt(jnp.where(moved, squares, 1)), 0)
    return jnp.sum(lengths) / jnp.maximum(jnp.sum(seen.others.mask), 1)


def stream(context: Context, start: int) -> Iterator[Batch]:
    """Training images of other tasks, one batch a step from step `start` on, in an order drawn from the seed.

    With `others` "all" a batch has `others_images` of each of them; with "cycle" so many of one, and step after step it
    is another's. They are prepared as for evaluation, and their labels are not passed on.

    Raises:
        ValueError: there is no other task.
    """
    tasks = list(context.others)
    if not tasks:
        raise ValueError(
            f"regime tau_jp keeps {context.task.name!r} from disturbing other tasks, and config.tasks names no other. "
            "Give at least two, or train by regime linear."
        )
    together = context.options["others"] == "all"
    taken = [start if together else len(range(turn, start, len(tasks))) for turn in range(len(tasks))]
    each = [
        iter(
            data.load(
                task,
                "train",
                batch_size=context.options["others_images"],
                preprocessing=context.encoder.inputs,
                seed=context.seed,
                epochs=None,
                start_batch=number,
                workers=context.workers,
                share=context.share,
            )
        )
        for task, number in zip(tasks, taken, strict=True)
    ]
    for step in itertools.count(start):
        yield _joined([next(batches) for batches in (each if together else [each[step % len(each)]])])


def _joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, texts padded to the same length, without labels."""
    rows = [np.asarray(batch.inputs) for batch in batches]
    if rows[0].ndim == 2:
        longest = max(ids.shape[1] for ids in rows)
        rows = [np.pad(ids, ((0, 0), (0, longest - ids.shape[1])), constant_values=-1) for ids in rows]
    mask = np.concatenate([batch.mask for batch in batches])
    host: tuple[Any, ...] = (np.concatenate(rows), np.zeros(len(mask), np.int32), mask)
    return Batch(*host)


METHOD = TrainingMethod(penalty=lambda options: penalty, stream=stream)

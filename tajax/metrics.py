"""Accuracy as sums that merge, and the ratios the papers report."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from tajax.losses import cross_entropy
from tajax.types import Tree

Values: TypeAlias = ArrayLike | Sequence[float]
"""A number or several, in an array or a list."""


class Tally(NamedTuple):
    """Sums over the examples seen so far; counts are integers, so accuracy does not see the batching."""

    correct: Int[Array, ""]
    """int32: examples whose largest logit is the label's."""
    loss_sum: Float[Array, ""]
    """float32: sum of cross-entropies."""
    count: Int[Array, ""]  # type: ignore[assignment]  # a field, in place of tuple.count
    """int32: examples, padding excluded."""


def tally(logits: Float[Array, "B K"], labels: Int[ArrayLike, " B"], mask: Bool[ArrayLike, " B"]) -> Tally:
    """The sums of one batch. Rows with a False mask count for nothing, whatever they hold.

    An example with NaN logits is counted as wrong (and makes the loss NaN).

    Example:
        >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [jnp.nan, 0.0]])
        >>> tally(logits, jnp.array([0, 1, 1]), jnp.array([True, True, False]))._replace(loss_sum=None)
        Tally(correct=Array(1, dtype=int32), loss_sum=None, count=Array(2, dtype=int32))
    """
    losses = cross_entropy(logits, labels)
    hits = (jnp.argmax(logits, axis=-1) == labels) & ~jnp.isnan(losses) & mask
    return Tally(
        correct=jnp.sum(hits, dtype=jnp.int32),
        loss_sum=jnp.sum(jnp.where(mask, losses, 0)).astype(jnp.float32),
        count=jnp.sum(mask, dtype=jnp.int32),
    )


def add(a: Tally, b: Tally) -> Tally:
    """The tally of both sets of examples together."""
    return Tally(*(x + y for x, y in zip(a, b, strict=True)))


def total(parts: Iterable[Tree], *, what: str = "batches") -> Tree:
    """The sum of trees of one structure, on the host: of what is summed over each of several batches.

    Args:
        parts: one a batch, added as they come.
        what: what the message calls the batches.

    Returns:
        Numbers and NumPy arrays, float64 and int64, so that nothing is lost over many batches.

    Raises:
        ValueError: there are no parts.

    Example:
        >>> total([(jnp.float32(0.5), 2), (jnp.float32(1.0), 3)])
        (np.float64(1.5), np.int64(5))
    """

    def wide(leaf: Any) -> np.ndarray:
        return np.asarray(leaf, np.float64 if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else np.int64)

    wider = (jax.tree.map(wide, part) for part in parts)
    if (sums := next(wider, None)) is None:
        raise ValueError(f"{what} holds no input")
    return functools.reduce(lambda sums, more: jax.tree.map(np.add, sums, more), wider, sums)


class Means(TypedDict):
    """What a tally comes to."""

    top1: float
    loss: float
    count: int
    """Of examples."""


def compute(sums: Tally) -> Means:
    """Means from sums: `top1` in [0, 1], mean `loss`, and the `count` they are over. Waits for the device.

    Raises:
        ValueError: there is no example to average over.

    Example:
        >>> compute(Tally(np.int32(3), np.float32(2.0), np.int32(4)))
        {'top1': 0.75, 'loss': 0.5, 'count': 4}
    """
    count = int(sums.count)
    if count == 0:
        raise ValueError("no example was counted: the split is empty, or every row is masked")
    return {"top1": int(sums.correct) / count, "loss": float(sums.loss_sum) / count, "count": count}


def compute_each(sums: Tally) -> list[Means]:
    """`compute` of every entry of a tally whose leaves have a leading axis, such as a sweep's."""
    return [compute(Tally(*leaves)) for leaves in zip(*sums, strict=True)]


def normalized_accuracy(merged: Values, single: Values) -> np.ndarray:
    """Accuracy of the merged model relative to the single-task model's, of the same regime.

    Args:
        merged: accuracies of the merged model, any shape, for example one per task.
        single: accuracies of the single-task models; broadcasts against `merged`.

    Returns:
        The ratios, float64; NaN where the single-task accuracy is 0, to which nothing can be related. Average over
        tasks afterwards: it is the mean of ratios that is reported.

    Raises:
        ValueError: a single-task accuracy is negative or not a number.

    Example:
        >>> normalized_accuracy([0.6, 0.9], [0.8, 0.9]).mean().item()
        0.875
    """
    merged, single = np.asarray(merged, np.float64), np.asarray(single, np.float64)
    if not (single >= 0).all():
        raise ValueError(f"single-task accuracies must be numbers, 0 or more, to normalise by; got {single.tolist()}")
    return np.asarray(merged / np.where(single > 0, single, np.nan))


def nonlinear_advantage(acc_nonlinear: Values, acc_linear: Values, num_classes: Values) -> np.ndarray:
    """What the non-linear model gains over the linear one, (a_nonlin − a_lin) / (1 − 1/K).

    Ortiz-Jimenez et al. 2023. The denominator is the range between chance and perfection.

    Raises:
        ValueError: a task has fewer than two classes.

    Example:
        >>> nonlinear_advantage(0.75, 0.5, 2).item()
        0.5
    """
    num_classes = np.asarray(num_classes)
    if (num_classes < 2).any():
        raise ValueError(f"a task needs at least 2 classes; got num_classes={num_classes.tolist()}")
    gain = np.asarray(acc_nonlinear, np.float64) - np.asarray(acc_linear, np.float64)
    return np.asarray(gain / (1 - 1 / num_classes))

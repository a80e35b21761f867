"""Scaling coefficients: which to try, and the choice of the best, from a grid or exactly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tajax.affine import Interval
from tajax.metrics import normalized_accuracy


def subsets(num_tasks: int) -> Float[np.ndarray, "2^T T"]:
    """Coefficients that add the task vectors of every subset of tasks, the empty one first.

    Example:
        >>> subsets(2).tolist()
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    return np.array(list(itertools.product([0.0, 1.0], repeat=num_tasks))).reshape(-1, num_tasks)


def pairwise(coefs: Sequence[float]) -> Float[np.ndarray, "A² 2"]:
    """Every pair of coefficients of two task vectors, the first varying slowest: the points of a map."""
    return np.stack(np.meshgrid(coefs, coefs, indexing="ij"), axis=-1).reshape(-1, 2)


def select_scaling_coef(
    coefs: Sequence[float], accuracies: Float[np.ndarray, "T G"], single_task: Float[np.ndarray, " T"]
) -> int:
    """Index of the coefficient with the largest mean normalised accuracy (Ilharco et al. 2023, §4).

    Args:
        coefs: the grid of G coefficients.
        accuracies: validation accuracy of the merged model on each task at each coefficient.
        single_task: validation accuracy of each fine-tuned model on its own task, above 0.

    Returns:
        The index into `coefs`; of equal ones the smallest coefficient in size.

    Example:
        >>> select_scaling_coef([0.0, 0.5, 1.0], np.array([[0.2, 0.8, 0.6], [0.3, 0.7, 0.9]]), np.array([0.8, 1.0]))
        1
    """
    means = normalized_accuracy(accuracies, np.asarray(single_task)[:, None]).mean(axis=0)
    return min(range(len(coefs)), key=lambda g: (-means[g], abs(coefs[g])))


class Optimum(NamedTuple):
    """The best coefficient there is, not the best of a grid."""

    scaling_coef: float
    """The middle of the widest interval of optimal coefficients."""
    value: float
    """The mean normalised accuracy there, and in all of the interval."""
    lower: float
    """Where the interval begins."""
    upper: float
    """Where it ends."""


def exact_scaling_coef(
    intervals: Sequence[Interval],
    single_task: Sequence[float] | Float[np.ndarray, " T"],
    *,
    bounds: tuple[float, float],
) -> Optimum:
    """The α in [a, b] with the largest mean normalised accuracy of a linearised merged model, exactly.

    An image of task t is classified correctly in one interval of α and adds 1 / (T n_t s_t) to the mean there, with n_t
    images and single-task accuracy s_t. The sum of these steps is constant between the ends of intervals, so sorting
    the ends and adding up finds the maximum over all α.

    Args:
        intervals: of each task's validation images, from `affine.correct_intervals`.
        single_task: s_t, the validation accuracy of each fine-tuned model on its own task, above 0.
        bounds: a < b.

    Returns:
        The optimum. Of several optimal intervals the widest, which rounding disturbs least; of those the first.

    Raises:
        ValueError: bounds out of order, no task, a task without images, or a single-task accuracy that is not positive.

    Example:
        >>> images = Interval(np.array([-np.inf, 0.25]), np.array([0.75, np.inf]))  # correct below 0.75; above 0.25
        >>> exact_scaling_coef([images], [1.0], bounds=(0.0, 1.0))
        Optimum(scaling_coef=0.5, value=1.0, lower=0.25, upper=0.75)
    """
    lowest, highest = bounds
    if not lowest < highest or not np.isfinite(bounds).all():
        raise ValueError(f"bounds is {bounds}, want two finite numbers, the smaller first")
    single_task = np.asarray(single_task, np.float64)
    if not len(intervals) or single_task.shape != (len(intervals),):
        raise ValueError(f"{len(intervals)} tasks with intervals, but single_task has shape {single_task.shape}")
    starts, ends, weights = [], [], []
    for number, (task, single) in enumerate(zip(intervals, single_task, strict=True)):
        lower, upper = (np.clip(np.asarray(end, np.float64), lowest, highest) for end in task)
        if not lower.size:
            raise ValueError(f"task {number} has no image to choose a coefficient by")
        inside = lower < upper
        starts.append(lower[inside])
        ends.append(upper[inside])
        weights.append(np.full(inside.sum(), normalized_accuracy(1, single) / (lower.size * len(intervals))))
    weight = np.concatenate(weights)
    points, where = np.unique(np.concatenate([[lowest, highest], *starts, *ends]), return_inverse=True)
    steps = np.zeros(len(points))
    np.add.at(steps, where[2:], np.concatenate([weight, -weight]))
    values = np.cumsum(steps)[:-1]  # between each point and the next
    best = values.max()
    # Sums of the same weights in another order differ in the last digits, 1e-12 for thousands of images.
    optimal = np.concatenate([[False], values > best - 1e-12, [False]])
    edges = np.flatnonzero(optimal[1:] != optimal[:-1])
    lows, highs = points[edges[::2]], points[edges[1::2]]
    widest = np.argmax(highs - lows)
    low, high = float(lows[widest]), float(highs[widest])
    return Optimum((low + high) / 2, float(best), low, high)

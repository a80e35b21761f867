"""Scaling coefficients: which to try, and the choice of the best, from a grid or exactly."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tajax.affine import AffineLogits, Interval, correct_intervals, on_line
from tajax.metrics import normalized_accuracy


def subsets(num_tasks: int) -> Float[np.ndarray, "subsets T"]:
    """Coefficients that add the task vectors of every subset of tasks, the empty one first.

    Example:
        >>> subsets(2).tolist()
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    return np.array(list(itertools.product([0.0, 1.0], repeat=num_tasks))).reshape(-1, num_tasks)


def pairwise(coefs: Sequence[float]) -> Float[np.ndarray, "points 2"]:
    """Every pair of coefficients of two task vectors, the first varying slowest: the points of a map."""
    return np.stack(np.meshgrid(coefs, coefs, indexing="ij"), axis=-1).reshape(-1, 2)


def select_scaling_coef(
    coefs: Sequence[float], accuracies: Float[np.ndarray, "T G"], single_task: Float[np.ndarray, " T"]
) -> int:
    """Index of the coefficient with the largest mean normalised accuracy (Ilharco et al. 2023, §4).

    Tasks whose single-task accuracy is 0 have no normalised one and no say; where all are of this kind, the mean of the
    accuracies themselves decides.

    Args:
        coefs: the grid of G coefficients.
        accuracies: validation accuracy of the merged model on each task at each coefficient.
        single_task: validation accuracy of each fine-tuned model on its own task.

    Returns:
        The index into `coefs`; of equal ones the smallest coefficient in size.

    Example:
        >>> select_scaling_coef([0.0, 0.5, 1.0], np.array([[0.2, 0.8, 0.6], [0.3, 0.7, 0.9]]), np.array([0.8, 1.0]))
        1
    """
    means = deciding_mean(accuracies, single_task)
    return min(range(len(coefs)), key=lambda g: (-means[g], abs(coefs[g])))


def deciding_mean(
    accuracies: Float[np.ndarray, "T G"], single_task: Float[np.ndarray, " T"]
) -> Float[np.ndarray, " G"]:
    """The mean normalised accuracy at each coefficient, over the tasks that have one; what a coefficient is chosen by.

    Example:
        >>> deciding_mean(np.array([[0.2, 0.8], [0.3, 0.9]]), np.array([0.8, 0.0])).tolist()
        [0.25, 1.0]
    """
    decide, divisors = _deciding(single_task)
    return normalized_accuracy(np.asarray(accuracies)[decide], divisors[decide, None]).mean(axis=0)


def coarse_to_fine(
    coefs: Sequence[float], values: Mapping[float, float], *, always: Sequence[float] = ()
) -> list[float]:
    """Which coefficients of a grid to measure next, to find the best of it without measuring all.

    At first every fourth, both ends and `always`, and of fewer than nine all; then, around the best so far, what lies
    two steps and one step of the grid away, until all that is as good as the best has both of its neighbours measured.
    That ends at the best of the whole grid wherever the values rise to it and fall after it, and at a local maximum in
    any case.

    Args:
        coefs: the grid, in order.
        values: of the coefficients that are measured, what is to be largest. Others than those that were asked for do
            no harm: what is asked for does not depend on them.
        always: coefficients that are measured whatever comes out, where they are in the grid.

    Returns:
        Coefficients without a value, in the order of the grid; none when the search is at its end.

    Example:
        >>> grid, values = [0.1 * k for k in range(11)], {}
        >>> while asked := coarse_to_fine(grid, values):
        ...     values |= {coef: -((coef - 0.62) ** 2) for coef in asked}
        ...     print([round(coef, 1) for coef in asked])
        [0.0, 0.4, 0.8, 1.0]
        [0.6]
        [0.5, 0.7]
    """
    last = len(coefs) - 1
    asked = {*range(0, last, 4 if last >= 8 else 1), last, *(coefs.index(coef) for coef in always if coef in coefs)}
    strides = itertools.chain([2], itertools.repeat(1))
    while all(coefs[index] in values for index in asked):
        highest, stride = max(values[coefs[index]] for index in asked), next(strides)
        best = {index for index in asked if values[coefs[index]] == highest}
        around = {index + step for index in best for step in (-stride, stride) if 0 <= index + step <= last}
        if stride == 1 and around <= asked:
            return []
        asked |= around
    return [coefs[index] for index in sorted(asked) if coefs[index] not in values]


class Negation(NamedTuple):
    """How far to go against a task vector, θ₀ − ατ."""

    scaling_coef: float
    """α."""
    satisfied: bool
    """Whether the control keeps what is required of it; if not, this is the nearest miss."""
    at_end: bool
    """Whether α is the largest that was tried, so that a larger one might be better."""
    lower: float
    """All of the interval from here …"""
    upper: float
    """… to here is as good; of a grid, `scaling_coef` both times."""


def select_negation_coef(
    coefs: Sequence[float],
    target: Sequence[float] | Float[np.ndarray, " G"],
    control: Sequence[float] | Float[np.ndarray, " G"],
    *,
    required: float,
) -> Negation:
    """The α at which the target task is forgotten most while the control is kept (Ilharco et al. 2023, §3).

        argmin over α of target(α), subject to control(α) ≥ required

    Of equal ones that with the better control, and of those the smallest in size. If none keeps the control, the one
    whose control accuracy is highest.

    Args:
        coefs: the grid of G coefficients α of θ₀ − ατ.
        target: validation accuracy on the task of τ at each α.
        control: validation accuracy on the control task at each α.
        required: the least control accuracy, 0.95 of that of the pre-trained model in the papers.

    Returns:
        The choice.

    Raises:
        ValueError: no coefficient, lengths that differ, or an accuracy that is not a number.

    Example:
        >>> select_negation_coef([0.0, 0.5, 1.0], [0.8, 0.3, 0.1], [0.60, 0.58, 0.40], required=0.95 * 0.6)
        Negation(scaling_coef=0.5, satisfied=True, at_end=False, lower=0.5, upper=0.5)
    """
    grid, target, control = (np.asarray(values, np.float64) for values in (coefs, target, control))
    if not grid.size or not grid.shape == target.shape == control.shape or grid.ndim != 1:
        raise ValueError(
            f"coefs, target and control have shapes {grid.shape}, {target.shape}, {control.shape}, want three lists of "
            "the same length, at least 1"
        )
    if not np.isfinite([grid, target, control]).all() or not np.isfinite(required):
        raise ValueError(f"coefs, target, control or required ({required}) holds a value that is not finite")
    kept = _keeps(control, required)
    candidates = np.flatnonzero(kept) if kept.any() else np.flatnonzero(control == control.max())
    best = min(candidates.tolist(), key=lambda g: (target[g], -control[g], abs(grid[g])))
    coef = float(grid[best])
    return Negation(coef, bool(kept[best]), bool(coef == grid.max()), coef, coef)


def exact_negation_coef(
    target: Interval, control: Interval, *, required: float, bounds: tuple[float, float]
) -> Negation:
    """As `select_negation_coef`, over all α in [a, b], for a linearised model: exactly.

    Both accuracies are constant between the ends of the images' intervals, so looking between any two neighbouring
    ends finds the optimum. Of several optimal intervals the widest, which rounding disturbs least.

    Args:
        target: of the task's validation images, from `affine.correct_intervals` in the direction −τ.
        control: of the control's validation images, in the same direction.
        required: the least control accuracy.
        bounds: a < b.

    Returns:
        The choice, in the middle of its interval.

    Raises:
        ValueError: bounds out of order, or no image.

    Example:
        >>> target = Interval(np.array([-np.inf, -np.inf]), np.array([0.2, 0.6]))  # forgotten from 0.2 and from 0.6
        >>> control = Interval(np.array([-np.inf]), np.array([0.8]))
        >>> exact_negation_coef(target, control, required=0.95, bounds=(0.0, 1.0))[:3]
        (0.7, True, False)
    """
    _check_bounds(bounds)
    of_tasks = [_sorted_ends(interval) for interval in (target, control)]
    ends = np.concatenate([np.asarray(bounds, np.float64), *of_tasks[0], *of_tasks[1]])
    points = np.unique(ends[(ends >= bounds[0]) & (ends <= bounds[1])])
    middles = (points[:-1] + points[1:]) / 2
    of_target, of_control = (_count_at(ends, middles) for ends in of_tasks)
    of_target, of_control = of_target / np.size(target.lower), of_control / np.size(control.lower)
    enough = _keeps(of_control, required)
    satisfied = bool(enough.any())
    candidates = enough if satisfied else of_control == of_control.max()
    low, high = _widest(points, candidates & (of_target == of_target[candidates].min()))
    return Negation((low + high) / 2, satisfied, high == bounds[1], low, high)


def _keeps(control: Float[np.ndarray, " G"], required: float) -> np.ndarray:
    return control >= required - 1e-9  # 0.95 × 0.6 is a little above 0.57 in binary


def _sorted_ends(interval: Interval) -> tuple[np.ndarray, np.ndarray]:
    """Where intervals that are not empty begin and end, each sorted."""
    lower, upper = (np.asarray(end, np.float64) for end in interval)
    if not lower.size:
        raise ValueError("a task without images: there is nothing to choose a coefficient by")
    return np.sort(lower[lower < upper]), np.sort(upper[lower < upper])


def _count_at(ends: tuple[np.ndarray, np.ndarray], at: Float[np.ndarray, " P"]) -> np.ndarray:
    """How many intervals hold each point, none of which is an end of one."""
    begun, ended = (np.searchsorted(sides, at) for sides in ends)
    return begun - ended


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
    the ends and adding up finds the maximum over all α. Which tasks decide is as in `select_scaling_coef`.

    Args:
        intervals: of each task's validation images, from `affine.correct_intervals`.
        single_task: s_t, the validation accuracy of each fine-tuned model on its own task.
        bounds: a < b.

    Returns:
        The optimum. Of several optimal intervals the widest, which rounding disturbs least; of those the first.

    Raises:
        ValueError: bounds out of order, no task, a task without images, or a single-task accuracy that is negative or
            not a number.

    Example:
        >>> images = Interval(np.array([-np.inf, 0.25]), np.array([0.75, np.inf]))  # correct below 0.75; above 0.25
        >>> exact_scaling_coef([images], [1.0], bounds=(0.0, 1.0))
        Optimum(scaling_coef=0.5, value=1.0, lower=0.25, upper=0.75)
    """
    _check_bounds(bounds)
    single_task = np.asarray(single_task, np.float64)
    if not len(intervals) or single_task.shape != (len(intervals),):
        raise ValueError(f"{len(intervals)} tasks with intervals, but single_task has shape {single_task.shape}")
    decide, divisors = _deciding(single_task)
    starts, ends, weights = [], [], []
    for number, (task, single) in enumerate(zip(intervals, divisors, strict=True)):
        lower, upper = (np.clip(np.asarray(end, np.float64), *bounds) for end in task)
        if not lower.size:
            raise ValueError(f"task {number} has no image to choose a coefficient by")
        inside = (lower < upper) & decide[number]
        starts.append(lower[inside])
        ends.append(upper[inside])
        weights.append(np.full(inside.sum(), normalized_accuracy(1, single) / (lower.size * decide.sum())))
    weight = np.concatenate(weights)
    points, where = np.unique(np.concatenate([bounds, *starts, *ends]), return_inverse=True)
    steps = np.zeros(len(points))
    np.add.at(steps, where[2:], np.concatenate([weight, -weight]))
    values = np.cumsum(steps)[:-1]  # between each point and the next
    best = values.max()
    # Sums of the same weights in another order differ in the last digits, 1e-12 for thousands of images.
    low, high = _widest(points, values > best - 1e-12)
    return Optimum((low + high) / 2, float(best), low, high)


class Ascent(NamedTuple):
    """Coefficients of several task vectors of which none can be bettered alone."""

    coefs: Float[np.ndarray, " T"]
    value: float
    """The mean normalised accuracy there."""
    rounds: int
    """How often all coefficients were gone through, the last time without a gain."""


def exact_coefs(
    rows: Sequence[AffineLogits],
    labels: Sequence[Int[np.ndarray, " N"]],
    single_task: Sequence[float] | Float[np.ndarray, " T"],
    *,
    bounds: tuple[float, float],
) -> Ascent:
    """A coefficient for each task vector of a linearised merged model, by coordinate ascent on the mean accuracy.

    The mean is of normalised accuracies. It begins at the best common coefficient (`exact_scaling_coef`). Then one
    coefficient after the other is set to the best there is in the bounds while the others stand still, which is exact,
    for along a line every image is right in one interval. A coefficient is changed for a gain alone, and there are
    finitely many accuracies: it ends where no coefficient can be bettered alone, which need not be the best of all.

    Args:
        rows: of each task's images, along all T task vectors.
        labels: their classes.
        single_task: the accuracy of each fine-tuned model on its own task.
        bounds: a < b, of every coefficient.

    Returns:
        The coefficients and their value. A step costs an interval an image and sorting them; no image is looked at.

    Raises:
        ValueError: as `exact_scaling_coef`, or there are not as many tasks as task vectors.

    Example:
        >>> from tajax.affine import AffineLogits
        >>> scores = np.array([[[1.0, 0.0], [-2.0, 0.0], [0.0, 0.5]]])  # the first vector harms, from 0.5 on, and so
        >>> one = AffineLogits(scores, np.ones((1, 3, 3)), np.int32(2))  # does the second beyond 2 − 4 c₁
        >>> found = exact_coefs([one, one], [np.array([0])] * 2, [1.0, 1.0], bounds=(0.0, 1.0))
        >>> found.value, bool(1 - 2 * found.coefs[0] > found.coefs[1] / 2)
        (1.0, True)
    """
    if len(rows) != len(labels) or any(of_task.scores.shape[1] != len(rows) + 1 for of_task in rows):
        shapes = [of_task.scores.shape for of_task in rows]
        raise ValueError(f"{len(rows)} tasks and {len(labels)} sets of labels, but scores have shapes {shapes}")
    tasks = len(rows)

    def best_on(base: np.ndarray, direction: np.ndarray) -> Optimum:
        line = (on_line(of_task, base, direction) for of_task in rows)
        intervals = [correct_intervals(*pair, np.ones(1)) for pair in zip(line, labels, strict=True)]
        return exact_scaling_coef(intervals, single_task, bounds=bounds)

    common = best_on(np.zeros(tasks), np.ones(tasks))
    coefs, value = np.full(tasks, common.scaling_coef), common.value
    rounds, better = 0, True
    while better:
        rounds, better = rounds + 1, False
        for one in np.eye(tasks):
            found = best_on(np.where(one == 1, 0, coefs), one)
            if found.value > value + 1e-9:  # more than rounding
                coefs, value, better = np.where(one == 1, found.scaling_coef, coefs), found.value, True
    return Ascent(coefs, value, rounds)


def _deciding(single_task: Float[np.ndarray, " T"]) -> tuple[np.ndarray, np.ndarray]:
    """Which tasks decide on a coefficient, and by what their accuracies are divided: of those with a ratio, if any."""
    single = np.asarray(single_task, np.float64)
    return (single != 0, single) if single.any() else (np.ones(single.shape, bool), np.ones(single.shape))


def _check_bounds(bounds: tuple[float, float]) -> None:
    if not bounds[0] < bounds[1] or not np.isfinite(bounds).all():
        raise ValueError(f"bounds is {bounds}, want two finite numbers, the smaller first")


def _widest(points: Float[np.ndarray, " P"], optimal: np.ndarray) -> tuple[float, float]:
    """The widest run of optimal pieces between neighbouring points; of equal ones the first."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], optimal, [False]])))
    lows, highs = points[edges[::2]], points[edges[1::2]]
    widest = np.argmax(highs - lows)
    return float(lows[widest]), float(highs[widest])

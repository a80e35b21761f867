"""How far to negate: the rule of the protocol by hand, and the exact choice against trying everything."""

import numpy as np
import pytest

from tajax.affine import Interval
from tajax.scaling import (
    Negation,
    coarse_to_fine,
    exact_negation_coef,
    exact_scaling_coef,
    select_negation_coef,
    select_scaling_coef,
)

GRID = [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("target", "control", "expected"),
    [
        ([0.8, 0.4, 0.1, 0.0], [0.6, 0.59, 0.58, 0.5], (1.0, True, False)),  # the lowest target that keeps 0.57
        ([0.8, 0.4, 0.1, 0.0], [0.6, 0.59, 0.58, 0.57], (1.5, True, True)),  # 0.95 · 0.6 itself is enough
        ([0.8, 0.4, 0.9, 0.95], [0.6, 0.59, 0.6, 0.6], (0.5, True, False)),  # accuracy need not fall with α
        ([0.8, 0.2, 0.2, 0.2], [0.6, 0.58, 0.59, 0.58], (1.0, True, False)),  # of equals, the better control
        ([0.8, 0.2, 0.2, 0.2], [0.6, 0.58, 0.58, 0.58], (0.5, True, False)),  # and then the smallest step
        ([0.8, 0.4, 0.1, 0.0], [0.4, 0.5, 0.5, 0.3], (1.0, False, False)),  # none: best control, then lowest target
    ],
)
def test_the_rule_of_the_protocol(target, control, expected):
    choice = select_negation_coef(GRID, target, control, required=0.95 * 0.6)
    assert choice == Negation(*expected, choice.scaling_coef, choice.scaling_coef)
    turned = select_negation_coef(GRID[::-1], target[::-1], control[::-1], required=0.95 * 0.6)
    assert turned == choice  # the order of the grid does not matter


def test_the_exact_choice_is_the_best_of_all():
    draw = np.random.default_rng([20230522, 77])
    for images, required in ((40, 0.5), (40, 0.9), (300, 0.7), (3, 1.0)):
        # Correct at 0 mostly, and lost somewhere on the way; a few images are never correct, a few always.
        tasks = []
        for scale in (0.5, 1.0):
            lower = np.where(draw.random(images) < 0.8, -np.inf, draw.normal(size=images))
            tasks.append(Interval(lower, np.where(draw.random(images) < 0.9, scale * draw.exponential(size=images), 9)))
        bounds = (0.0, 1.5)

        def shares(alpha, tasks=tasks):
            return [np.mean((task.lower < alpha) & (alpha < task.upper)) for task in tasks]

        choice = exact_negation_coef(*tasks, required=required, bounds=bounds)
        ends = np.unique(np.clip(np.concatenate([*tasks[0], *tasks[1], bounds]), *bounds))
        tried = [shares(alpha) for alpha in (ends[1:] + ends[:-1]) / 2]
        kept = [target for target, control in tried if control >= required]
        target, control = shares(choice.scaling_coef)
        assert choice.satisfied == bool(kept) == (control >= required)
        assert target == min(kept or [t for t, c in tried if c == max(c for _, c in tried)])
        for alpha in choice.lower + (choice.upper - choice.lower) * np.array([0.01, 0.99]):
            assert shares(alpha)[0] == target and (shares(alpha)[1] >= required) == choice.satisfied
        assert choice.at_end == (choice.upper == bounds[1])


def test_a_control_that_loses_nothing_bounds_nothing():
    always = Interval(np.full(2, -np.inf), np.full(2, np.inf))
    target = Interval(np.array([-np.inf]), np.array([0.25]))
    assert exact_negation_coef(target, always, required=1.0, bounds=(0, 2)) == Negation(1.125, True, True, 0.25, 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0, 1.0], [0.5], [0.5, 0.5]), r"shapes \(2,\), \(1,\), \(2,\)"),
        (([], [], []), "at least 1"),
        (([0.0], [np.nan], [0.5]), "not finite"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        select_negation_coef(*arguments, required=0.5)


def test_bad_intervals_are_named():
    one, none = Interval(np.zeros(1), np.ones(1)), Interval(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="a task without images"):
        exact_negation_coef(one, none, required=0.5, bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"bounds is \(1.0, 0.0\)"):
        exact_negation_coef(one, one, required=0.5, bounds=(1.0, 0.0))


def test_a_task_without_a_ratio_has_no_say():
    """Neither on the grid nor exactly; where no task has one, accuracies count as they are."""
    draw = np.random.default_rng([20230522, 78])
    accuracies, single = draw.random((3, len(GRID))), np.array([0.9, 0.0, 0.5])
    intervals = [Interval(-draw.random(20), draw.exponential(size=20)) for _ in single]
    others, bounds = [0, 2], (0.0, 1.5)
    assert select_scaling_coef(GRID, accuracies, single) == select_scaling_coef(
        GRID, accuracies[others], single[others]
    )
    assert exact_scaling_coef(intervals, single, bounds=bounds) == exact_scaling_coef(
        [intervals[t] for t in others], single[others], bounds=bounds
    )
    none, ones = np.zeros(3), np.ones(3)
    assert select_scaling_coef(GRID, accuracies, none) == select_scaling_coef(GRID, accuracies, ones)
    assert exact_scaling_coef(intervals, none, bounds=bounds) == exact_scaling_coef(intervals, ones, bounds=bounds)


def searched(grid, value_of, *, always=(), known=()):
    """The coefficients that a search measures, round by round, beside those that are known."""
    values, rounds = {coef: value_of(coef) for coef in known}, []
    while asked := coarse_to_fine(grid, values, always=always):
        assert not set(asked) & set(values)
        values |= {coef: value_of(coef) for coef in asked}
        rounds.append(asked)
    return rounds


FINE = [round(0.05 * k, 2) for k in range(21)]


@pytest.mark.parametrize("peak", [-1.0, 0.0, 0.07, 0.33, 0.5, 0.74, 0.96, 1.0, 3.0])
def test_the_best_of_a_grid_is_found_with_half_of_it(peak):
    rounds = searched(FINE, lambda coef: -abs(coef - peak))
    measured = [coef for asked in rounds for coef in asked]
    assert min(FINE, key=lambda coef: abs(coef - peak)) in measured
    assert rounds[0] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] and len(measured) <= 11


def test_all_that_is_as_good_as_the_best_has_its_neighbours_measured():
    """A plateau, of which the smallest is chosen, and a second hill that the first look does not show."""
    plateau = searched(FINE, lambda coef: min(coef, 0.3))
    assert {0.3, 0.25} <= {coef for asked in plateau for coef in asked}
    draw = np.random.default_rng([20230522, 79])
    for _ in range(50):
        values = dict(zip(FINE, draw.integers(0, 6, len(FINE)).tolist(), strict=True))
        measured = {coef for asked in searched(FINE, values.get) for coef in asked}
        highest = max(values[coef] for coef in measured)
        for index, coef in enumerate(FINE):
            if coef in measured and values[coef] == highest:
                assert set(FINE[max(0, index - 1) : index + 2]) <= measured


def test_a_search_that_goes_on_asks_for_what_is_left():
    def value_of(coef):
        return -abs(coef - 0.62)

    whole = {coef for asked in searched(FINE, value_of) for coef in asked}
    for known in ([0.2], [0.95, 0.6, 0.55], sorted(whole)):
        later = {coef for asked in searched(FINE, value_of, known=known) for coef in asked}
        assert later == whole - set(known)


def test_short_grids_are_measured_whole_and_what_is_always_wanted_first():
    assert searched(GRID, float) == [GRID]
    assert 0.35 in searched(FINE, lambda coef: -coef, always=(0.35, 7.0))[0]

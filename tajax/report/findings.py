"""What a figure says, in sentences: for readers who hear the page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

MOST = 8  # series that are told one by one


def of_curves(points: Mapping[str, Mapping[float, Sequence[float]]], x: str, y: str, formats: tuple[str, str]) -> str:
    """Of each line where it begins, where it is highest and lowest, and where it ends.

    Args:
        points: `{series: {x: values of its runs}}`.
        x: title of the horizontal axis.
        y: title of the vertical axis.
        formats: of the numbers of both, as d3 writes them.

    Example:
        >>> of_curves({"linear": {0: [43.0], 0.5: [58.0], 1: [49.0]}}, "α", "accuracy, %", (".3~g", ".1f"))
        'accuracy, %, by α. linear: 43.0 at 0, highest 58.0 at 0.5, 49.0 at 1.'
    """
    told = []
    for name, line in points.items():
        mean = {at: statistics.fmean(values) for at, values in sorted(line.items())}
        if not mean:
            continue
        first, *_, last = *mean, next(reversed(mean))
        high, low = max(mean, key=mean.__getitem__), min(mean, key=mean.__getitem__)
        parts = [
            (first, ""),
            *((at, word) for at, word in ((high, "highest "), (low, "lowest ")) if at not in (first, last)),
        ]
        parts += [(last, "")] if last != first else []
        written = (f"{word}{_number(mean[at], formats[1])} at {_number(at, formats[0])}" for at, word in parts)
        told.append(f"{name}: {', '.join(written)}")
    return _sentences(f"{y}, by {x}", told)


def of_dots(values: Mapping[str, Mapping[str, Sequence[float]]], y: str, form: str) -> str:
    """Of each series its mean over the groups, and the groups where it is lowest and highest.

    Example:
        >>> of_dots({"merged": {"shapes": [40.0], "colors": [90.0]}}, "accuracy, %", ".1f")
        'accuracy, %. merged: mean 65.0, from 40.0 (shapes) to 90.0 (colors).'
    """
    told = []
    for name, groups in values.items():
        mean = {group: statistics.fmean(runs) for group, runs in groups.items() if runs}
        if mean:
            low, high = min(mean, key=mean.__getitem__), max(mean, key=mean.__getitem__)
            ends = f", from {_number(mean[low], form)} ({low}) to {_number(mean[high], form)} ({high})"
            told.append(f"{name}: mean {_number(statistics.fmean(mean.values()), form)}{ends if low != high else ''}")
    return _sentences(y, told)


def of_map(coefs: Sequence[float], values: Sequence[Sequence[float]], title: str, value: str, form: str) -> str:
    """Of a map its mean within |α| ≤ 1, and its largest value and where that is.

    Example:
        >>> of_map([-1.0, 1.0], [[0.1, 0.3], [0.2, 0.2]], "a – b", "ξ/2", ".1%")
        'a – b. ξ/2: mean 20.0% within |α| ≤ 1, largest 30.0% at α = (-1, 1).'
    """
    cells = {(a, b): v for a, row in zip(coefs, values, strict=True) for b, v in zip(coefs, row, strict=True)}
    near = [v for (a, b), v in cells.items() if max(abs(a), abs(b)) <= 1]
    far = max(cells, key=cells.__getitem__)
    within = f"mean {_number(statistics.fmean(near), form)} within |α| ≤ 1, " if near else ""
    return _sentences(title, [f"{value}: {within}largest {_number(cells[far], form)} at α = ({far[0]:g}, {far[1]:g})"])


def of_matrix(
    names: tuple[Sequence[str], Sequence[str]],
    cells: Iterable[tuple[int, int, float]],
    title: str,
    value: str,
    form: str,
) -> str:
    """Of a matrix its mean and its three largest cells off the diagonal.

    Example:
        >>> of_matrix((["a", "b"], ["a", "b"]), [(0, 1, 0.25), (1, 0, 0.5), (0, 0, 1.0)], "", "cosine", ".2f")
        'cosine. off the diagonal: mean 0.38, largest 0.50 (b, a), 0.25 (a, b).'
    """
    off = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])
    if not off:
        return _sentences(", ".join(filter(None, (title, value))), [])
    largest = ", ".join(f"{_number(v, form)} ({names[0][i]}, {names[1][j]})" for i, j, v in off[:3])
    mean = _number(statistics.fmean(v for _, _, v in off), form)
    return _sentences(", ".join(filter(None, (title, value))), [f"off the diagonal: mean {mean}, largest {largest}"])


def _sentences(begin: str, told: Sequence[str]) -> str:
    more = [f"{len(told) - MOST} more are in the table"] if len(told) > MOST else []
    return " ".join(f"{text}." for text in (begin, *told[:MOST], *more) if text)


def _number(value: float, form: str) -> str:
    """A number in a format of d3, which knows a few that Python does not."""
    return f"{value:,.0f}" if form in ("d", ",d") else f"{value:{form.replace('~', '')}}"

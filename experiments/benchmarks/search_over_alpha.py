"""Whether a search over α, coarse to fine, ends at the α of the whole grid, on sweeps that are recorded.

    python -m experiments.benchmarks.search_over_alpha
    python -m experiments.benchmarks.search_over_alpha runs/*/results.jsonl

By default the records of all experiments here. Sweeps that are no whole grid, because they were searched, are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tajax import results
from tajax.records import SingleTask, Sweep, TaskAddition
from tajax.results import Record
from tajax.scaling import coarse_to_fine, deciding_mean

EXPERIMENTS = Path(__file__).resolve().parents[1]
PLAIN_SUM = 1.0


class Searched(NamedTuple):
    """A grid, what a search of it finds, and how much it looks at."""

    best: float
    found: float
    lost: float
    """Of the normalised accuracy, by the α that was found."""
    measured: int
    grid: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each sweep that ends elsewhere, and one for all."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.search_over_alpha",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = sorted(EXPERIMENTS.glob("*/results/*.jsonl"))
    parser.add_argument("records", nargs="*", type=Path, default=default, help="files of records")
    options = parser.parse_args(arguments)
    every = [(path, one) for path in options.records for one in searched(results.read(path))]
    if not every:
        parser.error("no whole sweep over α among these records")
    for path, one in every:
        if one.found != one.best:
            print(f"{path}: α = {one.found:g} in place of {one.best:g}, {100 * one.lost:.2f} points less")
    same = sum(one.found == one.best for _, one in every)
    measured, grid = (np.mean([getattr(one, name) for _, one in every]) for name in ("measured", "grid"))
    print(f"the α of the grid in {same} of {len(every)} sweeps, with {measured:.1f} of {grid:.1f} points")


def searched(records: Sequence[Record]) -> Iterator[Searched]:
    """What the search makes of each whole grid among some records."""
    of_runs = [record for record in records if "config_hash" in record]  # benchmarks keep records of their own
    for group in results.by_config(of_runs).values():
        single = {r["task"]: r["top1"] for r in results.find(group, SingleTask, split="val")}
        points = dict(_points(results.find(group, Sweep, split="val")))
        grid = sorted({coef for _, coef in points})
        whole = all((task, coef) in points for task in single for coef in grid)
        if not (single and grid and whole) or any("search" in r for r in results.find(group, TaskAddition)):
            continue
        accuracies = np.array([[points[task, coef] for coef in grid] for task in single])
        means = dict(zip(grid, deciding_mean(accuracies, np.array([*single.values()])).tolist(), strict=True))
        values: dict[float, float] = {}
        while asked := coarse_to_fine(grid, values, always=(PLAIN_SUM,)):
            values |= {coef: means[coef] for coef in asked}
        best, found = (max(of, key=lambda coef: (means[coef], -abs(coef))) for of in (means, values))
        yield Searched(best, found, means[best] - means[found], len(values), len(grid))


def _points(sweeps: Sequence[Sweep]) -> Iterator[tuple[tuple[str, float], float]]:
    """Accuracies by task and α, of records of one α each or, as `summary.curves` keeps them, of all of a task."""
    for record in sweeps:
        coefs, top1 = np.atleast_1d(record["scaling_coef"]), np.atleast_1d(record["top1"])
        for coef, value in zip(coefs.tolist(), top1.tolist(), strict=True):
            yield (record["task"], coef), value


if __name__ == "__main__":
    main()

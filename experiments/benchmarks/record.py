"""A comparison as one row of numbers, and the JSON file that keeps a script's rows with what they depend on."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from timing import Timing

from tajax import results


def faster(what: str, ours: Timing, other: Timing, *, against: str = "PyTorch", target: float | None = None) -> dict:
    """The row that says how many times faster tajax is: other / ours, wanted at least `target`."""
    return _row(what, ours, other, against, [b / a for a, b in zip(ours.runs, other.runs, strict=True)], "≥", target)


def cost(what: str, ours: Timing, other: Timing, *, against: str = "PyTorch", target: float | None = None) -> dict:
    """The row that says how many times the other's time tajax takes: ours / other, wanted at most `target`."""
    return _row(what, ours, other, against, [a / b for a, b in zip(ours.runs, other.runs, strict=True)], "≤", target)


def times(timing: Timing, factor: float) -> Timing:
    """What `factor` such runs would take."""
    return timing._replace(runs=[factor * seconds for seconds in timing.runs])


def less(timing: Timing, part: Timing) -> Timing:
    """What is left of each run without the part that was timed in the same round."""
    return timing._replace(runs=[a - b for a, b in zip(timing.runs, part.runs, strict=True)])


def write(options: argparse.Namespace, rows: Sequence[dict], **details: object) -> None:
    """Writes `SCRIPT_MODEL.json` into the folder for results and prints the rows.

    Args:
        options: the script's flags.
        rows: from `faster` and `cost`.
        **details: sizes, agreement and other JSON values.
    """
    script = Path(sys.argv[0]).stem
    # A model given as a directory is known by its last name: where it lies concerns nobody else.
    record = {
        "benchmark": script,
        "model": Path(options.model).name,
        "command": f"python experiments/benchmarks/{script}.py {' '.join(sys.argv[1:])}".strip(),
        "rows": list(rows),
        **details,
        **results.provenance(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "processor": _processor(),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{script}_{record['model']}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    for row in rows:
        print(describe(row), flush=True)


def describe(row: Mapping) -> str:
    """A row as one line of text."""
    ours, other = (figures(row[side]["median"]) for side in ("tajax", "other"))
    return f"{row['what']}: tajax {ours} s, {row['against']} {other} s, {verdict(row)}"


def verdict(row: Mapping) -> str:
    """The ratio of a row in words: its median over the rounds, and the smallest and largest."""
    median, smallest, largest = (figures(row["ratio"][key]) for key in ("median", "min", "max"))
    return f"{median}{'× as fast' if row['sense'] == '≥' else '× the time'} ({smallest}–{largest})"


def figures(value: float) -> str:
    """A positive number with three figures, and all of those before the point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def _row(what: str, ours: Timing, other: Timing, against: str, ratios: list[float], sense: str, target) -> dict:
    ratio = statistics.median(ratios)
    met = None if target is None else ratio >= target if sense == "≥" else ratio <= target
    return {
        "what": what,
        "tajax": ours.record(),
        "against": against,
        "other": other.record(),
        "sense": sense,
        "ratio": {"median": ratio, "min": min(ratios), "max": max(ratios)},
        "target": target,
        "met": met,
    }


def _processor() -> str:
    """The processor's name, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")

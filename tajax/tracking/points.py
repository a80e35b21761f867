"""Curves from records: what TensorBoard and Weights & Biases are shown is a translation of `results.jsonl`.

| records | curves | step |
|---|---|---|
| `finetune`, `pretrain` | `loss`, `top1`, `grad_norm`, `learning_rate`, `images_per_second` | optimiser step |
| `kernel_behaviour`, and any whose name ends with `sweep` | `top1`, gaps, agreement | α in thousandths |
| any other with a `top1`, `summary` or `share` | that, as a single point | 0 |

There is a curve for each task. What is recorded once is translated once, with the time at which it was recorded, so
that the same records make the same points in every process.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tajax.records import Finetune, KernelBehaviour, Pretrain, Run, stage_of
from tajax.results import Record

_TRAINING = stage_of(Finetune), stage_of(Pretrain)
_CURVES = ("top1", "linearized_top1", "relative_gap", "relative_movement", "agreement")
_SCORES = ("top1", "normalized_top1", "control_top1", "val_top1", "summary", "relative", "share")
_KINDS = ("split", "vector", "distance", "reading", "kernel")  # fields that tell records of one stage and task apart
_NOT_CURVES = ("step", "seed", "elapsed_seconds")
THOUSANDTHS = 1000
_LARGEST = 1e15  # a step times a thousand is a 64-bit number
_LONGEST = 120  # letters of a name
_TIMED = 1.0  # seconds between records from which a rate is taken: their clock has tenths


class Point(NamedTuple):
    """A point of a curve.

    Attributes:
        run: whose curve it is: a task, or what the record is about.
        stage: of the record.
        name: of the number.
        step: as in the table above.
        value: the number.
        time: when it was recorded, in seconds since 1970.
    """

    run: str
    stage: str
    name: str
    step: int
    value: float
    time: float


class Translation:
    """`translation(record) -> points`, for the records of a run in their order.

    Args:
        images: images of a step, by stage.
    """

    def __init__(self, images: Mapping[str, int]):
        self.images = images
        self.clock_began = 0.0
        self.timed: dict[tuple[str, str], tuple[int, float]] = {}

    def __call__(self, record: Record) -> list[Point]:
        """The points of one record."""
        stage, elapsed = str(record.get("stage")), _number(record.get("elapsed_seconds")) or 0.0
        if stage == stage_of(Run):  # a process introduces itself: its clock and its steps begin anew
            self.timed.clear()
            self.clock_began = _epoch(record.get("time")) - elapsed
            return []
        time, run = self.clock_began + elapsed, whose(record)
        found = self._numbers(stage, record, elapsed)
        return [Point(run, _plain(stage), _plain(name), step, value, time) for name, step, value in found]

    def _numbers(self, stage: str, record: Record, elapsed: float) -> Iterator[tuple[str, int, float]]:
        if stage in _TRAINING:
            step = int(_number(record.get("step")) or 0)
            for name, value in record.items():
                if name not in _NOT_CURVES and (number := _number(value)) is not None:
                    yield name, step, number
            rate = self._rate(stage, record, step, elapsed)
            if rate is not None:
                yield "images_per_second", step, rate
        elif stage.endswith("sweep") or stage == stage_of(KernelBehaviour):
            step = round(THOUSANDTHS * (_number(record.get("scaling_coef")) or 0.0))
            for name in _CURVES:
                if (number := _number(record.get(name))) is not None:
                    yield _named(record, name), step, number
        else:
            for name in _SCORES:
                if (number := _number(record.get(name))) is not None:
                    yield _named(record, name), 0, number

    def _rate(self, stage: str, record: Record, step: int, elapsed: float) -> float | None:
        key = stage, whose(record)
        before = self.timed.setdefault(key, (step, elapsed))
        if elapsed - before[1] < _TIMED or stage not in self.images:
            return None
        self.timed[key] = step, elapsed
        return (step - before[0]) * self.images[stage] / (elapsed - before[1])


def whose(record: Record) -> str:
    """The task of a record, or its tasks, or else its stage; a name that a directory can have.

    Example:
        >>> whose({"stage": "disentanglement", "tasks": ["digits", "signs"]}), whose({"task": "../digits"})
        ('digits_and_signs', 'digits')
    """
    tasks = record.get("tasks")
    named = " and ".join(map(str, tasks)) if isinstance(tasks, list) else str(record.get("task") or record.get("stage"))
    return _plain(named).strip("._-") or "run"


def _plain(name: str) -> str:
    """The name as tags and directories can have it."""
    return re.sub(r"[^\w.-]+", "_", name)[:_LONGEST]


def _named(record: Record, name: str) -> str:
    kinds = [str(record[kind]) for kind in _KINDS if kind in record]
    if "measured_on" in record:
        kinds.append("own" if record["measured_on"] == record.get("task") else "control")
    return "_".join([*kinds, name])


def _number(value: object) -> float | None:
    """A number that is one: records may have been changed by somebody."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < _LARGEST else None


def _epoch(time: object) -> float:
    try:
        return datetime.datetime.fromisoformat(str(time)).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0

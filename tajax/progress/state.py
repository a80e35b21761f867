"""What a run will do, has done and does now, as plain values, and how long the rest takes: nothing here is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

WAITING, RUNNING, DONE, STOPPED = "waiting", "running", "done", "stopped"


@dataclass(frozen=True)
class Item:
    """A part of a stage, such as a task.

    Attributes:
        name: what is shown.
        units: how much work it is: steps, images.
        done: units done.
        kept: those of `done` that an earlier process did.
        began: seconds of a clock; None before.
        ended: likewise.
        note: its latest numbers.
    """

    name: str
    units: float = 1.0
    done: float = 0.0
    kept: float = 0.0
    began: float | None = None
    ended: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Stage:
    """A stage of a run: items that are worked on one after the other.

    Attributes:
        name: what the program calls it.
        title: what is shown.
        kind: stages of one kind take the same time a unit; by default no other does.
        work: units before its items are known; None if nobody can say, 0 if it takes no time to speak of.
        images: images, or other examples, in a unit, for a rate; 0: none.
        examples: what these are called.
        each: whether an item is worth a line of its own where there is no terminal.
        items: in their order; known when the stage begins.
        state: one of `WAITING`, `RUNNING`, `DONE`, `STOPPED`.
        began: seconds of a clock; None before.
        ended: likewise.
        first: `(time, units)` when this process had done its first units.
        latest: the same of its latest.
        note: its key number.
    """

    name: str
    title: str = ""
    kind: str = ""
    work: float | None = None
    images: int = 0
    examples: str = "images"
    each: bool = False
    items: tuple[Item, ...] = ()
    state: str = WAITING
    began: float | None = None
    ended: float | None = None
    first: tuple[float, float] | None = None
    latest: tuple[float, float] | None = None
    note: str = ""

    @property
    def total(self) -> float | None:
        """Units in all."""
        return sum(item.units for item in self.items) if self.items else self.work

    @property
    def done(self) -> float:
        """Units done, by whatever process."""
        return sum(item.done for item in self.items)

    @property
    def finished(self) -> int:
        """How many items are done."""
        return sum(item.done >= item.units for item in self.items)

    @property
    def kept(self) -> bool:
        """Whether nothing was left to do for this process."""
        return bool(self.items) and all(item.kept >= item.units for item in self.items)

    @property
    def current(self) -> Item | None:
        """The item that is being worked on."""
        return next((item for item in self.items if item.began is not None and item.ended is None), None)


@dataclass(frozen=True)
class Plan:
    """A run: what it is, where it lives, its stages in order, and when this process began it."""

    title: str = ""
    place: str = ""
    stages: tuple[Stage, ...] = ()
    began: float = 0.0
    ended: float | None = None

    @property
    def running(self) -> Stage | None:
        """The stage that is being worked on."""
        return next((stage for stage in self.stages if stage.state == RUNNING), None)

    def number(self, stage: Stage) -> str:
        """Which one it is, as `3/8`."""
        names = [one.name for one in self.stages]
        return f"{names.index(stage.name) + 1}/{len(names)}"


class Left(NamedTuple):
    """Time that the rest takes; at least so long, where not all of it is known."""

    seconds: float
    whole: bool


def begun(plan: Plan, name: str, units: Mapping[str, float], done: frozenset[str], now: float) -> Plan:
    """The plan with a stage begun, on items of so many units; one that it does not have comes last.

    Args:
        plan: with no stage running.
        name: of the stage.
        units: of each item, by name.
        done: names of items that an earlier process has done.
        now: seconds of the clock.
    """
    items = tuple(
        Item(item, size, done=size, kept=size) if item in done else Item(item, size) for item, size in units.items()
    )
    stage = next((stage for stage in plan.stages if stage.name == name), None)
    if stage is None:
        stage = Stage(name, name.replace("_", " "))
        plan = dataclasses.replace(plan, stages=(*plan.stages, stage))
    stage = dataclasses.replace(stage, items=items, state=RUNNING, began=now, ended=None, first=None, latest=None)
    return changed(plan, stage)


def changed(plan: Plan, stage: Stage) -> Plan:
    """The plan with this stage in place of the one of its name."""
    return dataclasses.replace(plan, stages=tuple(stage if one.name == stage.name else one for one in plan.stages))


def item_of(stage: Stage, name: str) -> Item:
    """The item of that name; a new one, if the stage has none."""
    return next((item for item in stage.items if item.name == name), Item(name))


def item_changed(stage: Stage, item: Item) -> Stage:
    """The stage with this item in place of the one of its name; if it has none, the item comes last."""
    items = stage.items if any(one.name == item.name for one in stage.items) else (*stage.items, item)
    return dataclasses.replace(stage, items=tuple(item if one.name == item.name else one for one in items))


def moved(stage: Stage, item: Item, now: float) -> Stage:
    """The stage with an item as it is at that time; what is only noted tells nothing of the pace."""
    stage = item_changed(stage, item)
    own = sum(item.done - item.kept for item in stage.items)
    if own <= (stage.latest[1] if stage.latest else 0):
        return stage
    return dataclasses.replace(stage, first=stage.first or (now, own), latest=(now, own))


def pace(*stages: Stage) -> float | None:
    """Seconds a unit, over stages of one kind; None before any of them has been timed.

    The first units of a stage are not counted: they wait for the compiler.

    Example:
        >>> pace(Stage("sweep", first=(10.0, 1.0), latest=(16.0, 4.0)))
        2.0
    """
    ends = [(stage.first, stage.latest) for stage in stages if stage.first and stage.latest]
    timed = [(first, latest) for first, latest in ends if latest[1] > first[1]]
    if not timed:
        return None
    seconds, units = (sum(latest[axis] - first[axis] for first, latest in timed) for axis in (0, 1))
    return seconds / units


def elapsed(part: Item | Stage, now: float) -> float:
    """Seconds from the beginning of an item or a stage to its end, or to now if it goes on; 0 before it begins."""
    return 0.0 if part.began is None else (part.ended or now) - part.began


def left_of(plan: Plan, stage: Stage, now: float) -> float | None:
    """Seconds until a stage is done, by its own pace or that of its kind; None if there is no measure of it yet."""
    if stage.state in (DONE, STOPPED) or stage.total == 0:
        return 0.0
    of_kind = [other for other in plan.stages if other.kind and other.kind == stage.kind]
    own = pace(stage) or pace(*of_kind)
    if stage.total is None or own is None:
        return 0.0 if stage.total is not None and stage.done >= stage.total else None
    waited = now - stage.latest[0] if stage.latest else 0.0
    return max(0.0, (stage.total - stage.done) * own - waited)


def left(plan: Plan, now: float) -> Left | None:
    """Time until the run is done: what is measured of it, or None if nothing is.

    Example:
        >>> fast = Stage("zero_shot", kind="forward", state=DONE, first=(0.0, 0.0), latest=(1.0, 100.0))
        >>> stages = fast, Stage("single_task", kind="forward", work=500), Stage("sweep", work=500)
        >>> left(Plan(stages=stages[:2]), 1.0), left(Plan(stages=stages), 1.0), left(Plan(stages=stages[2:]), 1.0)
        (Left(seconds=5.0, whole=True), Left(seconds=5.0, whole=False), None)
    """
    each = [left_of(plan, stage, now) for stage in plan.stages]
    known = sum(seconds for seconds in each if seconds is not None)
    whole = None not in each
    return Left(known, whole) if whole or known else None


def window(count: int, current: int, room: int) -> tuple[int, int]:
    """Which of `count` rows to show in `room` lines, as `[first, end)`; a fold at either end takes a line, too.

    Example:
        >>> window(20, 10, 7), window(20, 0, 7), window(5, 2, 7), window(20, 19, 1)
        ((8, 13), (0, 6), (0, 5), (19, 20))
    """
    if count <= room:
        return 0, count
    if room <= 2:
        return min(current, count - 1), min(current, count - 1) + 1
    first = max(0, current - (room - 2) // 2)
    if first <= 1:
        return 0, room - 1
    if first + room - 2 >= count - 1:
        return count - room + 1, count
    return first, first + room - 2

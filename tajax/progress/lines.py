"""A run as lines of text, for logs: one for each finished stage, and one now and then during a long one."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tajax.progress.display import Display
from tajax.progress.state import Item, Left, Plan, Stage, elapsed, left, left_of, pace

EVERY = 15.0  # seconds between lines about a stage that goes on


class LineDisplay(Display):
    """Prints to standard error.

    Args:
        every: seconds between lines about a stage that goes on.
        emit: takes each line; prints it if not given.
    """

    def __init__(self, *, every: float = EVERY, emit: Callable[[str], object] | None = None):
        self.every, self.emit, self.printed = every, emit or _print, 0.0

    def began(self, plan: Plan, stage: Stage, now: float) -> None:
        """A stage has begun."""
        self.printed = now

    def moved(self, plan: Plan, stage: Stage, item: Item, now: float) -> None:
        """So much of an item is done."""
        if now - self.printed >= self.every and item.done < item.units:
            self.printed = now
            of_stage, of_all = left_of(plan, stage, now), left(plan, now)
            times = [] if of_stage is None else [f"{clock(of_stage)} left"]
            times += [f"{shown_left(of_all)} for all"] if of_all else []
            self._line(plan, stage, f"{item.name} {counted(item)}".strip(), item.note, rate(stage), ", ".join(times))

    def item_ended(self, plan: Plan, stage: Stage, item: Item, now: float) -> None:
        """An item is done."""
        if stage.each:
            self.printed = now
            took = clock(now - item.began) if item.began is not None else ""
            of_all = f"({stage.finished}/{len(stage.items)})"
            self._line(plan, stage, f"{item.name} {of_all}", item.note, rate(stage), took)

    def ended(self, plan: Plan, stage: Stage, now: float) -> None:
        """A stage is done."""
        count = f"{stage.finished}/{len(stage.items)}" if stage.items else "done"
        if stage.items and not stage.items[0].name:
            count = counted(stage.items[0])
        took = "done before" if stage.kept else clock(elapsed(stage, now))
        self._line(plan, stage, count, stage.note, took)

    def closed(self, plan: Plan, now: float) -> None:
        """The run is done."""
        if plan.stages:
            self.emit(f"done in {clock(now - plan.began)}: {plan.place}")

    def say(self, text: str) -> None:
        """A message."""
        self.emit(text)

    def _line(self, plan: Plan, stage: Stage, *parts: str) -> None:
        self.emit(f"[{plan.number(stage)}] {stage.title}: " + "  ".join(part for part in parts if part))


def clock(seconds: float) -> str:
    """Time in minutes and seconds, hours before them if there are any.

    Example:
        >>> clock(4.2), clock(83), clock(3723)
        ('0:04', '1:23', '1:02:03')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def shown_left(time: Left | None) -> str:
    """Time left, with `≥` where more of it is not known yet, and a dash where nothing is.

    Example:
        >>> shown_left(Left(83, True)), shown_left(Left(83, False)), shown_left(None)
        ('1:23', '≥ 1:23', '–')
    """
    return "–" if time is None else f"{'' if time.whole else '≥ '}{clock(time.seconds)}"


def counted(item: Item) -> str:
    """How much of an item is done, as `120/200`."""
    return f"{item.done:.0f}/{item.units:.0f}"


def rate(stage: Stage) -> str:
    """Examples a second, where that is known."""
    seconds = pace(stage)
    return f"{stage.images / seconds:.0f} {stage.examples}/s" if stage.images and seconds else ""


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

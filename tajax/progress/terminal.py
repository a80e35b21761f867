"""A run in a terminal: all of its stages in one place, which is drawn anew a few times a second."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tajax.progress.display import Display
from tajax.progress.lines import clock, counted, rate, shown_left
from tajax.progress.state import DONE, RUNNING, STOPPED, WAITING, Plan, Stage, elapsed, left, left_of, window
from tajax.progress.streams import LineStream

_MARKS = {DONE: ("✓", "green"), STOPPED: ("✗", "red"), WAITING: ("·", "dim"), RUNNING: ("", "cyan")}
_TURNING = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PER_SECOND = 4  # drawings
_OWN_LINES = 5  # of the display, beside those of stages and items: title, totals, bar of others, two at the end


class TerminalDisplay(Display):
    """Draws on standard error, a few times a second and whatever happens; what is printed meanwhile goes above it.

    Args:
        plan: gives the state to draw.
        now: the clock that its times are of.
    """

    def __init__(self, plan: Callable[[], Plan], now: Callable[[], float]):
        self.plan, self.now = plan, now
        self.console = Console(file=sys.stderr, highlight=False)
        both = {name: getattr(sys, name) for name in ("stdout", "stderr")}
        self.streams = {name: LineStream(file, self.say) for name, file in both.items() if file and file.isatty()}
        self.live = Live(
            get_renderable=self._drawn,
            console=self.console,
            refresh_per_second=_PER_SECOND,
            redirect_stdout=False,  # by `streams`: these leave a file alone that the output was sent to
            redirect_stderr=False,
            vertical_overflow="crop",
        )

    def start(self) -> None:
        """Begins to draw. The cursor stays visible, so that a process that is killed leaves a terminal in order."""
        self.live.start()
        self.console.show_cursor(True)

    def stop(self) -> None:
        """Draws the last state, which stays; nothing, where nothing was begun."""
        self.live.transient = not self.plan().stages
        self.live.stop()

    def say(self, text: str) -> None:
        """A message, above the display."""
        # Rich measures what it has to wipe away, then writes: a drawing of another height by its own thread between the
        # two would leave a line behind. Its lock is the only one that its thread takes.
        with self.live._lock:
            self.console.print(Text.from_ansi(text), soft_wrap=True)

    def _drawn(self) -> RenderableType:
        bars = [stream.bar for stream in self.streams.values() if stream.bar.strip()]
        return drawing(self.plan(), self.now(), self.console.size, bars[-1] if bars else "")


def drawing(plan: Plan, now: float, size: ConsoleDimensions, bar: str = "") -> RenderableType:
    """The display of a plan.

    Args:
        plan: what to draw; once it has ended, in the form that stays.
        now: seconds of its clock.
        size: of the terminal; no more lines than it has.
        bar: that other code draws.
    """
    if not plan.stages:
        return Text(bar, no_wrap=True, overflow="ellipsis")
    rows = Table.grid(padding=(0, 1), expand=True)
    rows.add_column(width=1)
    rows.add_column(no_wrap=True, overflow="ellipsis", max_width=max(16, size.width // 3))
    rows.add_column(no_wrap=True, justify="right")
    rows.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    rows.add_column(no_wrap=True, justify="right")
    for row in _rows(plan, now, size.height - _OWN_LINES):
        rows.add_row(*row)
    title = Table.grid(padding=(0, 1), expand=True)
    title.add_column(no_wrap=True, overflow="ellipsis")
    title.add_column(no_wrap=True, overflow="ellipsis", justify="right")
    title.add_row(Text(plan.title, "bold"), Text(plan.place, "dim"))
    took = clock((now if plan.ended is None else plan.ended) - plan.began)
    if plan.ended is not None:
        whole = all(stage.state == DONE for stage in plan.stages)
        return Group(title, rows, Text(f"done in {took}" if whole else f"stopped after {took}"))
    totals = Text(f"{took} elapsed, {shown_left(left(plan, now))} left", no_wrap=True)
    others = [Text(bar, "dim", no_wrap=True, overflow="ellipsis")] if bar else []
    return Group(title, rows, totals, *others, Text())  # an empty line for the prompt, should this be the last drawing


def _rows(plan: Plan, now: float, room: int) -> Iterator[tuple[RenderableType, ...]]:
    stages, ended = plan.stages, plan.ended is not None
    current = next((index for index, stage in enumerate(stages) if stage.state == RUNNING), 0)
    first, end = (0, len(stages)) if ended else window(len(stages), current, max(1, room - 1))
    before, after = (first > 0, end < len(stages)) if room > 3 else (False, False)
    if before:
        yield _fold(f"{first} stages done")
    for stage in stages[first:end]:
        yield _stage_row(stage, plan, now)
        if stage.state == RUNNING and not ended:
            yield from _item_rows(stage, room - (end - first) - before - after)
    if after:
        yield _fold(f"{len(stages) - end} more stages")


def _stage_row(stage: Stage, plan: Plan, now: float) -> tuple[RenderableType, ...]:
    mark, style = _MARKS[stage.state]
    title, count = Text(stage.title, style if stage.state != DONE else ""), Text("")
    if stage.items:
        whole = not stage.items[0].name
        count = Text(counted(stage.items[0]) if whole else f"{stage.finished}/{len(stage.items)}")
    if stage.state == WAITING:
        return Text(mark, style), title, count, Text(""), Text("")
    if stage.state == RUNNING and plan.ended is None:
        time = left_of(plan, stage, now) if stage.total else None
        bar = ProgressBar(total=stage.total, completed=stage.done) if stage.total else Text("")
        turning = Text(_TURNING[int(now * _PER_SECOND) % len(_TURNING)], style)
        shown = clock(elapsed(stage, now)) if time is None else f"{clock(time)} left"
        return turning, title, count, bar, Text(shown, style)
    took = "done before" if stage.kept else clock(elapsed(stage, now))
    at = stage.current  # of a stage that was stopped
    return Text(mark, style), title, count, Text(f"{at.name} {counted(at)}".strip() if at else stage.note), Text(took)


def _item_rows(stage: Stage, room: int) -> Iterator[tuple[RenderableType, ...]]:
    """The item that is worked on, and of stages with items of some length as many others as there is room for."""
    current = stage.current
    if current is None or room < 1 or len(stage.items) == 1 and not (current.note or current.units > 1):
        return
    at = stage.items.index(current)
    first, end = window(len(stage.items), at, room) if stage.each else (at, at + 1)
    folds = stage.each and room > 2
    if folds and first:
        yield _fold(f"  {first} more done")
    for item in stage.items[first:end]:
        if item is current:
            numbers = Text("  ".join(filter(None, (item.note, rate(stage)))))
            count = counted(item) if item.units > 1 and item.name else ""
            yield Text(""), Text(f"  {item.name}", "cyan"), Text(count), numbers, ""
        elif item.done >= item.units:
            took = "" if item.began is None or item.ended is None else clock(item.ended - item.began)
            yield Text(""), Text(f"  {item.name}"), Text("✓", "green"), Text(item.note), Text(took)
        else:
            yield Text(""), Text(f"  {item.name}", "dim"), Text("·", "dim"), "", ""
    if folds and end < len(stage.items):
        yield _fold(f"  {len(stage.items) - end} more to come")


def _fold(text: str) -> tuple[RenderableType, ...]:
    return Text(""), Text(f"{text}", "dim"), "", "", ""

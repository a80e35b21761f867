"""The state of a run that is watched: every change of it, and the display that is told."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from tajax.progress import state as plans
from tajax.progress.lines import LineDisplay, NoDisplay
from tajax.progress.streams import LineStream, replaced


class Watch:
    """The state of a run, and the display that is told of its changes.

    Args:
        quiet: nothing is shown.
        now: the clock.
    """

    def __init__(self, *, quiet: bool = False, now: Callable[[], float] = time.monotonic):
        self.quiet, self.now = quiet, now
        self.state = plans.Plan(began=now())
        self.display = NoDisplay() if quiet else LineDisplay()
        self._open = contextlib.ExitStack()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows it within the block: in a terminal as one display, elsewhere by lines."""
        with self._open:
            if self.quiet:
                silent = LineStream(sys.stdout, lambda line: None)
                errors = LineStream(sys.stderr, lambda line, file=sys.stderr: print(line, file=file, flush=True))
                self._open.enter_context(replaced({"stdout": silent, "stderr": errors}))
            elif sys.stderr is not None and sys.stderr.isatty():
                from tajax.progress.terminal import TerminalDisplay  # a log needs none of it

                display = TerminalDisplay(lambda: self.state, self.now)
                if not display.console.is_dumb_terminal:
                    self.display = display
                    self._open.callback(self._leave_terminal)
                    display.start()
                    self._open.enter_context(replaced(display.streams))
            yield

    def _leave_terminal(self) -> None:
        self.state = dataclasses.replace(self.state, ended=self.now())
        self.display.stop()
        self.display = LineDisplay()

    def finish(self) -> None:
        """The run is done: its last state stays on the screen, and what is printed now comes below it."""
        self.display.closed(self.state, self.now())
        if not self.quiet:
            self._open.close()

    def begin(self, name: str, units: Mapping[str, float], done: Collection[str]) -> None:
        """A stage begins."""
        now = self.now()
        clean = {printable(item): size for item, size in units.items()}
        self.state = plans.begun(self.state, name, clean, frozenset(map(printable, done)), now)
        self.display.began(self.state, self.state.running, now)

    def end(self, state: str) -> None:
        """The stage that is running is done or stopped."""
        running, now = self.state.running, self.now()
        self.state = plans.changed(self.state, running.name, state=state, ended=now)
        if state == plans.DONE:
            ended = next(stage for stage in self.state.stages if stage.name == running.name)
            self.display.ended(self.state, ended, now)
        else:
            self.display.stopped(self.state, now)

    def item(self, name: str) -> None:
        """An item of the stage begins."""
        running, name = self.state.running, printable(name)
        items = plans.item_changed(running, name, began=self.now(), ended=None)
        self.state = plans.changed(self.state, running.name, items=items)

    def resumed(self, done: float) -> None:
        """So many units of the item were done by an earlier process."""
        running = self.state.running
        if running and running.current:
            items = plans.item_changed(running, running.current.name, done=done, kept=done)
            self.state = plans.changed(self.state, running.name, items=items)

    def move(self, done: float | None, by: float, note: str | None) -> None:
        """So many units of the item are done, or so many more."""
        running, now = self.state.running, self.now()
        item = running.current if running else None
        if item is None:
            return
        reached = min(item.units, item.done + by if done is None else done)
        moved = plans.moved(running, item.name, reached, item.note if note is None else printable(note), now)
        self.state = plans.changed(self.state, running.name, items=moved.items, first=moved.first, latest=moved.latest)
        self.display.moved(self.state, moved, moved.current, now)

    def item_ended(self) -> None:
        """The item is done."""
        running, now = self.state.running, self.now()
        name = running.current.name
        if running.current.done < running.current.units:
            self.move(running.current.units, 0.0, None)
        running = self.state.running
        items = plans.item_changed(running, name, ended=now)
        self.state = plans.changed(self.state, running.name, items=items)
        running = self.state.running
        ended = next(item for item in running.items if item.name == name)
        if ended.kept < ended.units:
            self.display.item_ended(self.state, running, ended, now)

    def note(self, text: str) -> None:
        """The key number of the stage that is running."""
        self.state = plans.changed(self.state, self.state.running.name, note=printable(text))


def printable(text: str) -> str:
    """The text without anything that a terminal takes for a command: names come from files."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)

"""The state of a run that is watched: every change of it, and the display that is told."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from tajax.progress import state as plans
from tajax.progress.display import Display
from tajax.progress.lines import LineDisplay
from tajax.progress.state import Stage
from tajax.progress.streams import LineStream, replaced

if TYPE_CHECKING:
    from tajax.progress.terminal import TerminalDisplay


class Watch:
    """The state of a run, and the display that is told of its changes.

    Args:
        quiet: nothing is shown.
        now: the clock.
    """

    def __init__(self, *, quiet: bool = False, now: Callable[[], float] = time.monotonic):
        self.quiet, self.now = quiet, now
        self.state = plans.Plan(began=now())
        self.display: Display = Display() if quiet else LineDisplay()
        self._open = contextlib.ExitStack()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows it within the block: in a terminal as one display, elsewhere by lines."""
        with self._open:
            if self.quiet:
                silent = LineStream(sys.stdout, lambda line: None)
                errors = LineStream(sys.stderr, functools.partial(print, file=sys.stderr, flush=True))
                self._open.enter_context(replaced({"stdout": silent, "stderr": errors}))
            elif sys.stderr is not None and sys.stderr.isatty():
                from tajax.progress.terminal import TerminalDisplay  # a log needs none of it

                display = TerminalDisplay(lambda: self.state, self.now)
                if not display.console.is_dumb_terminal:
                    self.display = display
                    self._open.callback(self._leave, display)
                    display.start()
                    self._open.enter_context(replaced(display.streams))
            yield

    def _leave(self, terminal: TerminalDisplay) -> None:
        self.state = dataclasses.replace(self.state, ended=self.now())
        terminal.stop()
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
        self.display.began(self.state, self._running(), now)

    def end(self, state: str) -> None:
        """The stage that is running is done or stopped."""
        now = self.now()
        ended = dataclasses.replace(self._running(), state=state, ended=now)
        self.state = plans.changed(self.state, ended)
        if state == plans.DONE:
            self.display.ended(self.state, ended, now)
        else:
            self.display.stopped(self.state, now)

    def item(self, name: str) -> None:
        """An item of the stage begins."""
        running = self._running()
        item = dataclasses.replace(plans.item_of(running, printable(name)), began=self.now(), ended=None)
        self.state = plans.changed(self.state, plans.item_changed(running, item))

    def resumed(self, done: float) -> None:
        """So many units of the item were done by an earlier process."""
        running = self.state.running
        if running and running.current:
            item = dataclasses.replace(running.current, done=done, kept=done)
            self.state = plans.changed(self.state, plans.item_changed(running, item))

    def move(self, done: float | None, by: float, note: str | None) -> None:
        """So many units of the item are done, or so many more."""
        running, now = self.state.running, self.now()
        if running is None or running.current is None:
            return
        item = running.current
        reached = min(item.units, item.done + by if done is None else done)
        item = dataclasses.replace(item, done=reached, note=item.note if note is None else printable(note))
        moved = plans.moved(running, item, now)
        self.state = plans.changed(self.state, moved)
        self.display.moved(self.state, moved, item, now)

    def item_ended(self) -> None:
        """The item is done."""
        item, now = self._running().current, self.now()
        if item is None:
            raise RuntimeError(f"stage {self._running().name!r} has no item that could end; call `item` first.")
        if item.done < item.units:
            self.move(item.units, 0.0, None)
        ended = dataclasses.replace(plans.item_of(self._running(), item.name), ended=now)
        running = plans.item_changed(self._running(), ended)
        self.state = plans.changed(self.state, running)
        if ended.kept < ended.units:
            self.display.item_ended(self.state, running, ended, now)

    def note(self, text: str) -> None:
        """The key number of the stage that is running."""
        self.state = plans.changed(self.state, dataclasses.replace(self._running(), note=printable(text)))

    def _running(self) -> Stage:
        if self.state.running is None:
            raise RuntimeError("no stage is running; call `begin` first.")
        return self.state.running


def printable(text: str) -> str:
    """The text without anything that a terminal takes for a command: names come from files."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)

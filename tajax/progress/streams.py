"""What other code prints while a display is on: whole lines go above it, bars of others have one line in it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

_MOVES = re.compile(r"\x1b\[[0-9;?]*[A-HJKSTfhlsu]")  # of the cursor; colours stay


class LineStream(io.TextIOBase):
    """Stands for a stream of text and passes whole lines on.

    A line that was begun anew by a carriage return is a bar, as tqdm draws them: the latest is `bar`, and none is
    passed on. Empty lines are left out. A process that was forked off writes to the stream itself.

    Args:
        file: the stream it stands for.
        emit: takes each line, without its end.
    """

    def __init__(self, file: TextIO, emit: Callable[[str], object]):
        self.file, self.emit = file, emit
        self.pid, self.pending, self.bar = os.getpid(), "", ""
        self.lock = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a property of the base class as well, typeshed notwithstanding
        """Of the stream it stands for."""
        return getattr(self.file, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        """It is."""
        return True

    def isatty(self) -> bool:
        """As the stream it stands for."""
        return self.file.isatty()

    def fileno(self) -> int:
        """Of the stream it stands for."""
        return self.file.fileno()

    def write(self, text: str) -> int:
        """Takes any text; returns its length."""
        if os.getpid() != self.pid:
            return self.file.write(text)
        with self.lock:
            if self.bar and not text.startswith(("\r", "\n")):
                self.pending = ""  # a message, which on a terminal would stand behind the bar
            *lines, self.pending = (self.pending + _MOVES.sub("", text)).split("\n")
            for line in lines:
                self._pass_on(line)
            bar = self.pending.rstrip("\r")
            self.bar = bar.rpartition("\r")[2] if "\r" in self.pending else ""
            if "\r" in bar:
                self.pending = f"\r{self.bar}"  # what it looked like before is gone
        return len(text)

    def flush(self) -> None:
        """Flushes the stream it stands for; an unfinished line waits for its end."""
        self.file.flush()

    def end(self) -> None:
        """Passes on a last line without an end."""
        with self.lock:
            line, self.pending, self.bar = self.pending, "", ""
            self._pass_on(line)

    def _pass_on(self, line: str) -> None:
        line = line.removesuffix("\r")
        if line.strip() and "\r" not in line:
            self.emit(line)


@contextlib.contextmanager
def replaced(streams: dict[str, LineStream]) -> Iterator[None]:
    """`sys.stdout`, `sys.stderr` or both replaced within the block, also for the handlers of `logging`."""
    before = {name: getattr(sys, name) for name in streams}
    handlers = [handler for handler in _handlers() if handler.stream in before.values()]
    for name, stream in streams.items():
        setattr(sys, name, stream)
        for handler in handlers:
            if handler.stream is before[name]:
                handler.setStream(stream)
    try:
        yield
    finally:
        for name, file in before.items():
            if getattr(sys, name) is streams[name]:
                setattr(sys, name, file)
            for handler in _handlers():
                if handler.stream is streams[name]:
                    handler.setStream(file)
            streams[name].end()


def _handlers() -> list[logging.StreamHandler]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = {handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    return [handler for handler in found if isinstance(handler, logging.StreamHandler)]

"""Signals that ask a process to end: SIGTERM of a scheduler, SIGINT of a person (Ctrl-C).

The first one ends the process where nothing is lost by it: a loop that holds work which is not yet on disk puts it
off with `deferred`, keeps what it has at its next step and leaves; anywhere else `Interrupted` is raised at once. The
second one ends the process immediately, also while the main thread is inside a compiler.

Code that runs outside `handled`, in a notebook for example, keeps Python's own behaviour.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}  # 75 is EX_TEMPFAIL of sysexits.h: try again


class Interrupted(KeyboardInterrupt):
    """The process was asked to end; `number` is the signal."""

    def __init__(self, number: int):
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


class _Received:
    """What has arrived in this process since `handled` was entered."""

    first: int | None = None
    deferrals = 0


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Heeds `SIGNALS` within the block as the module says; afterwards all is as before.

    Python runs handlers in the main thread alone: in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Received.first, _Received.deferrals = None, 0
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    before = {number: signal.signal(number, _receive) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    watch = threading.Thread(target=_end_at_the_second, args=(receiver,), daemon=True, name="signals")
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(sender)
        watch.join()
        os.close(receiver)
        _Received.first = None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within the block a signal is noted for `requested`, and raised when the block ends without an error."""
    _Received.deferrals += 1
    try:
        yield
    finally:
        _Received.deferrals -= 1
    check()


def requested() -> bool:
    """Whether the process has been asked to end."""
    return _Received.first is not None


def requested_by() -> int:
    """The number of the signal that asked this process to end; 0 if none has."""
    return _Received.first or 0


def ask(number: int = signal.SIGTERM) -> None:
    """Asks this process to end as the signal would: for another thread, or for what another process was asked."""
    _Received.first = _Received.first or number


def is_deferred() -> bool:
    """Whether the main thread holds work that it would keep first."""
    return _Received.deferrals > 0


def leave() -> None:
    """Raises `Interrupted` if the process has been asked to end: for a loop that has just kept what it has."""
    if _Received.first is not None:
        raise Interrupted(_Received.first)


def check() -> None:
    """Raises `Interrupted` if the process has been asked to end and nothing puts it off.

    A signal that arrives inside a destructor or a callback cannot raise there; the next call of this does.
    """
    if not _Received.deferrals:
        leave()


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code of a process that ended with `stop`: one of `EXIT_CODES`."""
    return EXIT_CODES[signal.Signals(getattr(stop, "number", signal.SIGINT))]


def _receive(number: int, frame: object) -> None:
    _Received.first = _Received.first or number
    check()


def _end_at_the_second(receiver: int) -> None:
    """Counts signals as they arrive, before the main thread comes to handle them."""
    arrived = 0
    while byte := os.read(receiver, 1):
        arrived += byte[0] in SIGNALS
        if arrived > 1:
            os._exit(128 + byte[0])

"""Inputs that attack, and what they must not reach: pickles, processes, the network, files outside their directory.

`TAJAX_FUZZ=50 pytest -n 0 tests/hostile` tries fifty times as many inputs, other ones each time, and says how many.
"""

import contextlib
import os
import resource
import sys
import time
from collections import Counter

import hypothesis
import pytest
from hypothesis import HealthCheck

from tajax.workflows.faults import EXPLAINED

FACTOR = int(os.environ.get("TAJAX_FUZZ", "1"))
SECONDS, GIB = 5.0, 1 << 30
TRIED: Counter = Counter()
WORKED: Counter = Counter()

_FORBIDDEN = (
    "pickle.find_class",
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.spawn",
    "socket.connect",
    "marshal.loads",
)
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Watch:
    """What an attack does that it must not, as Python's own audit hook tells."""

    allowed: tuple[str, ...] | None = None
    seen: list[str] = []


def _audit(event, arguments):
    if _Watch.allowed is None:
        return
    if event.startswith(_FORBIDDEN) and not (event == "marshal.loads" and _importing()):
        _Watch.seen.append(f"{event} {arguments!r:.200}")
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if writes or event in _CHANGES:
        place = arguments[0]
        if isinstance(place, str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(place))
            if not path.startswith((*_Watch.allowed, "/dev/null")) and "__pycache__" not in path:
                _Watch.seen.append(f"{event} {path}")


def _importing():
    frame = sys._getframe(2)
    while frame:
        if frame.f_globals.get("__name__", "").startswith("importlib"):
            return True
        frame = frame.f_back
    return False


sys.addaudithook(_audit)


def attack(examples, **strategies):
    """A test that hypothesis feeds with so many inputs, times `FACTOR`."""
    settings = hypothesis.settings(
        max_examples=examples * FACTOR,
        derandomize=FACTOR == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        phases=[phase for phase in hypothesis.Phase if FACTOR == 1 or phase.name != "shrink"],
    )
    return lambda test: settings(hypothesis.given(**strategies)(test))


@contextlib.contextmanager
def little_memory():
    """No more than a gibibyte on top of what the process has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GIB, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def attempt(tmp_path, request):
    """`attempt(name, function, path)`: what the function gives, or None where it refused and named the path.

    Raises whatever is not explained, and fails at what takes too long, leaves the test's directory, or runs code.
    """
    canary = tmp_path.parent / f"{tmp_path.name}-canary"
    canary.write_text("alive")

    def attempt(name, function, path=None, *, allowed=(), explained=EXPLAINED):
        TRIED[name] += 1
        started, value = time.process_time(), None
        _Watch.seen, _Watch.allowed = [], (os.path.realpath(tmp_path), *map(os.path.realpath, allowed))
        try:
            value = function()
            WORKED[name] += 1
        except explained as error:
            assert str(error), f"{type(error).__name__} without a word"
            assert path is None or str(path) in str(error), f"{path} is not named: {type(error).__name__}: {error}"
        finally:
            _Watch.allowed = None
        assert not _Watch.seen, _Watch.seen
        assert time.process_time() - started < SECONDS * (1 + FACTOR // 10)
        return value

    yield attempt
    assert canary.read_text() == "alive"


def pytest_terminal_summary(terminalreporter):
    if FACTOR > 1 and TRIED:
        terminalreporter.section("inputs tried: worked, refused")
        for name, tried in sorted(TRIED.items()):
            terminalreporter.line(f"{name}: {tried:,}: {WORKED[name]:,}, {tried - WORKED[name]:,}")
        terminalreporter.line(f"in all: {sum(TRIED.values()):,}")

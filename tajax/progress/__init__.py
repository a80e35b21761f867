"""What a person sees while a run goes on: all of its stages in a terminal, lines elsewhere, or nothing.

So a program says what it does::

    with progress.shown(quiet=False):
        progress.plan("title", "where", [progress.Stage("finetune"), progress.Stage("sweep")])
        with progress.stage("finetune", {"digits": 200, "signs": 200}) as running:
            for name in running.each(("digits", "signs"), name=str):
                progress.update(120, {"loss": 0.2})

`shown` decides for all that runs inside it; without it lines are printed. What is called here is about the stage that
is running, and there is one at a time. `state.py` has the state and the estimates, as plain values; `terminal.py` and
`lines.py` show them.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import TypeVar

from tajax.progress import state as plans
from tajax.progress.lines import LineDisplay
from tajax.progress.state import Stage
from tajax.progress.watch import Watch, printable

__all__ = [
    "LineDisplay",
    "Running",
    "Stage",
    "Watch",
    "advance",
    "counted",
    "expect",
    "finish",
    "note",
    "plan",
    "quiet",
    "resumed",
    "say",
    "shown",
    "stage",
    "update",
]

Thing = TypeVar("Thing")
_WHOLE = ""  # the item of a stage without items
_WATCH: contextvars.ContextVar[Watch] = contextvars.ContextVar("watch")


def _watch() -> Watch:
    try:
        return _WATCH.get()
    except LookupError:
        _WATCH.set(watch := Watch())
        return watch


@contextlib.contextmanager
def shown(*, quiet: bool = False) -> Iterator[Watch]:
    """Shows what runs within the block.

    In a terminal one display has all stages, and stays when they are done. Elsewhere, also with TERM=dumb, there are
    lines on standard error. What other code prints goes above the display, line by line; bars of downloads have one
    line in it.

    Args:
        quiet: nothing is shown, and nothing printed on standard output; of standard error all but bars remains.
    """
    watch = Watch(quiet=quiet)
    token = _WATCH.set(watch)
    try:
        with watch.shown():
            yield watch
    finally:
        _WATCH.reset(token)


def quiet() -> bool:
    """Whether nothing is to be shown."""
    return _watch().quiet


def plan(title: str, place: str, stages: Iterable[Stage], *, examples: str = "images") -> None:
    """A run begins: what it is, where it lives, and what it will do, in order; `examples` is what it does it with."""
    watch = _watch()
    named = (dataclasses.replace(s, title=s.title or s.name.replace("_", " "), examples=examples) for s in stages)
    watch.state = plans.Plan(printable(title), printable(place), tuple(named), watch.now())


def expect(work: Mapping[str, float]) -> None:
    """Units of stages that have not begun, by name, where they are known by now."""
    watch = _watch()
    waiting = [stage for stage in watch.state.stages if stage.name in work and stage.state == plans.WAITING]
    for stage in waiting:
        watch.state = plans.changed(watch.state, dataclasses.replace(stage, work=work[stage.name]))


class Running:
    """The stage that is running."""

    def __init__(self, watch: Watch):
        self._watch = watch

    def each(self, things: Iterable[Thing], name: Callable[[Thing], str] = attrgetter("name")) -> Iterator[Thing]:
        """The things, each of which is the current item until the next one is asked for."""
        for thing in things:
            self._watch.item(name(thing))
            yield thing
            self._watch.item_ended()

    def note(self, text: str) -> None:
        """Its key number, which is shown when it is done."""
        self._watch.note(text)


@contextlib.contextmanager
def stage(
    name: str, units: Mapping[str, float] | float = MappingProxyType({}), *, done: Collection[str] = ()
) -> Iterator[Running]:
    """A stage runs within the block.

    Args:
        name: one that `plan` was told of, or another, which is then the last.
        units: how much work each of its items is, by name; or how much it is, where it has no items.
        done: those items that an earlier process has done.
    """
    watch, running = _watch(), Running(_watch())
    items = units if isinstance(units, Mapping) else {_WHOLE: units}
    in_items = items is units
    watch.begin(name, items, done)
    try:
        if not in_items:
            watch.item(_WHOLE)
        yield running
        if not in_items:
            watch.item_ended()
    except BaseException:
        watch.end(plans.STOPPED)
        raise
    watch.end(plans.DONE)


def update(done: float, metrics: Mapping[str, float]) -> None:
    """So many units of the current item are done, those of earlier processes included; its latest numbers."""
    _watch().move(done, 0.0, _shown(metrics))


def resumed(done: float) -> None:
    """So many units of the current item were done by an earlier process."""
    _watch().resumed(done)


def advance(units: float) -> None:
    """So many more units of the current item are done."""
    _watch().move(None, units, None)


def note(metrics: Mapping[str, float]) -> None:
    """The latest numbers of the current item."""
    _watch().move(None, 0.0, _shown(metrics))


def counted(things: Iterable[Thing], units: float) -> Iterator[Thing]:
    """The things; each advances the current item by so many units when it has been dealt with."""
    for thing in things:
        yield thing
        advance(units)


def say(text: str) -> None:
    """A message about the run, unless it is quiet."""
    watch = _watch()
    watch.display.say(text)


def _shown(metrics: Mapping[str, float]) -> str:
    """Loss and accuracy alone, where they are known: a terminal of 80 columns has no room for more."""
    first = [name for name in ("loss", "top1") if name in metrics]
    small = {name for name in metrics if 0 < abs(metrics[name]) < 5e-4}  # would be written as 0.000
    return " ".join(f"{name} {metrics[name]:{'.0e' if name in small else '.3f'}}" for name in first or metrics)


def finish() -> None:
    """The run is done; what is printed from now on comes below its last state."""
    _watch().finish()

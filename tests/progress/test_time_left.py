"""How much time a run says it has left, and which rows of it are shown."""

import itertools

from tajax import progress
from tajax.progress import state as plans
from tajax.progress.state import Left, Plan, Stage, left


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_time_left_is_what_is_left_at_the_pace_of_the_same_kind():
    """Training takes 2 s a step after 30 s in the compiler, evaluation 0.1 s an image: from there on it is exact."""
    clock = Clock()
    watch = progress.Watch(quiet=True, now=clock)
    kinds = Stage("before", kind="forward"), Stage("train"), Stage("after", kind="forward", work=400)
    watch.state = Plan(stages=kinds)
    watch.begin("before", {"a": 200, "b": 200}, ())
    for name in "ab":
        watch.item(name)
        for _ in range(2):
            clock.seconds += 10
            watch.move(None, 100, None)
        watch.item_ended()
    watch.end(plans.DONE)
    assert left(watch.state, clock()) == Left(40.0, False)  # 400 images; of the training nobody knows
    watch.begin("train", {"a": 10, "b": 10}, ())
    watch.item("a")
    clock.seconds += 30
    watch.move(2, 0, None)
    assert left(watch.state, clock()) == Left(40.0, False)  # the first two steps waited for the compiler
    clock.seconds += 4
    watch.move(4, 0, None)
    assert left(watch.state, clock()) == Left(40.0 + 2 * 16, True)
    clock.seconds += 1  # it goes down while nothing is heard
    assert left(watch.state, clock()) == Left(40.0 + 2 * 16 - 1, True)


def test_what_an_earlier_process_did_is_done_and_tells_nothing_of_the_pace():
    clock = Clock()
    watch = progress.Watch(quiet=True, now=clock)
    watch.begin("train", {"a": 100, "b": 100}, ["a"])
    stage = watch.state.running
    assert (stage.done, stage.finished, stage.current) == (100, 1, None)
    watch.item("b")
    watch.resumed(60)
    assert left(watch.state, clock()) is None
    for done in (70, 80):
        clock.seconds += 5
        watch.move(done, 0, None)
    assert left(watch.state, clock()) == Left(10.0, True)  # 20 steps of 0.5 s


def test_numbers_that_come_before_an_item_is_done_tell_nothing_of_the_pace():
    clock = Clock()
    watch = progress.Watch(quiet=True, now=clock)
    watch.begin("maps", dict.fromkeys("abcd", 1), ())
    for expected, name in zip((None, Left(20.0, True), Left(10.0, True)), "abc", strict=True):
        watch.item(name)
        clock.seconds += 10
        watch.move(None, 0, "ξ 0.1")
        watch.item_ended()
        assert left(watch.state, clock()) == expected


def test_a_fold_shows_as_many_rows_as_there_is_room_for_and_the_current_one_among_them():
    for count, room in itertools.product(range(1, 30), range(1, 12)):
        for current in range(count):
            first, end = plans.window(count, current, room)
            folds = (first > 0) + (end < count) if room > 2 else 0
            assert first <= current < end and end - first + folds <= room
            assert end - first + folds == min(count, room) or room == 2

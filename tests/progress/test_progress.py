"""What a person sees of a run: on the screen of a terminal, in a log, and nothing where that is asked for."""

import contextlib
import io
import logging
import os
import pty
import sys
import threading
import time
import warnings

import pyte
import pytest
from rich.console import Console, ConsoleDimensions

from tajax import progress
from tajax.progress import state as plans
from tajax.progress.state import Plan, Stage
from tajax.progress.terminal import TerminalDisplay, drawing

TASKS = [f"task_{number:02}" for number in range(20)]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def declare(titles=("finetune", "sweep", "save")):
    progress.plan("task addition: attention", "runs/attn", [Stage(name, each=name == "finetune") for name in titles])


# Terminal


class Screen:
    """A terminal of so many lines and columns, and what is on it."""

    def __init__(self, rows, columns):
        self.master, slave = pty.openpty()
        self.file = open(slave, "w", buffering=1)
        self.screen, self.raw = pyte.HistoryScreen(columns, rows, history=1000), b""
        self.stream = pyte.ByteStream(self.screen)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        with contextlib.suppress(OSError):
            while data := os.read(self.master, 4096):
                self.raw += data
                self.stream.feed(data)

    def await_lines(self, holds):
        """What is there as soon as that holds of it; drawings come a few times a second."""
        until = time.monotonic() + 30
        while not holds(lines := [line.rstrip() for line in self.screen.display]):
            assert time.monotonic() < until, lines
            time.sleep(0.02)
        return lines

    def close(self):
        self.file.close()
        self.reader.join(10)
        os.close(self.master)

    def lines(self):
        """What was scrolled away and what is there, without empty lines at the end."""
        columns = range(self.screen.columns)
        gone = ["".join(line[column].data for column in columns) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in (*gone, *self.screen.display)).rstrip().split("\n")


@pytest.fixture
def terminal(monkeypatch):
    """`terminal(rows, columns)`: a screen that standard output and error go to within the block."""

    @contextlib.contextmanager
    def terminal(rows=24, columns=80, term="xterm", **environment):
        for name, value in {"TERM": term, "COLUMNS": str(columns), "LINES": str(rows), **environment}.items():
            monkeypatch.setenv(name, value)
        screen = Screen(rows, columns)
        with contextlib.redirect_stdout(screen.file), contextlib.redirect_stderr(screen.file):
            yield screen
        screen.close()

    return terminal


def train(tasks, pause=0.0):
    with progress.stage("finetune", dict.fromkeys(tasks, 10)) as running:
        for task in running.each(tasks, str):
            for step in (5, 10):
                time.sleep(pause)
                progress.update(step, {"grad_norm": 1.0, "loss": 0.25, "top1": 0.5})
            yield task
        running.note("mean train top1 0.500")


def test_the_last_state_stays_and_what_is_printed_afterwards_comes_below_it(terminal):
    with terminal() as screen:
        with progress.shown():
            declare()
            for _ in train(TASKS):
                pass
            with progress.stage("sweep", dict.fromkeys(TASKS, 1), done=TASKS):
                pass
            with progress.stage("save"):
                pass
            progress.finish()
            print("the tables")
    assert screen.lines() == [
        f"{'task addition: attention':<71}runs/attn",
        "✓ finetune 20/20 mean train top1 0.500                                      0:00",
        "✓ sweep    20/20                                                     done before",
        "✓ save                                                                      0:00",
        "done in 0:00",
        "the tables",
    ]
    assert not screen.screen.cursor.hidden


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (40, 120), (8, 40)])
def test_a_long_run_fits_on_the_screen_whatever_others_print(terminal, rows, columns):
    """Messages, warnings, log lines and bars of others: each drawing is whole, and no line of it is left behind."""
    logger, handler = logging.getLogger("of_others"), None
    with terminal(rows, columns) as screen:
        logger.addHandler(handler := logging.StreamHandler(sys.stderr))
        with progress.shown(), warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: sys.stderr.write(f"warned: {message}\n")
            declare()
            for number, task in enumerate(train(TASKS, pause=0.005)):
                print(f"said of {task}")
                if number == 10:
                    warnings.warn("beware", stacklevel=1)
                    logger.warning("logged")
                sys.stderr.write(f"\r{number * 5:3}%|bar of a download|")
                sys.stderr.flush()
                if number == 10:
                    during = screen.await_lines(lambda lines: any("50%|bar of" in line for line in lines))
            sys.stderr.write("\r100%|bar of a download|\n")
        logger.removeHandler(handler)
    assert sum("task addition" in line for line in during) == sum("bar of a download" in line for line in during) == 1
    assert any("finetune" in line for line in during) and any("task_10" in line for line in during)
    final = screen.lines()
    whole = "\n".join(final)
    assert [line for line in final if line.startswith("said of")] == [f"said of {task}" for task in TASKS]
    assert (whole.count("warned: beware"), whole.count("logged"), whole.count("bar of")) == (1, 1, 0)
    assert whole.count("task addition") == whole.count("elapsed") + whole.count("after") == 1


def test_a_message_leaves_no_line_of_a_drawing_that_another_thread_makes_meanwhile(terminal):
    """A taller drawing, begun after the message has measured the one before it and before it is written."""
    watch = progress.Watch(quiet=True)
    watch.begin("train", {"a": 10}, ())
    with terminal() as screen:
        display = TerminalDisplay(lambda: watch.state, watch.now)
        display.start()
        measured, others = display.live.process_renderables, []

        def meanwhile(renderables):
            made = measured(renderables)
            if threading.current_thread() is threading.main_thread() and not others:
                display.streams["stdout"].bar = "50%|a bar"
                others.append(threading.Thread(target=display.live.refresh))
                others[0].start()
                others[0].join(0.5)
            return made

        display.live.process_renderables = meanwhile
        display.say("a message")
        others[0].join(10)
        display.stop()
    whole = "\n".join(screen.lines())
    assert [whole.count(text) for text in ("a message", "elapsed", "a bar")] == [1, 1, 1], whole


def test_a_program_without_stages_draws_nothing(terminal):
    with terminal() as screen:
        with progress.shown():
            print("first")
            screen.await_lines(lambda lines: lines[0] == "first")
        print("second")
    assert screen.lines() == ["first", "second"]


def test_names_with_commands_for_terminals_are_shown_as_text(terminal):
    with terminal() as screen, progress.shown():
        declare()
        with progress.stage("finetune", {"\x1b[2Jgone": 1, "b": 1}) as running:
            for _ in running.each(["\x1b[2Jgone"], str):
                screen.await_lines(lambda lines: any("gone" in line for line in lines))
    assert b"[2J" not in screen.raw.replace("�[2Jgone".encode(), b"")


@pytest.mark.parametrize("error", [KeyboardInterrupt("asked to end"), ValueError("bad input")])
def test_a_run_that_is_stopped_leaves_the_terminal_in_order_and_the_message_below(terminal, error):
    with terminal() as screen:
        streams = sys.stdout, sys.stderr
        try:
            with progress.shown():
                declare()
                for _ in train(TASKS):
                    print("not finished", end="")
                    raise error
        except type(error) as stop:
            assert (sys.stdout, sys.stderr) == streams
            print(f"message: {stop}", file=sys.stderr)
    shown = screen.lines()
    assert shown[0] == "not finished" and shown[-2:] == ["stopped after 0:00", f"message: {error}"]
    assert any(line.startswith("✗ finetune") for line in shown)
    assert not screen.screen.cursor.hidden


def test_a_killed_process_leaves_the_cursor(terminal):
    """Whatever is drawn, the last word about the cursor is that it is visible."""
    with terminal() as screen, progress.shown():
        declare()
        for _ in train(TASKS[:2]):
            screen.await_lines(lambda lines: any("elapsed" in line for line in lines))
        raw = bytes(screen.raw)
    assert raw.count(b"\x1b[?25l") == raw.count(b"\x1b[?25h") == 1
    assert raw.index(b"\x1b[?25l") < raw.index(b"\x1b[?25h")


def test_output_that_was_sent_to_a_file_gets_there(terminal):
    file = io.StringIO()
    with terminal() as screen, contextlib.redirect_stdout(file), progress.shown():
        declare()
        print("a result")
        screen.await_lines(lambda lines: any("elapsed" in line for line in lines))
    assert file.getvalue() == "a result\n" and "a result" not in "\n".join(screen.lines())


def test_colours_are_left_out_where_nobody_wants_them(terminal):
    raws = []
    for environment in ({}, {"NO_COLOR": "1"}):
        with terminal(**environment) as screen, progress.shown():
            declare()
            for _ in train(TASKS[:2]):
                pass
        raws.append(screen.raw)
    assert b"\x1b[32m" in raws[0] and b"\x1b[32m" not in raws[1]


def test_a_drawing_has_no_more_lines_than_the_terminal():
    clock = Clock()
    watch = progress.Watch(quiet=True, now=clock)
    watch.state = Plan("title", "place", tuple(Stage(f"stage {n}", f"stage {n}", each=True) for n in range(12)))
    for rows in (6, 10, 24, 40):
        watch.state = plans.begun(watch.state, "stage 5", dict.fromkeys(TASKS, 1.0), frozenset(), 0.0)
        for task in TASKS[::6]:
            watch.item(task)
            console = Console(file=io.StringIO(), width=60, force_terminal=True)
            lines = console.render_lines(drawing(watch.state, 1.0, ConsoleDimensions(60, rows)), pad=False)
            text = ["".join(segment.text for segment in line).rstrip() for line in lines]
            assert len(text) < rows and any("stage 5" in line for line in text), (rows, text)
            watch.item_ended()


# Elsewhere


def test_lines_of_a_log(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in the logs of a continuous integration
    with progress.shown():
        declare()
        for _ in train(TASKS[:2]):
            pass
        progress.finish()
    assert capsys.readouterr().err.splitlines() == [
        "[1/3] finetune: task_00 (1/2)  loss 0.250 top1 0.500  0:00",
        "[1/3] finetune: task_01 (2/2)  loss 0.250 top1 0.500  0:00",
        "[1/3] finetune: 2/2  mean train top1 0.500  0:00",
        "done in 0:00: runs/attn",
    ]


def test_a_long_stage_says_now_and_then_how_it_is():
    clock, said = Clock(), []
    watch = progress.Watch(quiet=True, now=clock)
    watch.display = progress.LineDisplay(every=15.0, emit=said.append)
    watch.state = Plan(stages=(Stage("train", "train", images=32),))
    watch.begin("train", {"digits": 100}, ())
    watch.item("digits")
    for step in range(1, 41):
        clock.seconds += 1
        watch.move(step, 0, "loss 0.5")
    assert said == [
        "[1/1] train: digits 15/100  loss 0.5  32 images/s  1:25 left, 1:25 for all",
        "[1/1] train: digits 30/100  loss 0.5  32 images/s  1:10 left, 1:10 for all",
    ]


def test_a_dumb_terminal_gets_lines(terminal):
    with terminal(term="dumb") as screen, progress.shown():
        declare()
        for _ in train(TASKS[:2]):
            pass
    assert b"\x1b" not in screen.raw and "[1/3] finetune: 2/2" in screen.lines()[-1]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_quiet_leaves_warnings_and_errors(terminal, capsys, is_terminal):
    with contextlib.ExitStack() as stack:
        screen = stack.enter_context(terminal()) if is_terminal else None
        with progress.shown(quiet=True):
            declare()
            for _ in train(TASKS):
                print("a table")
                progress.say("a message")
                sys.stderr.write("\r 50%|bar|")
            progress.finish()
            print("more tables")
            print("careful", file=sys.stderr)
    if is_terminal:
        assert screen.lines() == ["careful"]
    else:
        assert tuple(capsys.readouterr()) == ("", "careful\n")


def test_without_a_display_there_are_lines(capsys):
    """As in a notebook that calls a part of a workflow by itself."""
    with progress.stage("some_stage", {"a": 1}) as running:
        assert list(running.each(["a"], str)) == ["a"]
    progress.advance(3)  # outside of a stage: nothing to advance
    assert "some stage: 1/1" in capsys.readouterr().err


def test_small_numbers_are_not_written_as_zero(capsys):
    with progress.shown():
        declare(("finetune",))
        with progress.stage("finetune", {"digits": 1}) as running:
            for _ in running.each(("digits",), str):
                progress.note({"λ": 1e-8, "val top1": 0.5, "none": 0.0})
    assert "digits (1/1)  λ 1e-08 val top1 0.500 none 0.000" in capsys.readouterr().err

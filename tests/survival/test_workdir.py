"""One process a workdir, and what the next one finds of those that were killed."""

import json
import os
import platform
import subprocess
import sys
import textwrap
import time

import pytest

from tajax import atomic
from tajax.workflows.workdir import OWNER, SILENCE, BusyDirectoryError, hold


def test_second_process_is_refused_by_name_and_touches_nothing(start, command, tmp_path):
    workdir = tmp_path / "run"
    with hold(workdir):
        before = {path.name: path.stat().st_mtime_ns for path in workdir.iterdir()}
        code, messages = start(command("attn", workdir, finetune__steps=1)).end()
        assert {path.name: path.stat().st_mtime_ns for path in workdir.iterdir()} == before
    assert code == 2
    assert f"{workdir} is in use by process {os.getpid()} on {platform.node()} since 20" in messages
    assert f"Wait for it, end it (kill {os.getpid()}), or choose another --workdir" in messages
    with hold(workdir):  # free again
        with pytest.raises(BusyDirectoryError), hold(workdir):
            pass
    assert not (workdir / OWNER).exists()


def leave_owner(workdir, *, silent, **about):
    known = {"pid": 1, "host": platform.node(), "since": "2026-01-01T00:00:00+00:00", "command": "tajax --config=a.py"}
    (workdir / OWNER).write_text(json.dumps(known | about))
    then = time.time() - silent
    os.utime(workdir / OWNER, (then, then))


def test_owner_that_died_on_this_host_is_replaced_at_once(tmp_path, capsys):
    leave_owner(tmp_path, silent=0)  # its number may be another's by now: only the lock counts
    with hold(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    assert "process 1 on" in capsys.readouterr().err


def test_owner_on_another_host_counts_as_long_as_it_gives_signs_of_life(tmp_path, capsys):
    leave_owner(tmp_path, silent=SILENCE / 2, host="elsewhere")
    message = r"process 1 on elsewhere since 2026.*end it there.* is 60 s old; .*or delete .*\.owner\.json"
    with pytest.raises(BusyDirectoryError, match=message), hold(tmp_path):
        pass
    leave_owner(tmp_path, silent=2 * SILENCE, host="elsewhere")
    with hold(tmp_path):
        pass
    assert "elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("there_before", "begun", "left"),
    [
        ((), (), set()),
        ((), ("config.json",), set()),
        ((), ("config.json", "results.jsonl"), {"runs", "runs/mine"}),
        (("runs",), (), {"runs"}),
        (("runs", "runs/mine"), (), {"runs", "runs/mine"}),
    ],
)
def test_a_refused_run_leaves_no_directory_that_it_made(there_before, begun, left, tmp_path):
    for place in there_before:
        (tmp_path / place).mkdir()
    workdir = tmp_path / "runs" / "mine"
    with pytest.raises(ValueError, match="refused"), hold(workdir):
        for name in begun:
            (workdir / name).touch()
        raise ValueError("refused")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_dir()} == left
    with hold(workdir):  # a lock that was removed is none
        assert (workdir / ".lock").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_torn_owner_stops_nobody(content, tmp_path):
    (tmp_path / OWNER).write_text(content)
    with hold(tmp_path):
        pass


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path, capsys):
    workdir = tmp_path / "run"
    (workdir / "task_vectors").mkdir(parents=True)
    kept = [workdir / "notes.txt", workdir / ".hidden", workdir / "task_vectors" / "pets.safetensors"]
    torn = [workdir / ".report.md.tmp-17", workdir / "task_vectors" / ".pets.safetensors.tmp-17"]
    for file in kept + torn:
        file.write_text("x")
    (workdir / ".merged.partial-17").mkdir()
    with hold(workdir):
        pass
    left = {path for path in workdir.rglob("*") if path.is_file()}
    assert left == {*kept, workdir / ".lock"}
    assert not (workdir / ".merged.partial-17").exists()
    assert capsys.readouterr().err.count("left half-written") == 3


@pytest.mark.parametrize("finished", [False, True])
def test_directory_that_was_being_replaced_is_put_back_if_its_successor_is_not_there(finished, tmp_path):
    (tmp_path / ".model.replaced-17").mkdir()
    (tmp_path / ".model.replaced-17" / "name").write_text("old")
    if finished:
        with atomic.directory(tmp_path / "model") as partial:
            (partial / "name").write_text("new")
    assert atomic.clean(tmp_path) == [".model.replaced-17"]
    assert (tmp_path / "model" / "name").read_text() == ("new" if finished else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


WAITING = """
    import os, signal, sys
    from tajax import interrupts
    try:
        with interrupts.handled(), interrupts.deferred():
            signal.raise_signal(signal.SIGTERM)
            if {second}:
                os.kill(os.getpid(), signal.SIGTERM)
                while True:  # as in a compiler: nothing here looks whether it should end
                    pass
    except KeyboardInterrupt as stop:
        sys.exit(interrupts.exit_code(stop))
"""


@pytest.mark.parametrize(("second", "code"), [(False, 75), (True, 143)])
def test_first_signal_waits_for_the_block_and_the_second_for_nothing(second, code):
    program = textwrap.dedent(WAITING.format(second=second))
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == code

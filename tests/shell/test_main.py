"""From a command line to a workflow: what is run where, and how bad input ends."""

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tajax import config as tc
from tajax import main as entry

ROOT = Path(__file__).parents[2]
ATTN = f"--config={ROOT / 'configs' / 'attn.py'}"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The calls that reach the task-addition workflow; the working directory is empty."""
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entry, "workflow", lambda name: lambda c, w, *, overwrite: calls.append((c, w, overwrite)))
    return calls


def run(*arguments):
    return entry.main(["tajax", *arguments])


def test_config_reaches_its_workflow(runs, tmp_path):
    assert run(ATTN, "--config.finetune.steps=10") == 0
    ((config, workdir, overwrite),) = runs
    assert (config.regime, config.finetune.steps, config.model) == ("attention", 10, "tiny")
    assert (workdir, overwrite) == (Path("runs/attn_tiny"), False)
    assert (tmp_path / "runs/attn_tiny").is_dir()


def test_workdir_and_overwrite(runs, tmp_path):
    assert run(f"{ATTN}:b16", "--overwrite") == 0
    assert run(ATTN, f"--workdir={tmp_path / 'mine'}") == 0
    assert [(workdir, overwrite) for _, workdir, overwrite in runs] == [
        (Path("runs/attn_b16"), True),
        (tmp_path / "mine", False),
    ]


def test_own_config_file_without_variant_gives_its_name_to_the_run(runs, tmp_path):
    (tmp_path / "mine.py").write_text("from tajax.config import default_config as get_config\n")
    assert run("--config=mine.py") == 0
    assert runs[0][1] == Path("runs/mine")


@pytest.mark.parametrize("name", tc.WORKFLOWS)
def test_every_workflow_can_be_run(name):
    parameters = inspect.signature(entry.workflow(name)).parameters
    assert list(parameters) == ["config", "workdir", "overwrite"]


def test_another_workflow_of_a_config_has_a_directory_of_its_own():
    plain, other = entry.parse(["tajax", ATTN])[1], entry.parse(["tajax", ATTN, "--config.workflow=single_task"])[1]
    assert (str(plain), str(other)) == ("runs/attn_tiny", "runs/attn_tiny_single_task")


BAD = {
    (): "no config given",
    (ATTN, "more"): "unexpected argument 'more'",
    ("--config=nofile.py",): "no config file 'nofile.py'",
    (ATTN + ":b31",): "unknown variant 'b31'. Did you mean 'b32'?",
    (ATTN, "--config.finetune.stps=1"): "unknown config field 'finetune.stps'. Did you mean 'finetune.steps'?",
    (ATTN, "--config.finetune.steps=many"): "--config.finetune.steps=many",
    (ATTN, "--config.regime=atention"): "unknown regime 'atention'. Did you mean 'attention'?",
    (ATTN, "--wrokdir=x"): "Unknown command line flag 'wrokdir'",
    (ATTN, "--workdir=file/inside"): "file",
}


@pytest.mark.parametrize(("arguments", "message"), BAD.items())
def test_bad_input_ends_in_one_message_and_code_2(runs, capsys, arguments, message, tmp_path):
    (tmp_path / "file").write_text("")  # a directory cannot be made inside it
    assert run(*arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not runs
    assert not (tmp_path / "runs").exists()  # nothing was begun


@pytest.mark.parametrize("error", [ValueError, TypeError, FileNotFoundError, PermissionError, FloatingPointError])
def test_error_of_a_workflow_is_a_message_and_with_debug_a_traceback(error, tmp_path, monkeypatch, capsys):
    def fail(config, workdir, *, overwrite):
        raise error("task 'digts' is unknown")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entry, "workflow", lambda name: fail)
    assert run(ATTN) == 2
    shown = capsys.readouterr().err
    assert f"{error.__name__}: task 'digts' is unknown" in shown
    assert "Traceback" not in shown
    assert run(ATTN, "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_defects_keep_their_traceback_and_interruptions_their_code(tmp_path, monkeypatch, capsys):
    def stop(config, workdir, *, overwrite):
        raise KeyboardInterrupt if overwrite else AssertionError("a defect")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entry, "workflow", lambda name: stop)
    with pytest.raises(AssertionError, match="a defect"):
        run(ATTN)
    assert run(ATTN, "--overwrite") == 130
    assert "goes on" in capsys.readouterr().err


def test_signals_have_codes_of_their_own_and_leave_no_handler_behind(tmp_path, monkeypatch, capsys):
    def stop(config, workdir, *, overwrite):
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entry, "workflow", lambda name: stop)
    assert run(ATTN) == 75
    assert "goes on" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert run("--help") == 0
    assert "75 (SIGTERM), 130 (Ctrl-C)" in capsys.readouterr().out


def test_command_helps_and_fails_with_its_codes(tmp_path):
    """One real process each: the module, from another directory."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for arguments, code, text in (["--help"], 0, "--config=configs/attn.py"), ([], 2, "no config given"):
        command = [sys.executable, "-m", "tajax.main", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert (done.returncode, text in done.stdout + done.stderr) == (code, True)


def test_entry_point_stays_short():
    assert len((ROOT / "tajax" / "main.py").read_text().splitlines()) < 100

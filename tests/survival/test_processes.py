"""Two processes with four devices each: one run, the same as of one process with eight; and they end together."""

import contextlib
import functools
import re
import signal
import socket
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags
from safetensors.numpy import load_file

from tajax import checkpoints, parallel, processes, results
from tajax.processes import ENDED_WITH_ANOTHER
from tests.survival.conftest import KILLED, assert_same, begin, measured, serving

STOPPED = 75
NUMBERS = {"loss", "grad_norm", "normalized_top1", "learning_rate"}  # what may differ in the order of sums


@pytest.fixture(scope="module")
def servers():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(serving()) for _ in range(2)]


@pytest.fixture
def both(servers, programs_on_disk, tmp_path):
    """`both(lines, *prepare)`: exit code and messages of two processes, each with its command line."""

    def both(lines, *prepare):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        others = [f"--coordinator=127.0.0.1:{port}", "--processes=2", "--patience=12"]
        begun = [
            begin(server, [*line, *others, f"--process={index}"], tmp_path / f"{index}.txt", programs_on_disk, 4, how)
            for index, (server, line, how) in enumerate(zip(servers, lines, prepare or ({}, {}), strict=True))
        ]
        return [process.end() for process in begun]

    return both


@pytest.fixture
def lines(command, tmp_path):
    """The command lines of a run in `tmp_path / name`; the second process has a directory of its own."""

    def lines(name, **fields):
        chosen = {"workflow": "single_task", "tasks": command.one_task, "heads": "linear_probe"} | fields
        return [command("linear_attn", place, **chosen) for place in (tmp_path / name, tmp_path / "other")]

    return lines


def assert_done(ended):
    assert [code for code, _ in ended] == [0, 0], ended


def test_two_processes_do_what_one_does(both, start, command, tmp_path):
    """Every count to the last image; sums up to their order; only the first of the two writes.

    AdamW divides each gradient by its own size: where it is nothing but rounding, as in the key biases, to which
    attention is blind, another order of sums gives steps of full size in another direction. So vectors are compared
    as a whole here, and element by element under plain descent in tests/parallel/test_parallel.py.
    """
    alone, together, other = (tmp_path / name for name in ("alone", "together", "other"))
    assert_done(both([command("standard", place, workflow="task_addition") for place in (together, other)]))
    assert start(command("standard", alone, workflow="task_addition"), devices=8).end()[0] == 0
    assert not other.exists()
    runs = [results.find(results.read(place / "results.jsonl"), stage="run") for place in (alone, together)]
    assert [(run["device_count"], run["processes"]) for (run,) in runs] == [(8, 1), (8, 2)]
    for want, got in zip(measured(alone), measured(together), strict=True):
        assert want.keys() == got.keys()
        for name in want:
            if name in NUMBERS:
                np.testing.assert_allclose(got[name], want[name], rtol=1e-3, err_msg=f"{name} of {want}")
            else:
                assert got[name] == want[name], (name, want)
    files = {str(path.relative_to(alone)) for path in alone.rglob("*")}
    assert files == {str(path.relative_to(together)) for path in together.rglob("*")}
    for name in sorted(file for file in files if file.startswith("task_vectors/")):
        want, got = (np.concatenate([v.ravel() for v in load_file(run / name).values()]) for run in (alone, together))
        assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want), name


def test_two_processes_train_the_entries_that_the_first_has_chosen(both, start, command, tmp_path):
    alone, together, other = (tmp_path / name for name in ("alone", "together", "other"))
    fields = {"workflow": "single_task", "tasks": command.one_task, "regime": "talos", "finetune__scored": 8}
    assert_done(both([command("standard", place, **fields) for place in (together, other)]))
    assert start(command("standard", alone, **fields)).end()[0] == 0
    assert not other.exists()
    one, two = (load_file(place / "task_vectors" / "pets.safetensors") for place in (alone, together))
    assert one.keys() == two.keys() and any(name.endswith("#entries") for name in one)
    same = [np.array_equal(one[name], two[name]) for name in one if name.endswith("#entries")]
    assert all(same), same


def test_one_stopped_or_killed_ends_both_and_the_last_two_finish_with_the_same_bits(both, lines, tmp_path):
    """Asked to end, they stop after the same step; killed, the other says why it ends. Nothing kept is lost.

    The two share one copy of the parameters, which neither could write alone.
    """
    lines = functools.partial(lines, regime="linear", placement="fsdp", fsdp=8)
    run, whole = tmp_path / "run", tmp_path / "whole"
    stop = {"signal_at_step": {"step": 2, "number": signal.SIGTERM}}
    ended = both(lines("run", finetune__checkpoint_every=100), {}, stop)
    assert [code for code, _ in ended] == [STOPPED, STOPPED], ended
    assert checkpoints.latest(run / "checkpoints" / "pets") == 4  # noticed two steps later
    for victim in (0, 1):
        how = [{}, {}]
        how[victim] = {"signal_at_step": {"step": 1, "number": signal.SIGKILL}}
        ended = both(lines("run"), *how)
        (killed, _), (left, messages) = ended[victim], ended[1 - victim]
        assert (killed, left) == (KILLED, ENDED_WITH_ANOTHER), ended
        assert "nother" in messages or "distributed service detected fatal errors" in messages
    assert_done(both(lines("run")))
    assert_done(both(lines("whole")))
    assert_same(run, whole)


def test_one_asked_to_end_outside_training_ends_both_at_once(both, lines):
    """There is nothing to keep that is not on disk already."""
    stop = {"signal_at_record": {"count": 2, "number": signal.SIGTERM}}
    (first, messages), (second, _) = both(lines("run"), {}, stop)
    assert (first, second) == (STOPPED, STOPPED), messages
    assert "process 1 was asked to end (ended by SIGTERM); so does this one." in messages


def test_what_ends_the_first_is_told_by_the_others(both, lines, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.jsonl").touch()
    (first, _), (second, messages) = both(lines("run"))
    assert (first, second) == (2, ENDED_WITH_ANOTHER)
    assert "process 0 has ended with code 2: FileExistsError" in messages
    assert "holds results without a config.json" in messages


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--coordinator=host:1"], "--processes and --process missing: --coordinator, --processes and --process go"),
        (
            ["--coordinator=host:1", "--processes=2", "--process=2"],
            "--process=2 is none of the 2 processes; choose 0 to 1",
        ),
        (["--coordinator=host", "--processes=2", "--process=1"], "--coordinator=host has no port; write HOST:PORT."),
    ],
)
def test_flags_that_describe_no_group_are_refused(given, message):
    values = processes.define_flags(flags.FlagValues())
    values(["tajax", *given])
    with pytest.raises(ValueError, match=re.escape(message)):
        processes.join(values)
    assert not processes.joined()


def owned(*counts):
    """Devices of processes that have so many each, as JAX lists them on some topologies."""
    devices = [SimpleNamespace(process_index=i, id=10 * i + k) for i, count in enumerate(counts) for k in range(count)]
    return devices[::2] + devices[1::2]


def test_devices_come_process_after_process_as_many_of_each(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: owned(4, 4))
    monkeypatch.setattr(jax, "local_devices", lambda: owned(4))
    assert [device.id for device in parallel.devices_of_all()] == [0, 1, 2, 3, 10, 11, 12, 13]
    assert [device.id for device in parallel.devices_of_all(1)] == [0, 10]
    monkeypatch.setattr(jax, "devices", lambda: owned(4, 2))
    with pytest.raises(ValueError, match=r"process 0: 4, process 1: 2\).* 2 of each"):
        parallel.devices_of_all()


def test_batches_that_several_processes_cannot_divide_are_refused():
    parallel.Replicated(owned(8)).check_batch_size(12, what="one process pads")
    parallel.Replicated(owned(4, 4)).check_batch_size(16, what="equal parts")
    with pytest.raises(
        ValueError, match=r"finetune\.batch_size is 12, which the 8 devices of 2 processes do not.* 8 or 16"
    ):
        parallel.Replicated(owned(4, 4)).check_batch_size(12, what="config.finetune.batch_size")

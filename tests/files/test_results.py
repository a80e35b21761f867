"""The record of a run: what is appended is what is read, whatever happened in between."""

import datetime
import errno
import json
import math
import multiprocessing
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tajax import results
from tajax.records import NegationSweep

BASE = {"stage": "single_task", "config_hash": "0123456789ab"}


pytestmark = pytest.mark.filterwarnings("ignore:.*fork")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "results.jsonl"


def test_round_trip_in_order(log):
    records = [BASE | {"task": f"tâche {n}", "top1": n / 3, "none": None, "list": [1, {"a": True}]} for n in range(3)]
    for record in records:
        results.append(log, record)
    assert results.read(log) == records
    assert len(log.read_text().splitlines()) == 3


def test_no_file_means_no_records(log):
    assert results.read(log) == []


def test_numbers_of_numpy_and_jax_become_plain(log):
    results.append(
        log,
        BASE
        | {
            "a": np.float32(0.5),
            "b": jnp.asarray(0.25),
            "c": np.int64(3),
            "d": np.bool_(True),
            "e": np.arange(3),
            "f": (1, 2),
            "g": Path("x/y"),
            "h": {"i": jnp.arange(2)},
        },
    )
    (record,) = results.read(log)
    assert [record[k] for k in "abcdefg"] == [0.5, 0.25, 3, True, [0, 1, 2], [1, 2], "x/y"]
    assert record["h"] == {"i": [0, 1]}
    assert [type(record[k]) for k in "abcd"] == [float, float, int, bool]


@pytest.mark.parametrize("number", [math.nan, math.inf, np.float32("nan"), jnp.asarray([1.0, -math.inf])])
def test_what_is_not_finite_is_refused_by_name(log, number):
    with pytest.raises(ValueError, match=r"\['metrics'\]\['loss'\].*(nan|inf)"):
        results.append(log, BASE | {"metrics": {"loss": number}})
    assert not log.exists()


def test_what_json_cannot_hold_is_refused_by_name(log):
    with pytest.raises(TypeError, match=r"record\['x'\] is a set"):
        results.append(log, BASE | {"x": {1}})
    with pytest.raises(TypeError, match=r"record\['x'\] has the key 3"):
        results.append(log, BASE | {"x": {3: 1}})


def test_a_record_must_name_its_config(log):
    with pytest.raises(ValueError, match="no 'config_hash'"):
        results.append(log, {"stage": "zero_shot", "top1": 0.5})


@pytest.mark.parametrize("tail", ['{"stage": "si', '{"stage": "single_task", "config_hash": "0"}', '{"é'])
def test_torn_last_line_is_passed_over_then_removed(log, tail):
    """Whatever was cut off, even just the end of the line, never glues itself to the next record."""
    results.append(log, BASE | {"n": 1})
    with log.open("ab") as file:
        file.write(tail.encode()[:-1] if tail.endswith("é") else tail.encode())
    assert [r["n"] for r in results.read(log)] == [1]
    results.append(log, BASE | {"n": 2})
    assert [r["n"] for r in results.read(log)] == [1, 2]
    assert all(json.loads(line) for line in log.read_text().splitlines())


def test_torn_line_longer_than_a_block_or_alone(log):
    log.write_text("x" * 10_000)
    results.append(log, BASE | {"n": 1})
    with log.open("a") as file:
        file.write("y" * 10_000)
    results.append(log, BASE | {"n": 2})
    assert [r["n"] for r in results.read(log)] == [1, 2]


def append_many(log, writer):
    for number in range(100):
        results.append(log, BASE | {"writer": writer, "number": number, "long": "x" * 5000})


def test_two_writers_lose_nothing(log):
    processes = [multiprocessing.get_context("fork").Process(target=append_many, args=(log, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    records = results.read(log)
    for name in "ab":
        assert [r["number"] for r in results.find(records, writer=name)] == list(range(100))


def test_line_that_a_full_disk_cuts_off_is_removed_by_the_next(log, monkeypatch):
    results.append(log, BASE | {"n": 1})
    write, room = os.write, [20]

    def full(descriptor, content):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[: room.pop()])

    with monkeypatch.context() as patch:
        patch.setattr(results.os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            results.append(log, BASE | {"n": 2})
    assert [r["n"] for r in results.read(log)] == [1]
    results.append(log, BASE | {"n": 3})
    assert [r["n"] for r in results.read(log)] == [1, 3]


@pytest.mark.parametrize("line", ["{broken", "[1]"])
def test_damage_elsewhere_is_named(log, line):
    results.append(log, BASE)
    log.write_text(log.read_text() + line + "\n")
    results.append(log, BASE)
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2 is not"):
        results.read(log)


def test_find_wants_every_field_and_tells_missing_from_none():
    records = [{"a": 1, "b": 2}, {"a": 1}, {"a": 1, "b": None}]
    assert results.find(records, a=1, b=2) == records[:1]
    assert results.find(records, b=None) == records[2:]
    assert results.find(records) == records


def test_a_program_of_the_checkout_is_named_by_its_path_there(monkeypatch):
    root = Path(results.__file__).parents[1]
    monkeypatch.setattr("sys.argv", [str(root / "experiments" / "play" / "run.py"), "--seeds", "0 1"])
    assert results.origin()["command"] == "experiments/play/run.py --seeds '0 1'"
    monkeypatch.setattr("sys.argv", ["/elsewhere/run.py"])
    assert results.origin()["command"] == "/elsewhere/run.py"


def test_provenance_can_be_recorded_and_names_versions_and_device(log):
    results.append(log, BASE | results.provenance())
    (record,) = results.read(log)
    assert {"tajax", "python", "jax", "flax", "numpy"} <= set(record["versions"])
    assert record["device_count"] >= 1
    assert record["device_kind"]
    assert abs(datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(record["time"])).seconds < 60


def test_a_type_of_records_finds_those_of_its_stage_alone():
    made = [{"stage": "sweep", "task": "digits"}, {"stage": "negation_sweep", "task": "digits"}, {"task": "digits"}]
    assert results.find(made, NegationSweep, task="digits") == made[1:2]
    assert results.find(made, NegationSweep, task="signs") == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a core")
def test_cores_are_those_that_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert results.provenance()["cpu_count"] == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert results.provenance()["cpu_count"] == len(allowed)

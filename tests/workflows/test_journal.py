"""The loop of every workflow: what is recorded is not done again, whatever stopped the process before."""

from types import SimpleNamespace

import pytest

from tajax import progress, results
from tajax.records import Disentanglement, Sweep
from tajax.workflows.journal import Journal

ORIGIN = {"config_hash": "0123456789ab"}
TASKS = [SimpleNamespace(name="digits"), SimpleNamespace(name="signs")]
GRID = (0, 0.5, 1.0)


def key(task):
    return {"task": task.name, "scaling_coef": GRID}


def points(path):
    return [(r["task"], r["scaling_coef"]) for r in results.find(results.read(path), stage="sweep", **ORIGIN)]


def test_each_goes_on_after_whatever_stopped_it_and_repeats_nothing(tmp_path):
    path = tmp_path / "results.jsonl"
    results.append(path, {"stage": "sweep", "task": "digits", "scaling_coef": 1.0, "config_hash": "another"})
    for lost in range(1, 7):  # each process makes one record more than the one before, and is stopped
        journal, made = Journal(path, ORIGIN), 0
        with progress.shown(quiet=True) as watch, pytest.raises(KeyboardInterrupt):
            for _, missing in journal.each(Sweep, TASKS, key):
                for one in missing:
                    if made:
                        raise KeyboardInterrupt
                    journal.record(Sweep, **one)
                    made += 1
            raise KeyboardInterrupt  # after the last
        assert len(points(path)) == lost and watch.state.running is None
    assert points(path) == [(task.name, coef) for task in TASKS for coef in GRID]
    assert list(Journal(path, ORIGIN).each(Sweep, TASKS, key)) == []


def test_a_journal_knows_what_it_recorded_as_the_file_has_it(tmp_path):
    journal = Journal(tmp_path / "results.jsonl", ORIGIN)
    journal.record(Disentanglement, tasks=("digits", "signs"), coefs=(0.5, 1.0))
    assert journal.find(Disentanglement) == results.find(results.read(journal.path), stage="disentanglement")
    assert not journal.missing(Disentanglement, {"tasks": ["digits", "signs"]})
    assert journal.missing(Disentanglement, {"tasks": ["signs", "digits"]})


def test_a_record_that_cannot_be_written_is_not_known(tmp_path):
    journal = Journal(tmp_path / "results.jsonl", ORIGIN)
    with pytest.raises(ValueError, match="not a result"):
        journal.record(Sweep, task="digits", top1=float("nan"))
    assert not journal.find(Sweep)


def test_a_damaged_file_is_refused_when_a_process_begins(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"stage": \n{"stage": "sweep"}\n')
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        Journal(tmp_path / "results.jsonl", ORIGIN)

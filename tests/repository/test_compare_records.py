"""Two runs are told apart by every number, and by nothing that only says when and where they were made."""

import json

import pytest

from experiments.compare_records import main

RUN = {"stage": "run", "config_hash": "a", "time": "12:00", "command": "tajax", "git_revision": "1", "versions": {}}
SWEEP = {"stage": "sweep", "config_hash": "a", "task": "digits", "scaling_coef": 0.5, "top1": 0.75}
SWEEP |= {"elapsed_seconds": 3.0}


@pytest.fixture
def compare(tmp_path, capsys):
    def compare(before, after):
        for name, records in (("before", before), ("after", after)):
            (tmp_path / name).mkdir()
            lines = (json.dumps(record) + "\n" for record in records)
            (tmp_path / name / "results.jsonl").write_text("".join(lines))
        code = main([str(tmp_path / "before"), str(tmp_path / "after" / "results.jsonl")])  # a workdir, and a file
        return code, capsys.readouterr().out

    return compare


def test_the_same_numbers_at_another_time_are_the_same(compare):
    later = {"elapsed_seconds": 9.0}, {"time": "13:00", "command": "python -m tajax.main", "git_revision": "2"}
    assert compare([RUN, SWEEP], [RUN | later[1], SWEEP | later[0]])[0] == 0


@pytest.mark.parametrize(
    "after, told",
    [
        ([RUN, SWEEP | {"top1": 0.7500001}], "record 2 (sweep digits): top1 0.75 → 0.7500001"),
        ([RUN], "record 2 (sweep digits): top1 0.75 → absent"),
        ([RUN, SWEEP, SWEEP], "record 3 (sweep digits): top1 absent → 0.75"),
        ([RUN, SWEEP | {"normalized_top1": None}], "record 2 (sweep digits): normalized_top1 absent → None"),
        ([SWEEP, RUN], "record 1 (run): task absent → digits"),
    ],
)
def test_what_differs_is_named(compare, after, told):
    code, out = compare([RUN, SWEEP], after)
    assert code == 1 and told in out.splitlines()


def test_a_run_that_is_not_there_is_no_run_without_differences(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert "results.jsonl is absent or empty" in capsys.readouterr().err

"""The share of sweeps in which a search ends at the grid's α, on sweeps whose end is known."""

import json

import pytest

from experiments.benchmarks.search_over_alpha import main

GRID = [round(0.05 * k, 2) for k in range(21)]


def file_of(path, curve, *, name, together=False, **addition):
    """The records of a run of one task whose validation accuracy is `curve(α)`."""
    place = {"config_hash": name, "task": "digits", "split": "val"}
    records = [
        place | {"stage": "single_task", "top1": 1.0},
        place | {"stage": "task_addition", "top1": 0.5} | addition,
    ]
    if together:
        records.append(place | {"stage": "sweep", "scaling_coef": GRID, "top1": [curve(coef) for coef in GRID]})
    else:
        records += [place | {"stage": "sweep", "scaling_coef": coef, "top1": curve(coef)} for coef in GRID]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_what_is_found_and_what_is_not_is_counted(tmp_path, capsys):
    hill = file_of(tmp_path / "hill", lambda coef: 1 - abs(coef - 0.55), name="a")
    kept = file_of(tmp_path / "kept", lambda coef: 1 - abs(coef - 0.3), name="b", together=True)
    hidden = file_of(tmp_path / "hidden", lambda coef: 0.9 if coef == 0.05 else 0.5 - abs(coef - 0.8) / 10, name="c")
    short = file_of(tmp_path / "short", lambda coef: coef, name="d", search="coarse_to_fine")
    main([hill, kept, hidden, short])
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"{hidden}: α = 0.8 in place of 0.05, 40.00 points less"
    assert last.startswith("the α of the grid in 2 of 3 sweeps, with ") and last.endswith(" of 21.0 points")


def test_records_without_a_sweep_are_refused(tmp_path, capsys):
    (tmp_path / "none").write_text("")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none")])
    assert "no whole sweep" in capsys.readouterr().err

"""The table of local energies says what the records say, a row for each task and a table for each kernel."""

from tajax import report

BASE = {"config_hash": "0123456789ab", "seed": 1, "regime": "attention", "model": "tiny", "stage": "ntk"}
SETTING = {"control": "objects", "output": "trace", "directions": 8, "initialization": "random", "images": 4}


def records(kernels):
    made = []
    for task, shift in (("cars", 0.0), ("dtd", 0.2)):
        for kernel in kernels:
            place = BASE | SETTING | {"task": task, "kernel": kernel, "split": "test", "eigenvalues": [2.0, 1.0]}
            energies = {"energy_new": [1.0, 2.0], "energy_new_control": [0.5, 0.5, 0.0, 1.0]}
            shares = {"share": 0.7 + shift, "reverse_share": 0.4, "separation": 0.8}
            made.append(place | energies | shares | {"reading": "nystrom"})
            contrast = {"contrast": 0.5, "chance": 0.1, "excess": 0.44 + shift}
            made.append(place | contrast | {"reading": "mixture", "share": 0.3})
    return made


def test_energies_are_means_over_images_and_both_readings_share_a_row():
    plain, cosine = report.ntk.tables(records(["plain", "cosine"]))
    assert "k(x, x′) / √" in cosine.title and "√" not in plain.title
    assert plain.columns == (
        *("task", "new", "control", "share", "reverse", "separation"),
        *("mixture share", "contrast", "chance", "excess"),
    )
    assert plain.rows[0] == ("cars", "1.50", "0.50", "0.70", "0.40", "0.80", "0.30", "0.50", "0.10", "0.44")
    assert (plain.rows[-1][0], plain.rows[-1][3], plain.rows[-1][-1]) == ("mean", "0.80", "0.54")
    notes = " ".join(plain.notes)
    assert "8 random directions" in notes and "Random weights" in notes and "Local energy of 2 leading" in notes


def test_a_task_whose_run_was_interrupted_has_dashes():
    (table,) = report.ntk.tables(records(["plain"])[:3])
    assert table.rows[1] == ("dtd", "1.50", "0.50", "0.90", "0.40", "0.80", "–", "–", "–", "–")
    assert table.rows[-1][-1] == "0.44"  # of those measured
    assert report.ntk.tables([]) == []


def test_energies_that_an_earlier_version_did_not_record_are_dashes():
    made = [{k: v for k, v in record.items() if not k.startswith("energy_")} for record in records(["plain"])]
    (table,) = report.ntk.tables(made)
    assert table.rows[0][:4] == ("cars", "–", "–", "0.70")

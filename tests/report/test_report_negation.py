"""Tables of negation and analogy say what the records say, and what a reader would otherwise overlook."""

import statistics

from tajax import report

BASE = {"config_hash": "0123456789ab", "seed": 2, "regime": "attention", "model": "tiny"}
BEFORE, AFTER, CONTROL = (0.9, 0.7, 0.5), (0.1, 0.3, 0.4), (0.57, 0.58, 0.6)
TASKS = ("cars", "dtd", "mnist")
COEFS = (2.0, 0.4, 0.0)


def negation(split="test"):
    made = [BASE | {"stage": "control", "task": "imagenet", "split": split, "top1": 0.6}]
    for index, task in enumerate(TASKS):
        place = BASE | {"task": task, "split": split}
        made.append(place | {"stage": "zero_shot", "top1": BEFORE[index]})
        choice = {"scaling_coef": COEFS[index], "satisfied": index != 1, "at_end": index < 2}
        values = {"top1": AFTER[index], "control_top1": CONTROL[index], "control": "imagenet"}
        made.append(place | choice | values | {"stage": "task_negation", "control_required": 0.57})
        for on, coef in ((task, 0.4), ("imagenet", 0.4)):
            top1 = AFTER[index] if on == task else CONTROL[index]
            point = {"stage": "negation_sweep", "measured_on": on, "scaling_coef": coef, "top1": top1}
            made.append(BASE | {"task": task, "split": "val"} | point)
    return made


def test_rows_means_and_what_to_know_about_them():
    (table,) = report.negation.tables(negation())
    assert table.columns[:5] == ("task", "α", "test before", "test after", "test control")
    assert [row[:5] for row in table.rows] == [
        ("cars", "2", "90.0", "10.0", "57.0"),
        ("dtd", "0.4 !", "70.0", "30.0", "58.0"),
        ("mnist", "0", "50.0", "40.0", "60.0"),
        ("mean", "0.80", "70.0", "26.7", "58.3"),
    ]
    _, first, *rest = table.notes
    assert "imagenet: test 60.0 before" in first and "57.0" in first
    assert [note[:25] for note in rest] == [
        "! no α of the grid keeps the control for dtd: the nearest miss is shown."[:25],
        "α is the end of the grid for cars"[:25],
        "α is 0 for mnist: no step"[:25],
    ]
    assert "for cars:" in rest[1]  # not dtd, whose α is no optimum


def test_curves_are_means_over_tasks_apart_for_task_and_control():
    (table,) = report.negation.curves(negation())
    assert table.rows == (("0.4", f"{100 * statistics.fmean(AFTER):.1f}", f"{100 * statistics.fmean(CONTROL):.1f}"),)


def test_analogy_stands_between_what_it_is_compared_with():
    made = []
    for split, shift in (("val", 0.0), ("test", 0.05)):
        place = BASE | {"split": split}
        for index, task in enumerate("abcd"):
            made.append(place | {"stage": "zero_shot", "task": task, "top1": 0.1 * index + shift})
            made.append(place | {"stage": "single_task", "task": task, "top1": 0.5 + 0.1 * index + shift})
        for vector, top1, coef in (("analogy", 0.6, 0.4), ("c_alone", 0.5, 0.35)):
            found = {"stage": "task_analogy", "task": "d", "vector": vector, "top1": top1 + shift, "scaling_coef": coef}
            made.append(place | found)
    (table,) = report.negation.tables(made)
    assert table.columns == ("θ₀ + ατ, τ of", "α", "test", "val")
    assert table.rows == (
        ("zero-shot", "–", "35.0", "30.0"),
        ("c alone", "0.35", "55.0", "50.0"),
        ("c + (b − a)", "0.4", "65.0", "60.0"),
        ("fine-tuned on d", "–", "85.0", "80.0"),
    )


def test_other_runs_have_no_such_table():
    assert not report.negation.tables([BASE | {"stage": "zero_shot", "task": "cars", "split": "test", "top1": 0.5}])

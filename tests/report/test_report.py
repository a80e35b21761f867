"""Tables say what the records say, in plain text that fits and in Markdown."""

import io
import statistics
from pathlib import Path

import pytest

from tajax import report, results
from tajax.questions import QUESTIONS, Question
from tajax.report import accuracy, latex, sections
from tajax.report.runs import Run
from tajax.report.tables import Number, Table, with_best

TASKS = ("shapes", "colors", "visual_domain_decathlon/gtsrb")


def records(*, seed=0, regime="attention", merged=0.6, config_hash="0123456789ab"):
    base = {"config_hash": config_hash, "seed": seed, "regime": regime, "model": "openai/clip-vit-base-patch32"}
    made = [base | {"stage": "run", "trained_parameters": 250, "total_parameters": 1000, "elapsed_seconds": 1.0}]
    for index, task in enumerate(TASKS):
        for split in ("val", "test"):
            place = base | {"task": task, "split": split, "elapsed_seconds": 2.0 + index}
            single = 0.8 + 0.05 * index
            made.append(place | {"stage": "zero_shot", "top1": 0.3 + 0.1 * index})
            made.append(place | {"stage": "single_task", "top1": single})
            addition = {"top1": merged, "normalized_top1": merged / single, "scaling_coef": 0.35}
            made.append(place | {"stage": "task_addition"} | addition)
        for coef in (1.0, 0.0, 0.35):
            made.append(base | {"stage": "sweep", "task": task, "split": "val", "scaling_coef": coef, "top1": merged})
    return made


@pytest.fixture
def workdir(tmp_path):
    for record in records():
        results.append(tmp_path / "results.jsonl", record)
    return tmp_path


def test_every_number_and_the_means(workdir):
    """By hand: 0.6 over 0.8, 0.85 and 0.9; the mean of the ratios, not the ratio of the means (70.6)."""
    (table,) = accuracy.accuracy_tables(records())
    assert table.columns[:5] == ("task", "test zero-shot", "test fine-tuned", "test merged", "test normalised")
    assert table.rows[0][1:5] == ("30.0", "80.0", "60.0", "75.0")
    assert [row[0] for row in table.rows] == [*TASKS, "mean"]
    assert table.rows[-1][1:5] == ("40.0", "85.0", "60.0", "70.8")
    assert table.rows[-1][1:5] == table.rows[-1][5:]  # the records of both splits are equal here
    assert any("0.35" in note for note in table.notes)
    assert any("250 of 1,000" in note and "25.0%" in note for note in table.notes)


@pytest.mark.parametrize(
    ("vectors", "said"),
    [("trained", "Trained: "), ("reused", "Moved by reused vectors: "), ("none", "In the kernel: ")],
)
def test_parameters_are_said_to_be_trained_where_they_were(vectors, said):
    made = records()
    made[0] |= {"vectors": vectors}
    (table,) = accuracy.accuracy_tables(made)
    assert f"{said}250 of 1,000 parameters of the encoder (25.0%)." in table.notes
    earlier = [made[0] | {"stage": "finetune", "step": 1}, *records()]  # before the record said it
    assert any("Trained: 250" in note for note in accuracy.accuracy_tables(earlier)[0].notes)
    assert not any("Trained" in note for note in accuracy.accuracy_tables(records())[0].notes)


def test_an_exact_coefficient_comes_with_the_interval_it_is_the_middle_of():
    optimum = {"stage": "exact_scaling_coef", "scaling_coef": 0.35, "lower": 0.34, "upper": 0.36, "value": 0.7}
    (table,) = accuracy.accuracy_tables([*records(), records()[0] | optimum])
    assert any("0.35" in note and "the best there is, as is all of 0.34–0.36" in note for note in table.notes)


def test_a_ratio_that_there_is_not_is_a_dash_and_said():
    """Of the mean, too: over some of the tasks it would pass for the mean."""
    made = records()
    for record in made:
        if record["stage"] == "single_task" and record["task"] == "colors":
            record |= {"top1": 0.0, "count": 50}
        elif record["stage"] == "task_addition" and record["task"] == "colors":
            record["normalized_top1"] = None
    (table,) = accuracy.accuracy_tables(made)
    assert [row[4] for row in table.rows] == ["75.0", "–", "66.7", "–"]
    assert "colors: the fine-tuned model is right on none of the 50 val images" in "\n".join(table.notes)
    assert "α is tuned on the other tasks, without colors." in table.notes
    assert report.comparison(made).rows[0][1:5] == ("40.0", "56.7", "60.0", "–")


def test_plain_text_fits_and_holds_no_control_characters(workdir):
    out = io.StringIO()
    report.write(workdir, file=out)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    for word in (*TASKS[:2], "mean", "zero-shot", "70.8"):
        assert word in text


def test_markdown_holds_the_table_and_the_sweep(workdir):
    report.write(workdir, file=io.StringIO())
    text = (workdir / "report.md").read_text()
    assert "| shapes | 30.0 | 80.0 | 60.0 | 75.0 |" in text
    coefs = [
        line.split("|")[1].strip()
        for line in text.split("## Accuracy at each")[1].splitlines()
        if line.startswith("| ")
    ]
    assert coefs[2:] == ["0", "0.35", "1"]
    widths = {line.count("|") for line in text.split("##")[1].splitlines() if line.startswith("|")}
    assert widths == {10}


def test_unfinished_run_shows_what_there_is(tmp_path):
    partial = [
        r for r in records() if r["stage"] == "zero_shot" and r["task"] != "colors" or r["stage"] == "single_task"
    ]
    (table,) = accuracy.accuracy_tables(partial)
    assert table.columns == ("task", "test zero-shot", "test fine-tuned", "val zero-shot", "val fine-tuned")
    assert table.rows[[r[0] for r in table.rows].index("colors")][1] == "–"
    assert table.rows[-1][1] == "–"  # a mean over some of the tasks would pass for the mean


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to report.*results.jsonl"):
        report.write(tmp_path)


def test_time_adds_up_over_interrupted_processes():
    clocks = [1.0, 5.0, 30.0, 0.5, 7.0]  # killed after 30 s, went on for 7 s
    made = [{"config_hash": "c", "stage": "zero_shot", "task": "a", "split": "test", "top1": 1.0} for _ in clocks]
    for record, clock in zip(made, clocks, strict=True):
        record["elapsed_seconds"] = clock
    (table,) = accuracy.accuracy_tables(made)
    assert table.notes[-1].endswith("37 s.")


def test_pretraining_curve_keeps_first_and_last():
    steps = [
        {"config_hash": "c", "stage": "pretrain", "step": n, "loss": 5 - n / 100, "learning_rate": 1e-3}
        for n in range(1, 98)
    ]
    (table,) = accuracy.curve_tables(steps)
    assert (table.rows[0][0], table.rows[-1][0]) == ("1", "97")
    assert len(table.rows) <= accuracy.CURVE_ROWS + 1


def test_comparison_is_mean_and_deviation_over_seeds():
    merged = [0.5, 0.6, 0.8]
    many = [r for n, m in enumerate(merged) for r in records(seed=n, merged=m, config_hash=f"a{n}")]
    many += records(regime="standard", config_hash="b")
    table = report.comparison(many)
    assert [(row[0], *row[-2:]) for row in table.rows] == [
        ("attention on openai/clip-vit-base-patch32", "3", "3"),
        ("standard on openai/clip-vit-base-patch32", "3", "1"),
    ]
    column = table.columns.index("merged")
    assert table.rows[0][column] == f"{100 * statistics.fmean(merged):.1f}±{100 * statistics.stdev(merged):.1f}"
    assert table.rows[1][column] == "60.0"
    out = io.StringIO()
    report.show([table], file=out)
    assert max(map(len, out.getvalue().splitlines())) <= 100
    merged_otherwise = records(config_hash="c")
    for record in merged_otherwise:
        record |= {"method": "ties"} if record["stage"] == "task_addition" else {}
    both = report.comparison([*records(config_hash="a"), *merged_otherwise])
    assert [row[0].partition(" on")[0] for row in both.rows] == ["attention", "attention, ties,"]
    with pytest.raises(ValueError, match="have seed 0"):
        report.comparison([*records(config_hash="a"), *records(config_hash="b")])
    with pytest.raises(ValueError, match="nothing to compare"):
        report.comparison([r for r in many if r["stage"] != "task_addition"])


def test_a_workflow_without_a_section_is_reported_by_what_it_recorded(workdir, monkeypatch):
    monkeypatch.setitem(QUESTIONS, "odd_ones", Question("how odd a task is", ()))
    for index, task in enumerate(TASKS):
        measured = {"stage": "odd_ones", "task": task, "split": "test", "oddity": 0.125 * index, "count": 1000}
        results.append(workdir / "results.jsonl", records()[0] | measured)
    report.write(workdir, file=(shown := io.StringIO()))
    for text in (shown.getvalue(), (workdir / "report.md").read_text(), (workdir / "report.html").read_text()):
        assert all(part in text for part in ("Odd ones", "oddity", "0.250", "1,000"))
    assert {question.section for question in QUESTIONS.values()} - {""} <= {one.name for one in sections.SUBJECTS}


def test_of_how_many_examples_an_accuracy_is_stands_below_it():
    """√(¼/n) is the largest standard error of a share; of 25 examples one is worth four points."""
    counted = [record | {"count": 1000} if record.get("split") == "test" else record for record in records()]
    (table,) = accuracy.accuracy_tables(counted)
    (note,) = [note for note in table.notes if "examples a task" in note]
    assert "of 1,000 examples a task" in note and "up to 1.6 points" in note
    assert not any("Fewer than" in note for note in table.notes)
    small = [record | {"count": 25} if record.get("task") == "colors" else record for record in counted]
    notes = accuracy.accuracy_tables(small)[0].notes
    assert any("of 25 to 1,000 examples a task" in note and "up to 10.0 points" in note for note in notes)
    assert any("Fewer than 100 test examples of colors:" in note for note in notes)
    assert not any("examples a task" in note for note in accuracy.accuracy_tables(records())[0].notes)


def test_seeds_that_searched_other_coefficients_are_averaged_where_all_have_one():
    """A mean over one seed here and over two there would be a line with steps that no model has."""
    runs = []
    for seed, coef in enumerate((0.2, 0.5)):
        made = records(seed=seed, merged=0.6 - 0.2 * seed)
        more = [r | {"scaling_coef": coef, "top1": 0.9} for r in results.find(made, stage="sweep", scaling_coef=1.0)]
        runs.append(Run(Path(f"run_{seed}"), made + more, {}))
    (curve,) = [figure for figure in accuracy.figures({"attention": runs}) if figure.name == "accuracy_over_alpha"]
    (panel,) = curve.panels
    rows = [row for layer in panel.layer for row in layer.to_dict()["data"]["values"] if "low" in row]
    assert {row["x"] for row in rows} == {0.0, 0.35, 1.0}
    assert all(abs(row["mean"] - 50) < 1e-9 for row in rows)
    heights = {
        row["text"]: row["height"]
        for layer in panel.layer
        for row in layer.to_dict()["data"]["values"]
        if "text" in row
    }
    assert heights == {
        "the pre-trained model": pytest.approx(40),
        "each fine-tuned model on its own task": pytest.approx(85),
    }


def test_the_best_regime_is_marked_in_every_rendering_and_equal_ones_alike():
    """What cannot be told apart as it is written, as 70.0 and 70.03, is equally good."""

    def compared(*merged):
        names = ("attention", "standard", "linear")
        return report.comparison(
            [r for n, m in zip(names, merged, strict=True) for r in records(regime=n, merged=m, config_hash=n)]
        )

    table = compared(0.5, 0.7, 0.6)
    assert table.best == (1,) and table.notes[-1].startswith("Best row, by the highest merged: standard")
    assert "| **standard on" in report.markdown([table]) and "| attention on" in report.markdown([table])
    assert r"\textbf{standard on" in latex.latex([table]) and r"\textbf{attention" not in latex.latex([table])
    assert compared(0.5, 0.7, 0.7003).best == (1, 2)
    assert compared(0.6, 0.6, 0.6).best == () and "Best" not in " ".join(compared(0.6, 0.6, 0.6).notes)
    errors = Table("t", ("regime", "error"), (("a", Number(0.2, 1)), ("b", "–"), ("c", Number(0.1, 1))))
    assert with_best(errors, "error", lowest=True).best == (2,)

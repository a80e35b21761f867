"""Pages, figures for papers and LaTeX without a browser: what they hold, what they refuse, what they cost."""

import base64
import hashlib
import io
import re
import subprocess
import sys

import pytest
from PIL import Image

from tajax import report, results
from tajax.report import Table, latex, page, predictions, runs, sections, style
from tajax.report.__main__ import main
from tajax.report.tables import Number, averaged, coefficient, markdown, percent
from tests.report.test_report_html import every_kind, write_run


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two regimes of two seeds."""
    home = tmp_path_factory.mktemp("places")
    return [
        write_run(home / f"{regime}_{seed}", every_kind(seed=seed, regime=regime, config_hash=f"{regime}{seed}"))
        for regime in ("attention", "linear")
        for seed in (0, 1)
    ]


def compose(*directories):
    return sections.compose([run for directory in directories for run in runs.read(directory)])


def test_importing_the_report_imports_nothing_that_draws():
    code = "import sys, tajax.report; print({'altair', 'jinja2', 'vl_convert', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_the_page_is_small_the_same_each_time_and_runs_its_own_scripts_alone(places):
    report.write(places[0], file=io.StringIO())
    first = (places[0] / "report.html").read_text()
    report.write(places[0], file=io.StringIO())
    assert (places[0] / "report.html").read_text() == first
    assert len(first) < 2e6
    allowed = set(re.findall(r"'sha256-([^']+)'", first.split("<style>")[0].replace("&#39;", "'")))
    scripts = re.findall(r"<script>(.*?)</script>", first, flags=re.DOTALL)
    assert {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts} == allowed
    assert "default-src &#39;none&#39;" in first or "default-src 'none'" in first


def test_every_stage_has_its_figures(places):
    names = {figure.name for figure in sections.figures(compose(places[0]))}
    assert names >= {
        *("accuracy_by_task", "accuracy_over_alpha", "accuracy_over_alpha_by_task", "confusion", "negation_over_alpha"),
        *("disentanglement_prediction", "disentanglement_symmetric_kl", "cosines", "geometry_by_layer", "kernel_gap"),
        *("ntk_plain", "finetune_loss"),
    }
    for figure in sections.figures(compose(*places)):
        assert figure.title and figure.caption.endswith(".") and figure.panels


@pytest.mark.parametrize("format, begins", [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")])
def test_figures_for_papers(places, tmp_path, format, begins):
    by_name = {figure.name: figure for figure in sections.figures(compose(places[0]))}
    for name in ("accuracy_over_alpha", "disentanglement_prediction"):
        content = style.save(by_name[name], tmp_path / "new", format=format).read_bytes()
        assert content.startswith(begins) and b"currentColor" not in content


def test_regimes_are_averaged_over_seeds_by_hand(places):
    (negation,) = [s for s in compose(*places).sections if s.name == "accuracy"]
    first = negation.tables[0]
    assert [(row[0], *row[-2:]) for row in first.rows] == [("attention", "3", "2"), ("linear", "3", "2")]
    one, two = (
        Table("t", ("task", "top1", "n"), (("a", n, Number(7, 0)), ("b", "–", "x"))) for n in map(percent, (0.5, 0.53))
    )
    whole = averaged([one, two])
    assert whole.rows == (("a", "51.5±2.1", "7"), ("b", "–", "x"))


def test_means_over_seeds_are_of_what_was_measured_and_not_of_what_was_written():
    """0.05, 0.15 and 0.25 % are written 0.1, 0.1 (or 0.2) and 0.2 (or 0.3), whose mean and deviation are other."""
    tables = [Table("t", ("task", "top1"), (("a", percent(n)),)) for n in (0.0004, 0.0014, 0.0024)]
    assert averaged(tables).rows == (("a", "0.1±0.1"),)
    assert averaged(tables).rows[0][1].value == pytest.approx(0.14)
    fine = [Table("t", ("task", "α"), (("a", coefficient(n)),)) for n in (0.125, 0.375)]
    assert averaged(fine).rows == (("a", "0.25±0.18"),)


def test_what_some_seeds_have_not_reached_is_of_the_others_and_says_so():
    whole = Table("t", ("task", "single", "merged"), (("a", percent(0.5), percent(0.25)), ("b", percent(1.0), "–")))
    part = Table("t", ("task", "single"), (("a", percent(0.6)),))
    both = averaged([part, whole], seeds=[3, 4], of="linear")
    assert both.rows == (("a", "55.0±7.1", "25.0 (1)"), ("b", "100.0 (1)", "–"))
    assert both.heading == "t: linear" and "over the seeds 3, 4." in both.notes[0] and "(n)" in both.notes[1]


def test_what_sets_runs_apart_is_in_their_names(places, tmp_path):
    assert list(runs.series(runs.read(places[0]))) == ["attention"]
    other = write_run(tmp_path / "few_0", every_kind(seed=0, config_hash="other"))
    both = runs.series([*runs.read(places[0]), *runs.read(other)])
    assert list(both) == ["attention (attention)", "attention (few)"]
    with pytest.raises(ValueError, match="attention_0 is given twice"):
        runs.series(runs.read(places[0]) * 2)


def test_workflows_on_the_same_vectors_are_no_seeds(places, tmp_path):
    """A negation of seed 0 beside the run it is of: what it measured first is averaged with nothing."""
    base = {"config_hash": "negated", "seed": 0, "regime": "attention", "model": "tiny", "workflow": "task_negation"}
    zero_shot = {"stage": "zero_shot", "task": "shapes", "split": "test", "top1": 0.3}
    negated = runs.Run(tmp_path / "negated", [base | zero_shot], {})
    composed = sections.compose([*runs.read(places[0]), negated])
    made = {table.title: table for table in sections.tables(composed)}
    assert made["Accuracy on each task, %"].of == "attention, seed 0"
    assert made["Accuracy on each task, %"].rows[0][1] == "30.0"
    assert not any("±" in cell for table in made.values() for row in table.rows for cell in row)


def test_what_is_unfinished_or_of_other_tasks_is_said_first(places):
    (run,) = runs.read(places[0])
    config = {"workflow": "task_addition", "tasks": ["shapes", "colors", "visual_domain_decathlon/gtsrb"]}
    assert sections.compose([run._replace(config=config)]).notices == ()
    part = [r for r in run.records if r["stage"] != "task_addition" or r["task"] == "shapes"]
    (notice,) = sections.compose([run._replace(config=config, records=part)]).notices
    assert notice == "attention_0 is not finished: task addition has been measured for 1 of 3 tasks."
    few = run._replace(config=config | {"tasks": ["shapes"]}, workdir=run.workdir.parent / "few")
    composed = sections.compose([run._replace(config=config), few])
    assert any("not comparable" in notice for notice in composed.notices)
    assert [row[0] for row in composed.sections[0].tables[0].rows] == ["attention (3 tasks)", "attention (1 task)"]


def test_runs_on_other_data_are_named(places):
    (first,), (second,) = (runs.read(place) for place in places[:2])
    shown = {"shapes": {"class_names": "a", "train": "b", "test": "c"}}

    def on(run, data):
        about = {**run.records[0], "stage": "run", "data": data}
        return run._replace(records=[about, *(r for r in run.records if r["stage"] != "run")])

    same = [on(first, shown), on(second, shown)]
    before = sections.compose([first, second]).notices
    assert sections.compose(same).notices == before
    other = {"shapes": shown["shapes"] | {"class_names": "x", "test": "y"}}
    found = sections.compose([same[0], on(second, other)]).notices
    assert "The runs are not on the same shapes: its class names, test differ." in found


def test_maps_and_matrices_are_means_over_seeds_and_regimes_stand_beside_each_other(places):
    by_name = {figure.name: figure for figure in sections.figures(compose(*places))}
    maps = by_name["disentanglement_prediction"]
    assert [panel.title for panel in maps.panels] == ["shapes – colors · attention", "shapes – colors · linear"]
    assert maps.columns == 2 and "Means over seeds." in maps.caption
    corner = style.specification(maps.panels[0])["layer"][0]["data"]["values"][0]
    assert corner == pytest.approx((4 / 8 + 4 / 9) / 2, abs=1e-4)  # |−2 · −2| / (8 + seed)
    assert len(by_name["cosines"].panels) == 2 and len(by_name["confusion"].panels) == 6


def test_examples_are_read_with_suspicion(places):
    """One is a large picture, one absent, one no picture, one outside of the run."""
    (run,) = runs.read(places[0])
    found = predictions.examples(run)
    images = [example.image for example in next(iter(found.values()))]
    assert [bool(image) for image in images] == [True, False, False, False]
    content = base64.b64decode(images[0].removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (128, 9)
    assert found["shapes"][0].predicted == (
        ("pre-trained", "colors", False),
        ("fine-tuned", "shapes", True),
        ("merged", "colors", False),
    )


def test_latex_is_text_whatever_the_names():
    hostile = r"a_b & 50% #1 \input{x} $y$ {z} ~ ^" + "\u202e<b>\n|"
    written = latex.latex([Table(hostile, ("task", "‖τ‖"), ((hostile, "1.0±0.5"), ("mean", "2.0")), (), 1)])
    body = written.replace(r"\toprule", "").replace(r"\midrule", "").replace(r"\bottomrule", "")
    assert r"a\_b \& 50\% \#1 \textbackslash{}input\{x\} \$y\$ \{z\}" in body
    assert r"1.0$\pm$0.5 \\" in body and r"$\|$$\tau$$\|$" in body
    assert "\u202e" not in written and written.count(r"\midrule") == 2
    (row,) = [line for line in written.splitlines() if "1.0" in line]
    assert len(re.findall(r"(?<!\\)&", row)) == 1


def test_markdown_names_are_text():
    (line,) = [r for r in report.markdown([Table("t", ("a", "b"), (("<b>|\n", "1"),))]).splitlines() if "1" in r]
    assert line == r"| &lt;b>\| | 1 |"


def test_command_line(places, tmp_path, capsys):
    out = tmp_path / "new" / "compared.html"
    figures = tmp_path / "figures"
    assert main([*map(str, places), "--out", str(out), "--figures", str(figures), "--format", "svg", "--latex"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count(r"\begin{table}") == printed.out.count(r"\end{table}") > 3
    assert out.read_bytes().startswith(b"<!doctype html>")
    assert str(out) in printed.err
    assert {path.stem for path in figures.iterdir()} == {f.name for f in sections.figures(compose(*places))}
    assert main([str(places[1])]) == 0
    assert (places[1] / "report.html").exists()


def test_a_page_of_several_runs_says_where_it_is_and_replaces_reports_alone(places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "report.html"
    for _ in range(2):
        assert main([str(places[0]), str(places[1])]) == 0
        assert capsys.readouterr().err.splitlines()[-1] == f"report: {own}"
    own.write_text("<!doctype html><title>Quarterly figures</title>")
    assert main([str(places[0]), str(places[1])]) == 2
    assert f"{own} is not a report of tajax and would be lost" in capsys.readouterr().err
    assert "Quarterly" in own.read_text()


def test_bad_input_is_refused_and_nothing_written(places, tmp_path, capsys):
    assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "page.html")]) == 2
    assert "nowhere/results.jsonl is absent or empty" in capsys.readouterr().err
    assert main([str(places[0]), str(places[0]), "--out", str(tmp_path / "page.html")]) == 2
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(SystemExit) as ended:
        main([str(places[0]), "--format", "gif"])
    assert ended.value.code == 2


def test_json_in_a_script_ends_no_script():
    written = page.script_json({"name": "</script><!--<script>&"})
    assert not set("<>&") & set(written)


def test_a_run_that_was_interrupted_anywhere_has_a_page(places):
    """With the first of its records alone and beside a finished run: the page says what there is."""
    (run,) = runs.read(places[0])
    (other,) = runs.read(places[2])
    for end in range(1, len(run.records), 13):
        part = run._replace(records=run.records[:end])
        assert page.html(sections.compose([part])).startswith(b"<!doctype html>")
        assert sections.compose([part, other]).sections


def test_an_analogy_without_its_test_accuracy_yet_has_a_dash():
    base = {"config_hash": "c", "split": "val", "top1": 0.5}
    made = [base | {"stage": "zero_shot", "task": task} for task in "abcd"]
    made.append(base | {"stage": "task_analogy", "task": "d", "vector": "analogy", "scaling_coef": 0.3})
    (table,) = report.negation.tables(made)
    assert table.rows[2] == ("c + (b − a)", "0.3", "–", "50.0")


def test_what_the_records_warn_of_is_said_first_and_once(places):
    (run,) = runs.read(places[0])
    doubt, worse = "a: 1 of 3 classes have no image in the test split: <b>owl", "a: below chance"
    first, *rest = run.records
    records = [first | {"warnings": [doubt]}, first | {"warnings": [doubt, worse]}, *rest]
    assert sections.compose([run._replace(records=records)]).notices == (doubt, worse)
    assert markdown([], notices=[doubt]) == f"> {doubt.replace('<', '&lt;')}\n"


def test_examples_of_texts_are_shown_as_they_are_and_cut(tmp_path):
    about = {"kind": "lost by merging", "label": 0, "pretrained": 1, "single": 0, "merged": 1}
    files = [about | {"row": row, "file": f"examples/{name}.txt"} for row, name in enumerate(("a", "long", "../no"))]
    record = {"stage": "predictions", "task": "mail", "classes": ["spam", "ham"], "examples": files, "seed": 0}
    record |= {"count": 3, "correctness": [[1, 1], [0, 1]], "confusion": [[0, 0, 3]], "config_hash": "0", "model": "m"}
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "a.txt").write_text("<b>free</b> & new")
    (tmp_path / "examples" / "long.txt").write_text("word " * 200)
    (tmp_path / "no.txt").write_text("secret")
    results.append(tmp_path / "results.jsonl", record | {"regime": "standard", "elapsed_seconds": 1.0})
    (run,) = runs.read(tmp_path)
    texts = [example.text for example in predictions.examples(run)["mail"]]
    assert texts[0] == "<b>free</b> & new" and len(texts[1]) == 401 and texts[1].endswith("word …") and texts[2] == ""

"""What goes into papers: LaTeX that compiles, tables of whole rows, figures of a column's width."""

import io
import re
import shutil
import subprocess

import pytest

from tajax import report
from tajax.report import Table, latex, runs, sections, style
from tajax.report.__main__ import main
from tests.report.test_report_html import HOSTILE, every_kind, write_run

PREAMBLE = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}\extrafloats{100}"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two regimes, one of them with two seeds, with every kind of record."""
    home = tmp_path_factory.mktemp("papers")
    seeds = (("attention", 0), ("attention", 1), ("linear", 0))
    return [
        write_run(home / f"{regime}_{seed}", every_kind(seed=seed, regime=regime, config_hash=f"{regime}{seed}"))
        for regime, seed in seeds
    ]


def compose(*directories):
    return sections.compose([run for directory in directories for run in runs.read(directory)])


def test_every_row_has_as_many_cells_as_there_are_columns(places):
    for page in (compose(places[0]), compose(*places)):
        tables = sections.tables(page)
        for written, table in zip(latex.latex(tables).split(r"\begin{table}")[1:], tables, strict=True):
            assert written.count(r"\begin{tabular}") == written.count(r"\end{tabular}}") == 1
            rules = re.search(r"\\begin\{tabular\}\{(l?r*)\}", written)[1]
            assert len(rules) == len(table.columns)
            rows = [line for line in written.splitlines() if line.endswith(r" \\")]
            assert len(rows) in (len(table.rows) + 1, len(table.rows) + 2)
            for row in rows:
                spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", row))
                assert len(re.findall(r"(?<!\\)&", row)) + spanned == len(table.columns) - 1


def test_columns_that_begin_alike_stand_below_the_word():
    table = Table("t", ("task", "α", "test a", "test b", "val a"), (("x", "1", "2", "3", "4"),))
    above, rule, titles = latex.latex([table]).split(r"\toprule")[1].split(r"\midrule")[0].strip().splitlines()
    assert above.strip() == r"&  & \multicolumn{2}{c}{test} &  \\"
    assert rule.strip() == r"\cmidrule(lr){3-4}"
    assert titles.strip() == r"task & $\alpha$ & a & b & val a \\"


def test_it_compiles_whatever_the_names(places, tmp_path):
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex on this machine: apt-get install texlive-latex-recommended")
    latin = tuple(re.sub("[\u0590-\u05ff\u2028\ud800-\udfff\x00]", "", name) for name in HOSTILE)
    hostile = write_run(tmp_path / "run_0", every_kind(names=latin))
    tables = [
        *sections.tables(compose(*places)),
        *sections.tables(compose(places[0])),
        *sections.tables(compose(hostile)),
    ]
    (tmp_path / "all.tex").write_text(f"{PREAMBLE}\\begin{{document}}\n{latex.latex(tables)}\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Missing character" not in (tmp_path / "all.log").read_text(
        errors="replace"
    )


def test_figures_are_a_column_wide_and_hold_their_letters(places):
    by_name = {figure.name: figure for figure in sections.figures(compose(*places))}
    for name, widest in (("accuracy_over_alpha", style.COLUMN), ("cosines", style.TEXT), ("confusion", style.TEXT)):
        content = style.drawn(by_name[name], format="pdf")
        assert float(re.search(rb"/MediaBox ?\[0 0 ([\d.]+)", content)[1]) <= widest + 1
        assert b"/FontFile2" in content
        picture = style.drawn(by_name[name], format="svg").decode()
        width, box = re.search(r' width="([\d.]+)" .*?viewBox="0 0 ([\d.]+)', picture).groups()
        assert 12 * float(width) / float(box) > 5.5  # points, of labels


def test_tables_fit_a_narrow_terminal_and_lose_no_column(places, monkeypatch):
    tables = sections.tables(compose(*places))
    monkeypatch.setattr(report.tables, "WIDTH", 80)
    out = io.StringIO()
    report.show(tables, file=out)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert all(cell in text for table in tables for row in table.rows for cell in row[1:])


def test_nothing_is_written_where_something_cannot_be(places, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    page = tmp_path / "page.html"
    for wrong in (["--figures", str(file / "figures")], ["--figures", str(file)]):
        assert main([str(places[0]), "--out", str(page), *wrong]) == 2
        assert str(file) in capsys.readouterr().err and not page.exists()
    with pytest.raises(SystemExit) as ended:
        main([str(places[0]), "--out", str(tmp_path)])
    assert ended.value.code == 2 and "is a directory; name the file" in capsys.readouterr().err
    assert main([str(places[0] / "results.jsonl")]) == 2
    assert f"name the directory of the run, {places[0]}" in capsys.readouterr().err

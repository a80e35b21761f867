"""Every experiment can be run as its README says, on every benchmark, and what its README shows was measured."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import figures, protocol, published, summary
from tajax import report, results
from tajax.config import validate

ROOT = Path(__file__).parents[2] / "experiments"
FOLDERS = sorted(path.parent for path in ROOT.glob("*/run.py") if path.parent.name != "benchmarks")
NO_DATA = ("scale",)
"""Experiments that read no task."""


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_command_of_the_readme_is_there_and_explains_itself(folder, capsys, monkeypatch):
    assert f"python -m experiments.{folder.name}.run" in (folder / "README.md").read_text()
    module = importlib.import_module(f"experiments.{folder.name}.run")
    monkeypatch.setattr(sys, "argv", ["run", "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    assert ("--data" in capsys.readouterr().out) == (folder.name not in NO_DATA)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_a_readme_shows_has_records_that_say_where_they_come_from(folder):
    text = (folder / "README.md").read_text()
    shown = re.findall(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", text, re.DOTALL)
    measured = [name for name, table in shown if table.strip() and name in protocol.BENCHMARKS]
    for name in measured:
        records = results.read(folder / "results" / f"{name}.jsonl")
        assert records and all({"config_hash", "seed", "stage"} <= set(record) for record in records)
        assert any("versions" in record for record in records)
    for figure in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (folder / figure).is_file(), figure


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_readme_has_room_for_the_tables_of_its_commands(folder):
    """Without these lines a command would end with an error after hours of runs."""
    text = (folder / "README.md").read_text()
    for name in re.findall(r"--benchmark=(\w+)", text):
        assert f"<!-- {name} -->\n" in text and f"<!-- /{name} -->\n" in text, name


@pytest.mark.parametrize("benchmark", protocol.BENCHMARKS)
@pytest.mark.parametrize("regime", protocol.REGIMES)
def test_every_benchmark_has_a_valid_config_of_every_regime(benchmark, regime):
    options = protocol.arguments(None).parse_args([f"--benchmark={benchmark}"])
    config = protocol.make_config(options, regime, 7, **{"evaluate.batch_size": 64})
    validate(config)
    assert (config.regime, config.seed, config.evaluate.batch_size, len(config.tasks)) == (regime, 7, 64, 8)
    assert config.control and config.control not in config.tasks


def test_tables_replace_what_stands_between_the_lines_of_a_readme(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- real -->\nold\n<!-- /real -->\nafter\n<!-- bundled -->\n<!-- /bundled -->\n")
    summary.write(tmp_path, "real", [report.Table("new", ("a", "b"), (("x", r"1\2"),))], [{"stage": "run"}])
    text = readme.read_text()
    assert "old" not in text and text.startswith("before\n<!-- real -->\n\n### new") and r"| x | 1\2 |" in text
    assert text.endswith("<!-- /real -->\nafter\n<!-- bundled -->\n<!-- /bundled -->\n")
    assert results.read(tmp_path / "results" / "real.jsonl") == [{"stage": "run"}]
    with pytest.raises(ValueError, match="has no lines <!-- b32 -->"):
        summary.fill(readme, "b32", "")


def test_published_figures_leave_room_for_ours():
    table = published.beside_ours("t", published.ADDITION, {("b32", "linear"): "1.0/2.0"})
    assert table.columns[2:4] == ("B/32", "ours B/32") and {len(row) for row in table.rows} == {len(table.columns)}
    ours = {row[0]: row[3] for row in table.rows}
    assert ours == {"zero-shot": "", "standard": "", "linear": "1.0/2.0", "attention": ""}


def test_equal_figures_are_equal_files(tmp_path):
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file in files:
        figure = figures.Figure()
        figures.curves(figure.subplots(), [0, 1], {"standard": [[0, 1], [1, 2]]})
        figures.save(figure, file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_importing_an_experiment_starts_nothing():
    code = "import experiments.task_addition.run, sys; assert 'tajax.workflows.task_addition' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)

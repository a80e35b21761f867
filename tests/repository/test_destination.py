"""What an experiment replaces: it says so, asks, never waits where nobody is, and never makes three seeds into one."""

import importlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import destination, everything, protocol

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "experiments").glob("*/run.py"))
EVERY = [folder for folder in FOLDERS if folder.name not in ("benchmarks", "scale")]
"""Those whose flags are `protocol`'s; the other two have their own."""

TABLE = "### t\n\n| a |\n| --- |\n| 1 |\n\n- 49 minutes of runs (2 cores, cpu).\n"


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self):
        return True


@pytest.fixture
def folder(tmp_path):
    """An experiment with a table of three seeds of the bundled tasks, and nothing of others."""
    folder = tmp_path / "task_play"
    (folder / "results").mkdir(parents=True)
    parts = [f"<!-- {name} -->\n{table}<!-- /{name} -->\n" for name, table in (("bundled", TABLE), ("real", ""))]
    (folder / "README.md").write_text("# play\n" + "".join(parts))
    records = [{"stage": "run", "seed": seed} for seed in (0, 1, 2)]
    (folder / "results" / "bundled.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name in ("bundled.png", "bundled_maps.png", "real.png"):
        (folder / "results" / name).touch()
    return folder


@pytest.fixture
def options():
    """`options(*flags)`: what an experiment reads from them."""
    return lambda *flags: protocol.arguments(None).parse_args(list(flags))


def test_it_says_what_is_replaced_and_how_long_it_takes(folder, options, capsys):
    assert destination.chosen(options("--yes"), folder) == folder
    said = capsys.readouterr().out
    assert "<!-- bundled -->" in said and "seeds 0 1 2" in said and "about 49 minutes (2 cores, cpu)" in said
    files = re.findall(r"results/(\S+)", said)
    assert files == ["bundled.jsonl", "bundled.png", "bundled_maps.png"]


def test_without_a_terminal_it_refuses_and_names_the_way_out(folder, options, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("waits for an answer"))
    with pytest.raises(SystemExit) as stopped:
        destination.chosen(options(), folder)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "--yes" in error and "--out=DIR" in error


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("yes", True), ("n", False), ("", False)])
def test_in_a_terminal_it_asks(folder, options, monkeypatch, answer, goes_on):
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda *_: answer)
    if goes_on:
        assert destination.chosen(options(), folder) == folder
        return
    with pytest.raises(SystemExit) as stopped:
        destination.chosen(options(), folder)
    assert stopped.value.code == 1


@pytest.mark.parametrize("seeds", [["0"], ["0", "1"]])
def test_fewer_seeds_never_replace_a_table_of_three(folder, options, capsys, seeds):
    with pytest.raises(SystemExit) as stopped:
        destination.chosen(options("--yes", "--seeds", *seeds), folder)
    assert stopped.value.code == 2 and f"of 3 seeds and would be replaced by {len(seeds)}" in capsys.readouterr().err
    assert destination.chosen(options("--yes", "--seeds", "3", "4", "5"), folder) == folder


def test_what_nobody_has_measured_needs_no_question(folder, options, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks"))
    assert destination.chosen(options("--benchmark=real", "--seeds", "0"), folder) == folder


def test_another_place_gets_a_readme_with_room_and_keeps_what_it_has(folder, options, tmp_path):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    out = tmp_path / "made" / "there"
    for benchmark in ("bundled", "real"):
        given = options("--seeds", "0", f"--out={out}", f"--benchmark={benchmark}")
        assert destination.chosen(given, folder) == out
    text = (out / "README.md").read_text()
    for name in ("bundled", "real", "published"):
        assert text.count(f"<!-- {name} -->\n<!-- /{name} -->\n") == 1
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_its_own_folder_is_not_another_place(folder, options):
    with pytest.raises(SystemExit):
        destination.chosen(options("--seeds", "0", f"--out={folder}", "--yes"), folder)


@pytest.mark.parametrize("experiment", EVERY, ids=lambda folder: folder.name)
def test_every_experiment_asks_before_any_work(experiment, capsys, monkeypatch):
    """With its committed tables, and no terminal."""
    name = "pilots" if experiment.name == "pretraining_pilots" else "bundled"
    assert destination.replaced(experiment, name)
    monkeypatch.setattr("sys.argv", ["run"])
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr(protocol, "_run", lambda *_: pytest.fail("runs"))
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"experiments.{experiment.name}.run").main()
    assert stopped.value.code == 2 and "--yes" in capsys.readouterr().err


@pytest.mark.parametrize("experiment", EVERY, ids=lambda folder: folder.name)
def test_help_shows_defaults_as_one_types_them(experiment, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run", "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(f"experiments.{experiment.name}.run").main()
    text = " ".join(capsys.readouterr().out.split())
    assert "--out DIR" in text and "--yes" in text
    for default in re.findall(r"\(default: ([^()]*\(?)", text):
        assert not default.startswith(("(", "[")) and default not in ("None", "False"), default


def test_regimes_and_names_with_spaces_can_be_pasted(capsys):
    parser = protocol.arguments(None, regimes=("standard", "attention", "linear"))
    parser.add_argument("--choices", nargs="+", default=("all", "query, value"), help="what is trained")
    text = " ".join(parser.format_help().split())
    assert "(default: standard attention linear)" in text and "(default: all 'query, value')" in text


def test_everything_asks_once_and_hands_the_answer_on(monkeypatch, capsys):
    started = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: started.append(command))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.argv", ["everything", "--only", "geometry", "task_addition"])
    with pytest.raises(SystemExit) as stopped:
        everything.main()
    said = capsys.readouterr()
    assert stopped.value.code == 2 and not started and "--yes" in said.err and "in geometry:" in said.out
    sys.argv.append("--yes")
    everything.main()
    assert [command[2] for command in started] == ["experiments.geometry.run", "experiments.task_addition.run"]
    assert all("--yes" in command for command in started)


def test_everything_elsewhere_gives_each_a_folder_of_its_own(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: started.append(command))
    only = ["--only", "geometry", "single_task"]
    monkeypatch.setattr("sys.argv", ["everything", *only, "--seeds", "0", f"--out={tmp_path}", "--few"])
    everything.main()
    assert [[f for f in command if f.startswith("--out=")] for command in started] == [
        [f"--out={tmp_path / 'geometry'}"],
        [f"--out={tmp_path / 'single_task'}"],
    ]
    assert all("--few" in command and "--yes" not in command for command in started)


def test_everything_with_fewer_seeds_is_refused_before_the_first_run(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("starts"))
    monkeypatch.setattr("sys.argv", ["everything", "--seeds", "0", "--yes"])
    with pytest.raises(SystemExit) as stopped:
        everything.main()
    assert stopped.value.code == 2 and "of 3 seeds and would be replaced by 1" in capsys.readouterr().err


def test_no_command_that_is_written_down_is_refused_for_its_seeds():
    """In READMEs and documentation; those that write elsewhere may have any."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("experiments/**/*.md"), *ROOT.glob("tajax/docs/*.md")]
    found = 0
    for page in pages:
        for name, flags in re.findall(r"python -m experiments\.(\w+)(?:\.run)?([^`#\n]*)", page.read_text()):
            names = [f.name for f in EVERY] if name == "everything" else [name]
            benchmark, seeds = re.search(r"--benchmark=(\w+)", flags), re.search(r"--seeds((?: \d+)+)", flags)
            if "--out" in flags or not set(names) <= {folder.name for folder in EVERY}:
                continue
            found += 1
            given = (benchmark[1] if benchmark else "bundled", seeds[1].split() if seeds else ["0", "1", "2"])
            refused = [w for n in names if (w := destination.fewer_seeds(ROOT / "experiments" / n, *given))]
            assert not refused, f"{page.name}: {name}{flags}: {refused}"
    assert found > 50

"""Command lines, the files of a run's directory, and what a report makes of names: a message, never a traceback."""

import contextlib
import io
import json
import os
from html.parser import HTMLParser

from hypothesis import strategies as st

from tajax import config, main, report, results
from tajax.report import __main__ as report_command
from tajax.workflows import workdir as workdirs
from tests.hostile.conftest import attack
from tests.hostile.inputs import DEEP, JSON, NAMES, NUMBERS, changed, encoded, meddled
from tests.report.test_report import TASKS
from tests.report.test_report_html import every_kind
from tests.workflows.conftest import CONFIGS

DEFAULT = config.flatten(config.default_config())
VALUES = st.one_of(
    NUMBERS.map(str), NAMES, JSON.map(repr), st.sampled_from(["(1,2)", "('a',)", "None", "True", "()", "1_0"])
)
FLAGS = st.sampled_from(
    ["--config", "--workdir", "--overwrite", "--nooverwrite", "--debug=", "--flagfile", "--undefok", "-x"]
)


def said(function):
    """Exit code, and what was printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = function()
    assert "Traceback" not in err.getvalue()
    assert code == 0 or err.getvalue().strip()
    return code


@attack(
    150,
    fields=st.dictionaries(st.sampled_from([*DEFAULT, "finetune", "nothing", "__class__", "lock"]), VALUES, max_size=3),
    data=st.data(),
)
def test_command_lines(fields, data, attempt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "workflow", lambda name: lambda config, workdir, *, overwrite: None)
    monkeypatch.setattr(main, "keep_programs", lambda directory: False)  # in data_dir, and so in the user's home
    more = data.draw(st.lists(st.one_of(NAMES, st.tuples(FLAGS, NAMES).map("=".join)), max_size=1))
    line = [
        f"--config={CONFIGS / 'attn.py'}:tiny",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        *more,
    ]
    try:
        whole = b"\0" not in os.fsencode("".join(line))
    except UnicodeEncodeError:
        whole = False
    if not whole or any("--debug" in argument or "help" in argument for argument in line):
        return  # no system gives a program such arguments; or other words are printed
    named = [a.partition("=")[2] for a in more if "workdir" in a]  # a place of the user's own choice
    if any(".." in place for place in named):
        return  # which may lie anywhere
    code = attempt("command lines", lambda: said(lambda: main.main(["tajax", *line])), allowed=named, explained=())
    assert code in (0, 2)


@attack(60, data=st.data())
def test_configs_of_an_earlier_run(data, attempt, tmp_path):
    path = tmp_path / "config.json"
    whole = config.default_config().to_json()
    path.write_bytes(
        data.draw(st.one_of(changed(json.loads(whole)).map(encoded), meddled(whole.encode()), JSON.map(encoded), DEEP))
    )
    attempt("config.json", lambda: workdirs.claim(config.default_config(), tmp_path), tmp_path)


@attack(12, data=st.data())
def test_results_that_were_meddled_with(data, attempt, tmp_path):
    path, made = tmp_path / "results.jsonl", every_kind()
    number = data.draw(st.integers(0, len(made) - 1))
    lines = [encoded(record) for record in made]
    lines[number] = data.draw(
        st.one_of(changed(made[number]).map(encoded), meddled(lines[number]), JSON.map(encoded), DEEP)
    )
    path.write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "config.json").write_bytes(data.draw(st.one_of(st.just(b"{}"), JSON.map(encoded))))
    attempt("results.jsonl", lambda: results.read(path), path)
    line = [str(tmp_path), "--out", str(tmp_path / "r.html")]
    assert attempt("reports", lambda: said(lambda: report_command.main(line)), explained=()) in (0, 2)
    with contextlib.redirect_stdout(io.StringIO()):
        attempt("reports, at the end of a run", lambda: report.write(tmp_path), tmp_path)


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, without what they say."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        element = (tag, tuple(name for name, _ in attributes))
        if element != ("span", ("class", "title")):  # around a name that is too long for its column
            self.found.append(element)


def elements(directory, names):
    directory.mkdir(exist_ok=True)
    path = directory / "results.jsonl"
    path.write_bytes(b"".join(encoded(record) + b"\n" for record in every_kind(names=names)))
    with contextlib.redirect_stdout(io.StringIO()):
        report.write(directory)
    return Elements((directory / "report.html").read_text()).found


@attack(4, names=st.lists(NAMES.filter(lambda name: name.strip()), min_size=3, max_size=3, unique=True))
def test_names_stay_text_in_the_page(names, attempt, tmp_path):
    plain = elements(tmp_path / "plain", TASKS)
    found = attempt("names in reports", lambda: elements(tmp_path / "<b onclick='x'>&", tuple(names)))
    if found is not None:
        assert found == plain


def test_a_variant_is_no_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["tajax", f"--config={CONFIGS / 'attn.py'}:tiny", "--config.variant=../../x"]) == 2
    assert "variant" in capsys.readouterr().err
    assert not os.listdir(tmp_path)

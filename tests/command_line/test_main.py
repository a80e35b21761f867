"""From a command line to a workflow: what is run where, how bad input ends, and what the pages of help say."""

import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tajax import config as tc
from tajax import interrupts, processes, progress
from tajax import main as entry
from tajax.command_line import files
from tajax.config.fields import merging_options
from tajax.merging import METHODS, PREPARATIONS

ROOT = Path(__file__).parents[2]
ATTN = f"--config={ROOT / 'configs' / 'attn.py'}"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The calls that reach the task-addition workflow; the working directory is empty."""
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entry, "workflow", lambda name: lambda c, w, *, overwrite: calls.append((c, w, overwrite)))
    return calls


def run(*arguments):
    return entry.main(["tajax", *arguments])


def test_config_reaches_its_workflow(runs, tmp_path):
    assert run(ATTN, "--config.finetune.steps=10") == 0
    ((config, workdir, overwrite),) = runs
    assert (config.regime, config.finetune.steps, config.model) == ("attention", 10, "tiny")
    assert (workdir, overwrite) == (Path("runs/attn_tiny"), False)
    assert (tmp_path / "runs/attn_tiny").is_dir()


def test_workdir_and_overwrite(runs, tmp_path):
    assert run(f"{ATTN}:b16", "--overwrite") == 0
    assert run(ATTN, f"--workdir={tmp_path / 'mine'}") == 0
    assert [(workdir, overwrite) for _, workdir, overwrite in runs] == [
        (Path("runs/attn_b16"), True),
        (tmp_path / "mine", False),
    ]


def test_a_name_means_the_file_in_configs_here_and_else_the_one_that_comes_with_tajax(runs, tmp_path):
    assert run("--config=attn") == run("--config", "attn:b16") == 0
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "attn.py").write_text("from tajax.config import default_config as get_config\n")
    assert run("--config=attn") == run("--config=configs/attn.py") == run("--config=linear") == 0
    found = [(config.regime, workdir) for config, workdir, _ in runs]
    assert found == [
        ("attention", Path("runs/attn_tiny")),
        ("attention", Path("runs/attn_b16")),
        ("standard", Path("runs/attn")),
        ("standard", Path("runs/attn")),
        ("linear", Path("runs/linear_tiny")),
    ]


def test_an_installed_package_brings_the_configs(runs, tmp_path, monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (name, place), *others = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items()
    assert (name, others) == ("configs", [])
    shutil.copytree(ROOT / name, tmp_path / "site-packages" / place)  # as the wheel does
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "site-packages" / "tajax")
    assert set(files.found()) == {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert run("--config=attn:b32") == 0
    assert [(config.variant, workdir) for config, workdir, _ in runs] == [("b32", Path("runs/attn_b32"))]


@pytest.mark.parametrize("flag", [(), ("-q",), ("--quiet",)])
def test_quiet_says_nothing_but_errors(tmp_path, monkeypatch, capsys, flag):
    def speak(config, workdir, *, overwrite):
        progress.say("all is well")
        raise ValueError("all is not well")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entry, "workflow", lambda name: speak)
    assert run(ATTN, *flag) == 2
    shown = capsys.readouterr()
    assert ("all is well" in shown.out + shown.err) == (not flag)
    assert "all is not well" in shown.err


def test_flags_may_stand_in_a_file(runs, tmp_path):
    (tmp_path / "flags").write_text("--config=attn:tiny\n--config.seed=3\n")
    assert run("--flagfile=flags") == 0
    assert runs[0][0].seed == 3


def test_own_config_file_without_variant_gives_its_name_to_the_run(runs, tmp_path):
    (tmp_path / "mine.py").write_text("from tajax.config import default_config as get_config\n")
    assert run("--config=mine.py") == 0
    assert runs[0][1] == Path("runs/mine")


@pytest.mark.parametrize("name", tc.WORKFLOWS)
def test_every_workflow_can_be_run(name):
    parameters = inspect.signature(entry.workflow(name)).parameters
    assert list(parameters) == ["config", "workdir", "overwrite"]


def test_another_workflow_of_a_config_has_a_directory_of_its_own():
    plain, other = entry.parse(["tajax", ATTN])[1], entry.parse(["tajax", ATTN, "--config.workflow=single_task"])[1]
    assert (str(plain), str(other)) == ("runs/attn_tiny", "runs/attn_tiny_single_task")


BAD = {
    (): "no config given",
    (ATTN, "more"): "unexpected argument 'more'",
    ("--config=nofile.py",): "no config file 'nofile.py'",
    ("--config=atn",): "no config file 'atn'. Did you mean 'attn'? Configs here: attn, delta,",
    ("--config=configs/atn.py",): "no config file 'configs/atn.py'. Did you mean 'attn'?",
    ("--config",): "Missing value for flag --config",
    (ATTN + ":b31",): "unknown variant 'b31'. Did you mean 'b32'? Choices: tiny, b32,",
    ("--config", "attn:b31"): "unknown variant 'b31'. Did you mean 'b32'?",
    (ATTN, "--config.finetune.stps=1"): "unknown config field 'finetune.stps'. Did you mean 'finetune.steps'?",
    (ATTN, "--noconfig.save.megred"): "unknown config field 'save.megred'. Did you mean 'save.merged'?",
    (ATTN, "--config.remat=1"): "unknown config field 'remat'. Did you mean 'finetune.remat'?",
    (ATTN, "--config.finetune.steps=many"): "--config.finetune.steps=many",
    (ATTN, "--config.regime=atention"): "unknown regime 'atention'. Did you mean 'attention'?",
    (ATTN, "--config.workflow=task_adition"): "unknown workflow 'task_adition'. Did you mean 'task_addition'?",
    (ATTN, "--config.heads=zeroshot"): "unknown heads 'zeroshot'. Did you mean 'zero_shot'?",
    (ATTN, "--config.merging.method=tie"): "unknown merging.method 'tie'. Did you mean 'ties'?",
    (ATTN, "--config.ntk.split=tset"): "unknown ntk.split 'tset'. Did you mean 'test'?",
    (ATTN, "--config.model=tniy"): "No model 'tniy'. Did you mean 'tiny'?",
    (ATTN, "--config.tasks=('digts',)"): "unknown task 'digts'. Did you mean 'digits'",
    (
        ATTN,
        "--config.workflow=task_negation",
        "--config.control=objcts",
    ): "unknown task 'objcts'. Did you mean 'objects'",
    (ATTN, "--config.trainable=atention"): "Did you mean 'attention'?\nNamed rules: all, attention",
    (ATTN, "--wrokdir=x"): "unknown flag '--wrokdir'. Did you mean '--workdir'? Choices: --config, --workdir",
    (ATTN, "--steps=20"): "unknown flag '--steps'. Did you mean --config.finetune.steps or --config.pretrain.steps?",
    (ATTN, "--confg.seed=1"): "unknown flag '--confg.seed'. Did you mean '--config.seed'?",
    (ATTN, "--cofnig.finetune.stpes=1"): "Did you mean '--config.finetune.steps'?",
    (ATTN, "--config.tasks=shapes,digits"): "--config.tasks=\"('shapes', 'digits')\"",
    (ATTN, "--config.tasks=a.csv#text=b,label=c,digits"): "--config.tasks=\"('a.csv#text=b,label=c', 'digits')\"",
    (ATTN, "--config.tasks=a.csv#texts=b"): "'texts=b' chooses no column. Behind # stand text=COLUMN",
    (ATTN, "--config.tasks", "shapes, digits"): "--config.tasks=\"('shapes', 'digits')\"",
    (ATTN, "--config.tasks=[shapes,'digits'"): "--config.tasks=\"('shapes', 'digits')\"",
    (ATTN, "--config.checkpoints=a.pt,b.pt"): "--config.checkpoints=\"('a.pt', 'b.pt')\"",
    (ATTN, "--config.trainable=attention,mlp"): "--config.trainable=\"('attention', 'mlp')\"",
    (ATTN, "--config.evaluate.scaling_coefs=0.1 0.2"): '--config.evaluate.scaling_coefs="(0.0, 0.05, 0.1)"',
    (ATTN, "--config.layers=0-6"): 'for the first six, --config.layers="(0, 6)"',
    (ATTN, "--config.evaluate.exct=True"): "Choices: evaluate.batch_size, evaluate.control_threshold,",
    (ATTN, "--config.task_vectors=runs/none"): "there are no task vectors in runs/none (looked at from",
    (ATTN, "--workdir=file/inside"): "file",
}


@pytest.mark.parametrize(("arguments", "message"), BAD.items())
def test_bad_input_ends_in_one_message_and_code_2(runs, capsys, arguments, message, tmp_path):
    (tmp_path / "file").write_text("")  # a directory cannot be made inside it
    assert run(*arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not runs
    assert not (tmp_path / "runs").exists()  # nothing was begun


@pytest.mark.parametrize("error", [ValueError, TypeError, FileNotFoundError, PermissionError, FloatingPointError])
def test_error_of_a_workflow_is_a_message_and_with_debug_a_traceback(error, tmp_path, monkeypatch, capsys):
    def fail(config, workdir, *, overwrite):
        raise error("task 'digts' is unknown")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entry, "workflow", lambda name: fail)
    assert run(ATTN) == 2
    shown = capsys.readouterr().err
    assert f"{error.__name__}: task 'digts' is unknown" in shown
    assert "Traceback" not in shown
    assert run(ATTN, "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_defects_keep_their_traceback_and_interruptions_their_code(tmp_path, monkeypatch, capsys):
    def stop(config, workdir, *, overwrite):
        raise KeyboardInterrupt if overwrite else AssertionError("a defect")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entry, "workflow", lambda name: stop)
    with pytest.raises(AssertionError, match="a defect"):
        run(ATTN)
    assert run(ATTN, "--overwrite") == 130
    assert "goes on" in capsys.readouterr().err


def test_signals_have_codes_of_their_own_and_leave_no_handler_behind(tmp_path, monkeypatch, capsys):
    def stop(config, workdir, *, overwrite):
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entry, "workflow", lambda name: stop)
    assert run(ATTN) == 75
    assert "goes on" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


BROKEN = {
    "x = 1": "has no attribute 'get_config'",
    "def get_config(): return None": "gives None, and no config. Let its get_config() start from",
    "def get_config(): return 1 / 0": "ZeroDivisionError",
    "def get_config(): open('absent')": "absent",
    "def get_config(": "was never closed",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("text", "message"), BROKEN.items())
def test_broken_config_file_ends_in_one_message(runs, tmp_path, capsys, monkeypatch, text, message):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # ml_collections reads a file into the last one
    (tmp_path / "broken.py").write_text(text)
    for more in [], ["--help"]:
        assert run("--config=broken.py", *more) == 2
        shown = capsys.readouterr().err
        assert message in shown and "Traceback" not in shown


def page(capsys, monkeypatch, *arguments, columns=110):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(*arguments) == 0
    return capsys.readouterr().out


def test_help_names_all_there_is_and_nothing_of_this_machine(runs, capsys, monkeypatch):
    monkeypatch.setenv("TAJAX_DATA_DIR", "/of/this/machine")
    shown = page(capsys, monkeypatch, "--help")
    for name in (*tc.WORKFLOWS, *tc.VARIANTS, *tc.REGIMES, *(path.stem for path in (ROOT / "configs").glob("*.py"))):
        assert re.search(rf"\b{name}\b", shown), name
    for flag in ("--workdir=DIR", "--overwrite", "--debug", "-h, --help", "--coordinator=HOST:PORT"):
        assert flag in shown
    for absent in (str(ROOT), "/of/this/machine", "flagfile", "undefok", "tajax.processes"):
        assert absent not in shown
    assert page(capsys, monkeypatch, "-h") == shown
    assert not runs


def test_full_help_has_every_field_and_flag(runs, capsys, monkeypatch):
    shown = page(capsys, monkeypatch, "--helpfull")
    fields = [f"--config.{name}" for name in tc.flatten(tc.default_config()) if name not in ("workflow", "variant")]
    assert not [name for name in (*fields, "--flagfile=FILE") if name not in shown]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_keeps_to_the_width_of_the_terminal(runs, capsys, monkeypatch, columns):
    lines = page(capsys, monkeypatch, "--config=attn", "--help", columns=columns).splitlines()[3:]
    assert max(map(len, lines)) <= min(columns, 110)
    assert lines == [line.rstrip() for line in lines]


def test_exit_codes_of_the_help_are_those_of_the_program(runs, capsys, monkeypatch):
    shown = page(capsys, monkeypatch, "--help")
    codes = re.findall(r"^  (\d+)  ", shown[shown.index("exit codes") :], re.M)
    meant = {0, 1, 2, processes.ENDED_WITH_ANOTHER, *interrupts.EXIT_CODES.values(), 128 + signal.SIGTERM}
    assert {int(code) for code in codes} == meant


OF_OTHER_METHODS = set(merging_options())  # task_arithmetic, which is chosen there, has none


def test_help_of_merging_has_every_method_with_its_options(runs, capsys, monkeypatch):
    shown = page(capsys, monkeypatch, "--help", "merging", columns=200)
    assert all(f"\n{name}\n" in shown for name in (*METHODS, *PREPARATIONS))
    shown = " ".join(shown.split())
    for name, row in (*METHODS.items(), *PREPARATIONS.items()):
        assert all(
            f"merging.{name}.{keyword}" in shown and option.help in shown
            for keyword, option in getattr(row, "settings", row.options).items()
        )
    chosen = page(capsys, monkeypatch, "--config=attn", "--config.merging.method=ties", "--help", columns=200)
    assert "merging.ties.density" in chosen and "merging.dare" not in chosen and "--help merging" in chosen
    trimmed = page(capsys, monkeypatch, "--config=attn", "--config.merging.prepare=trim", "--help", columns=200)
    assert "merging.trim.density" in trimmed and "merging.trim.density" not in chosen


def test_help_of_a_config_has_what_its_workflow_reads_and_names_the_rest(runs, capsys, monkeypatch):
    for name in tc.WORKFLOWS:
        arguments = ["--config=attn", f"--config.workflow={name}", "--config.control=objects", "--help"]
        if name == "task_analogy":
            arguments.append("--config.tasks=('shapes', 'colors', 'digits', 'letters')")
        table, others = page(capsys, monkeypatch, *arguments, columns=200).split("\nOther workflows read: ")
        others = others.partition("\ntajax --help merging")[0]
        rows = {line[2:].split()[0] for line in table.splitlines()[3:] if line[2:3].strip()}
        fields = tc.flatten(tc.default_config())
        read = {field for field in fields if tc.reads(name, field)} - OF_OTHER_METHODS
        assert {field for field in fields if field in rows} == read
        others = " ".join(others.split()).rstrip(".").split(", ")
        for field in set(fields) - rows - OF_OTHER_METHODS:
            assert field in others or f"{field.partition('.')[0]}.*" in others
    shown = page(capsys, monkeypatch, "--config=attn", "--help")
    assert (
        "Other workflows read: control, evaluate.control_threshold, disentanglement.*, ntk.*, curvature.*, pretrain.*."
        in shown
    )


def test_help_of_a_config_has_every_field_with_its_value_and_comment(runs, capsys, monkeypatch):
    shown = page(capsys, monkeypatch, "--config=linear:b32", "--config.finetune.remat=layers", "--help", columns=200)
    rows = {line[2:].split()[0]: line for line in shown.splitlines()[3:] if line[2:3].strip()}
    fields = {field for field in tc.flatten(tc.default_config()) if tc.reads("task_addition", field)}
    assert set(rows) >= fields - OF_OTHER_METHODS and not set(rows) & OF_OTHER_METHODS
    changed = {name for name, line in rows.items() if line.startswith("* ")}
    assert {"regime", "variant", "model", "finetune.remat", "finetune.warmup_steps"} <= changed
    assert "seed" not in changed
    assert re.search(r"finetune.remat +'layers' +one of auto, none, dots, layers", rows["finetune.remat"])


def test_variants_of_a_config_with_what_each_holds(runs, tmp_path, capsys, monkeypatch):
    for given in ("attn:help", f"{ROOT / 'configs' / 'attn.py'}:help"):
        shown = page(capsys, monkeypatch, f"--config={given}", columns=200)
        for name, fill in tc.VARIANTS.items():
            fill(config := tc.default_config())
            assert re.search(rf"^{name} +model: {config.model}\n", shown, re.M)
            assert f"{len(config.tasks)} tasks: {', '.join(config.tasks)}" in " ".join(shown.split())
    assert "200 steps a task, batches of 32" in shown and "control" not in shown
    assert "control: objects" in page(capsys, monkeypatch, "--config=negation:help", columns=200)
    only = page(capsys, monkeypatch, "--config=pretrain:help")
    assert "12000 steps" in only and "b32" not in only
    (tmp_path / "mine.py").write_text("from tajax.config import default_config as get_config\n")
    assert "takes no variant" in page(capsys, monkeypatch, "--config=mine.py:help")
    assert not runs and not (tmp_path / "runs").exists()


def test_every_field_has_a_comment():
    assert set(tc.field_comments()) >= set(tc.flatten(tc.default_config()))
    assert "WORKFLOWS" not in "".join(tc.field_comments().values())


def test_command_helps_and_fails_with_its_codes(tmp_path):
    """One real process each: the module, from another directory."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for arguments, code, text in (["--help"], 0, "python -m tajax.main --config=attn:b32"), ([], 2, "no config given"):
        command = [sys.executable, "-m", "tajax.main", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert (done.returncode, text in done.stdout + done.stderr) == (code, True)


def test_entry_point_stays_short():
    assert len((ROOT / "tajax" / "main.py").read_text().splitlines()) < 100

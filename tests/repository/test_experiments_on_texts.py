"""Every experiment takes `--benchmark=text --few`, or says why not: on tiny texts and a tiny encoder."""

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import negation
from experiments import cost, everything, protocol, summary
from experiments.disentanglement_maps import measure
from experiments.task_analogies.run import make_quadruple
from tajax import data, report, results
from tajax.config import validate, variants
from tests.workflows import members

ROOT = Path(__file__).parents[2] / "experiments"
FEW = protocol.FEW_TASKS["text"]
ON_TEXTS = sorted(
    path.parent.name
    for path in ROOT.glob("*/run.py")
    if path.parent.name
    not in (
        *("benchmarks", "pretraining", "pretraining_pilots", "scale", "training_cost"),
        "precision",  # makes its runs in processes of their own; test_experiments_of_precision.py
    )
)


class Enough(Exception):
    """Raised where an experiment would read what its runs recorded."""


class Unread(list):
    """The records of a run that nobody made."""

    def __iter__(self):
        raise Enough


@pytest.fixture
def flags(tmp_path, rng, monkeypatch):
    """The flags of every command here: tiny texts under the benchmark's names, and a tiny encoder in its place."""
    made = members.save_texts(tmp_path / "made", rng(910))
    (tmp_path / "data" / "text").mkdir(parents=True)
    for name, subject in zip((*FEW, "clinc150"), (*members.SUBJECTS, members.CONTROL), strict=True):
        shutil.copy(made / f"{subject}.npz", tmp_path / "data" / "text" / f"{name}.npz")
    model = str(members.save_bert(tmp_path / "bert", rng(911), positions=32))
    monkeypatch.setattr(protocol, "sentence_encoder", lambda options, hub_id: model)
    return [
        "--benchmark=text",
        "--few",
        "--yes",
        f"--data={tmp_path / 'data'}",
        f"--runs={tmp_path / 'runs'}",
        "--seeds",
        "3",
    ]


@pytest.fixture
def command(tmp_path, monkeypatch, flags):
    """`command(experiment, *flags)`: its module, after its command ran with tables and figures in `tmp_path`."""

    def command(name, *more):
        module = importlib.import_module(f"experiments.{name}.run")
        shutil.copy(ROOT / name / "README.md", tmp_path / "README.md")
        monkeypatch.setattr(module, "HERE", tmp_path)
        monkeypatch.setattr(sys, "argv", ["run", *flags, *more])
        module.main()

    return command


def shown(folder):
    """What a README has between the lines of the texts."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return text.partition("<!-- text -->")[2].partition("<!-- /text -->")[0]


@pytest.fixture
def short(monkeypatch):
    """Runs of two steps, and of three coefficients."""
    make_config = protocol.make_config
    fields = {"finetune.steps": 2, "evaluate.scaling_coefs": (0.0, 0.5, 1.0), "evaluate.batch_size": 20}
    monkeypatch.setattr(protocol, "make_config", lambda *args, **own: make_config(*args, **own | fields))


def test_task_addition_on_four_tasks_from_the_texts_to_the_readme(command, short, tmp_path):
    command("task_addition", "--regimes", "standard")
    assert [path.name for path in (tmp_path / "runs" / "text").iterdir()] == ["standard_few_3"]
    assert f"4 of the text tasks ({', '.join(FEW)})" in shown(tmp_path)
    kept = results.read(tmp_path / "results" / "text.jsonl")
    merged = results.find(kept, stage="task_addition", split="test")
    assert [(r["task"], r["count"]) for r in merged] == [(task, 20) for task in FEW]
    assert (tmp_path / "results" / "text.png").stat().st_size > 10_000


def test_learning_rates_are_shown_of_the_runs_that_have_ended(command, short, tmp_path, monkeypatch, capsys):
    flags = ("learning_rates", "--curves", "standard", "--rates", "1e-4")
    with pytest.raises(SystemExit):
        command(*flags, "--finished")
    assert f"no run of these rates and seeds has ended in {tmp_path / 'runs' / 'text'}" in capsys.readouterr().err
    command(*flags)
    made = shown(tmp_path)
    monkeypatch.setattr(protocol, "run_config", lambda *_: pytest.fail("made again"))
    command(*flags, "--finished")
    assert shown(tmp_path) == made != ""
    file = tmp_path / "runs" / "text" / "standard_few_lr0.0001_3" / "results.jsonl"
    *before, last = (whole := file.read_text()).splitlines(keepends=True)
    assert '"stage": "task_addition"' in last
    file.write_text("".join(before))  # a run that was stopped before its last task
    with pytest.raises(SystemExit):
        command(*flags, "--finished")
    file.write_text(whole.replace('"config_hash": "', '"config_hash": "other'))
    with pytest.raises(ValueError, match=f"{file.parent} holds a run of another config"):
        command(*flags, "--finished")


def test_maps_of_all_pairs_do_without_the_fine_ones(command, short, tmp_path):
    command("disentanglement_maps", "--regimes", "standard", "--images", "8", "--coarse")
    assert "5×5 grid on [−1, 1]² and over 6 pairs, 8 test texts a task" in shown(tmp_path)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["text.jsonl", "text_pairs.png"]


def test_training_cost_is_of_drawn_tokens(command, tmp_path):
    command("training_cost", "--regimes", "attention", "--repeats", "0", "--batch-size", "4")
    standard, attention = results.read(tmp_path / "results" / "text.jsonl")
    kernels, width, layers = 4, 16, 2
    assert (attention["trained"], attention["tokens"]) == (kernels * width * width * layers, 24)
    assert attention["flops"] < standard["flops"] and attention["memory"] < standard["memory"]
    assert "A step of 4 texts of 24 tokens, minilm" in shown(tmp_path) and "image" not in shown(tmp_path)


@pytest.mark.parametrize("name", ON_TEXTS)
def test_configs_of_an_experiment_are_valid_and_of_four_tasks(command, monkeypatch, tmp_path, name):
    made = {}

    def note(config, directory):
        validate(config)
        assert directory not in made or made[directory].to_json() == config.to_json(), directory
        made[directory] = config
        return protocol.Run(config, directory, Unread())

    def stop(*args, **fields):
        raise Enough

    monkeypatch.setattr(protocol, "_run", note)
    monkeypatch.setattr(cost, "measure", stop)
    with pytest.raises(Enough):
        command(name)
    if name == "attention_ablation":
        assert {config.layers for config in made.values()} == {None, (0, 1), (1, 2)}
    assert made
    for directory, config in made.items():
        assert directory.is_relative_to(tmp_path / "runs" / "text")
        assert (config.family, config.control, config.max_tokens) == ("text", "clinc150", 24)
        if name == "task_analogies":
            assert len(config.tasks) == 4 and "few" not in directory.name
        else:
            assert config.tasks == FEW and "few" in directory.name
        if config.regime == "posthoc":
            assert config.task_vectors.rpartition("/")[2].startswith("standard_few")
        assert {task for pair in config.disentanglement.pairs or () for task in pair} <= set(FEW)


def test_stages_of_pretraining_are_refused_for_texts(command, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("pretraining")
    assert stopped.value.code == 2 and "stages are those of the bundled model" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["everything", "--benchmark=text", "--pretraining=runs/pretrain_tiny"])
    with pytest.raises(SystemExit) as stopped:
        everything.main()
    assert stopped.value.code == 2 and "--benchmark=bundled or real" in capsys.readouterr().err


@pytest.mark.parametrize("benchmark", protocol.BENCHMARKS)
def test_few_is_for_benchmarks_that_have_few(benchmark, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "sentence_encoder", lambda options, hub_id: hub_id)
    flags = [f"--benchmark={benchmark}", "--few", f"--runs={tmp_path}"]
    parser = measure.arguments(None)
    if benchmark not in protocol.FEW_TASKS:
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args(flags)
        assert stopped.value.code == 2 and f"{benchmark} has all eight tasks alone" in capsys.readouterr().err
        return
    options = parser.parse_args(flags)
    config = protocol.make_config(options, "linear", 0)
    validate(config)
    names = protocol.FEW_TASKS[benchmark]
    assert tuple(Path(task).stem for task in config.tasks) == names
    pairs = measure.pairs(options)
    assert pairs and all(set(pair) <= set(names) for pair in pairs)
    assert protocol.tasks_in_words(options).startswith(f"4 of the {benchmark} tasks ({names[0]}, ")


def test_runs_of_few_tasks_and_of_few_among_all_do_not_meet(monkeypatch, tmp_path):
    """The first train on four tasks; the second take the vectors of a run of all."""
    monkeypatch.setattr(protocol, "_run", lambda config, directory: protocol.Run(config, directory, []))
    for flags, name, vectors in ((["--few"], "linear_few_1", None), ([], "linear_few_of_all_1", "linear_1")):
        options = protocol.arguments(None).parse_args([f"--runs={tmp_path}", *flags])
        run = protocol.finetuned_on_few(options, "linear", 1)
        assert run.config.tasks == protocol.FEW_TASKS["bundled"] and run.directory == tmp_path / "bundled" / name
        assert run.config.task_vectors == (vectors and str(tmp_path / "bundled" / vectors))


def test_the_rate_of_a_text_run_is_that_of_its_regime(flags, monkeypatch):
    monkeypatch.setattr(variants, "MINILM_RATES", {"attention": 4e-4, "linear": 3e-4})
    options = protocol.arguments(None).parse_args(flags)
    rates = {regime: protocol.make_config(options, regime, 0).finetune.learning_rate for regime in protocol.REGIMES}
    assert (rates["attention"], rates["linear"], rates["standard"]) == (4e-4, 3e-4, 1e-4)


def test_quadruples_of_texts_are_halves_of_the_classes_and_their_words_backwards(flags):
    options = protocol.arguments(None).parse_args(flags)
    name, paths = make_quadruple(options, "trec")
    assert name == "trec" and [Path(path).stem for path in paths] == [
        *("trec_first", "trec_first_reversed", "trec_second", "trec_second_reversed"),
    ]
    tasks = [data.open_task("trec", data_dir=options.data / "text"), *map(data.open_task, paths)]
    whole, a, b, c, d = tasks
    assert (a.class_names, c.class_names) == (whole.class_names[:2], whole.class_names[2:]) and a.modality == "texts"
    assert {task.templates for task in tasks} == {whole.templates}
    for split in ("train", "val", "test"):
        of = {task.origin: [task.split(split)[i] for i in range(len(task.split(split)))] for task in tasks}
        for plain, changed in ((a, b), (c, d)):
            assert plain.class_names == changed.class_names
            assert [(" ".join(text.split()[::-1]), label) for text, label in of[plain.origin]] == of[changed.origin]
        named = [(text, half.class_names[label]) for half in (a, c) for text, label in of[half.origin]]
        assert sorted(named) == sorted((text, whole.class_names[label]) for text, label in of[whole.origin])


def test_negation_of_texts_has_a_grid_that_is_closer_near_nothing():
    grid = np.array(negation.get_config("minilm").evaluate.scaling_coefs)
    assert grid[0] == 0 and grid[-1] == 1 and set(np.round(np.diff(grid), 9)) == {0.05, 0.1}
    assert 0.05 in grid and 0.55 not in grid
    assert negation.get_config("b32").evaluate.scaling_coefs[-1] == 2.0


def test_tables_of_texts_say_texts(tmp_path):
    for name in ("text", "bundled"):
        (tmp_path / "README.md").write_text(f"<!-- {name} -->\n<!-- /{name} -->\n")
        table = report.Table("Heads", ("task", "images"), (("a", "12"),), ("New images of the task.",))
        summary.write(tmp_path, name, [table], [])
        text = (tmp_path / "README.md").read_text()
        assert ("| task | texts |" in text and "New texts" in text) == (name == "text")

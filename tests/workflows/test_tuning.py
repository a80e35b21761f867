"""Settings that are chosen on validation: what is tried, what is chosen, and that nothing is done twice."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from tajax import results
from tajax.workflows import tuning

RATES = (0.0001, 0.02)


@pytest.fixture(scope="module")
def workdir(world, run):
    done = run("attn", world / "tuned", tune__learning_rate=RATES)
    assert done.code == 0, done.err
    return world / "tuned"


def merged_on_validation(place):
    records = results.find(results.read(place / "results.jsonl"), stage="task_addition", split="val")
    return np.mean([record["top1"] for record in records])


def bits(place):
    return {file.name: {k: v.tobytes() for k, v in load_file(file).items()} for file in place.glob("*.safetensors")}


def test_the_best_on_validation_is_taken_with_its_vectors(workdir):
    runs = {rate: workdir / "tuning" / f"learning_rate={rate:g}" for rate in RATES}
    accuracies = {rate: merged_on_validation(place) for rate, place in runs.items()}
    best = max(RATES, key=lambda rate: accuracies[rate])
    assert len(set(accuracies.values())) > 1
    records = results.read(workdir / "results.jsonl")
    tried = results.find(records, stage="tuning")
    assert {record["settings"]["learning_rate"]: record["merged_top1"] for record in tried} == pytest.approx(accuracies)
    (chosen,) = results.find(tried, chosen=True)
    assert chosen["settings"] == {"learning_rate": best}
    assert chosen["at_the_end"] == (["learning_rate"] if best in (min(RATES), max(RATES)) else [])
    assert all(record["seconds"] > 0 for record in tried)
    assert json.loads((workdir / "config.json").read_text())["finetune"]["learning_rate"] == best
    assert bits(workdir / "task_vectors") == bits(runs[best] / "task_vectors")
    assert not results.find(records, stage="finetune")  # nothing was trained again
    assert merged_on_validation(workdir) == accuracies[best]
    assert "| 0.0001 |" in (workdir / "report.md").read_text()
    assert not any((place / "merged").exists() for place in runs.values()) and (workdir / "merged").exists()


def test_the_same_command_again_measures_nothing(workdir, run):
    files = {path: path.stat().st_mtime_ns for path in workdir.rglob("results.jsonl")}
    assert run("attn", workdir, tune__learning_rate=RATES).code == 0
    assert files == {path: path.stat().st_mtime_ns for path in workdir.rglob("results.jsonl")}


def test_an_interrupted_search_goes_on_from_the_candidate_it_was_in(workdir, run, tmp_path, monkeypatch):
    append, appended = results.append, []

    def append_and_die(path, record):
        append(path, record)
        appended.append(path.parent.name)
        if path.parent.name == "learning_rate=0.02" and record["stage"] == "single_task":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "append", append_and_die)
        assert run("attn", tmp_path / "run", tune__learning_rate=RATES).code == 130
    assert set(appended) == {"learning_rate=0.0001", "learning_rate=0.02"}
    assert run("attn", tmp_path / "run", tune__learning_rate=RATES).code == 0
    assert bits(tmp_path / "run" / "task_vectors") == bits(workdir / "task_vectors")


def test_candidates_of_another_config_or_on_other_data_are_not_taken(workdir, run, world, tmp_path):
    """Of a search that was stopped before the run itself had begun, so that nothing else would tell."""
    shutil.copytree(workdir / "tuning", tmp_path / "run" / "tuning")
    refused = run("attn", tmp_path / "run", tune__learning_rate=RATES, finetune__steps=4)
    assert refused.code == 2 and "finetune.steps: 3 → 4" in refused.err, refused.err
    for place in (tmp_path / "run" / "tuning").iterdir():
        kept = json.loads((place / "inputs.json").read_text())
        kept["tasks"]["pets"]["train"] = "of other images"
        (place / "inputs.json").write_text(json.dumps(kept))
    refused = run("attn", tmp_path / "run", tune__learning_rate=RATES)
    assert refused.code == 2 and "tuned on other inputs: tasks 'pets'" in refused.err, refused.err


def test_rate_and_strength_are_tried_together(run, tmp_path):
    grid = {"tune__learning_rate": (0.01,), "tune__penalty_strength": (0, 0.5)}
    done = run("linear", tmp_path / "run", regime="tau_jp", workflow="geometry", **grid)
    assert done.code == 0, done.err
    tried = results.find(results.read(tmp_path / "run" / "results.jsonl"), stage="tuning")
    assert {tuple(record["settings"].values()) for record in tried} == {(0.01, 0), (0.01, 0.5)}
    assert results.find(results.read(tmp_path / "run" / "results.jsonl"), stage="geometry")


def test_a_hundred_percent_twice_takes_the_first(tmp_path, monkeypatch):
    assert tuning.candidates.__doc__
    monkeypatch.setattr(tuning, "_measured", lambda place, config: True)
    monkeypatch.setattr(tuning, "_read", lambda settings, place: tuning.Candidate(settings, place, 1.0, 1.0, 2.0))
    from tajax.config import default_config

    config = default_config()
    config.tune.learning_rate = (3e-5, 1e-5)
    chosen, tried = tuning.tuned(config, tmp_path)
    assert chosen.finetune.learning_rate == 3e-5 and tried[0].settings == {"learning_rate": 3e-5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tune__learning_rate": (0.1, 0.1)}, "tune.learning_rate is (0.1, 0.1), want different numbers"),
        ({"tune__learning_rate": (0.1, -1.0)}, "each a finite number above 0"),
        ({"tune__learning_rate": ("x",)}, "want different numbers"),
        ({"tune__penalty_strength": (1.0,)}, "regime 'attention' has no penalty"),
        ({"tune__learning_rate": (0.1,), "task_vectors": "somewhere"}, "nothing is trained"),
        ({"tune__learning_rate": (0.1,), "workflow": "curvature"}, "workflow 'curvature' trains nothing"),
    ],
)
def test_what_cannot_be_tried_is_refused(fields, message, run, tmp_path):
    refused = run("attn", tmp_path / "run", **fields)
    assert refused.code == 2 and message in refused.err, refused.err
    assert not (tmp_path / "run").exists()

"""Runs that cannot go on: what they say, and that they keep nothing half done and touch nothing of others."""

import huggingface_hub
import numpy as np
import pytest

from tajax import finetune
from tajax.config import default_config
from tajax.workflows.workdir import claim
from tests.workflows.conftest import contents

BAD = {  # overrides, and what the message has to hold
    "regime": (
        {"regime": "atention"},
        "unknown regime 'atention'",
        "Did you mean 'attention'?",
        "standard, attention, ",
    ),
    "rule": (
        {"trainable": "atention"},
        "trainable rule 'atention' matches none",
        "Did you mean 'attention'?",
        "biases",
    ),
    "mask": ({"trainable": "attn/kwery/kernel"}, "matches none", "Nearest paths: ", "blocks/attn/query/kernel"),
    "task": ({"tasks": "('digts',)"}, "unknown task 'digts'", "Did you mean 'digits'", "shapes, "),
    "path": ({"tasks": "('./nothing.npz',)"}, "nothing.npz does not exist"),
    "hub id": (
        {"model": "openai/clip-vit-base-patch32"},
        "No path here is 'openai/clip-vit-base-patch32'. Cannot fetch",
        "hf download",
    ),
    "model": ({"model": "tinny"}, "No model 'tinny'", "'tiny'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_its_name_before_anything_is_kept(case, run, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    overrides, *fragments = BAD[case]
    refused = run("attn", tmp_path / "run", **overrides)
    assert refused.code == 2
    assert not [fragment for fragment in fragments if fragment not in refused.err], refused.err
    assert not (tmp_path / "run").exists()


def test_every_task_can_be_trained_before_the_first_one_is(run, world, tmp_path, monkeypatch):
    """One epoch of the second task is a single step, which leaves no room for the warm-up of a b32 config."""
    few = dict(np.load(world / "tools.npz"))
    few |= {name: few[name][:8] for name in ("train_images", "train_labels")}
    np.savez(tmp_path / "few.npz", **few)
    monkeypatch.setattr(finetune, "finetune", None)
    overrides = {"finetune.epochs": 1, "finetune.steps": None, "finetune.warmup_steps": 1}
    tasks = (str(world / "pets.npz"), str(tmp_path / "few.npz"))
    refused = run("attn:b32", tmp_path / "run", tasks=tasks, **overrides)
    assert refused.code == 2
    assert "finetune.warmup_steps is 1, but the run has 1 steps" in refused.err


def test_nonfinite_loss_stops_with_step_task_and_learning_rate(run, tmp_path, monkeypatch):
    def step(state, pretrained, head, batch, data):
        return state._replace(step=state.step + 1), {"loss": 1.0 if int(state.step) == 0 else float("nan"), "top1": 0.5}

    monkeypatch.setattr(finetune, "make_train_step", lambda *arguments, **options: step)
    stopped = run("attn", tmp_path / "run")
    assert stopped.code == 2
    assert "NonFiniteLossError: the loss is nan at step 2 of task 'pets', learning rate 0.0075." in stopped.err
    assert not list((tmp_path / "run").glob("task_vectors/*"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"results.jsonl": ""}, "holds results without a config.json"),
        ({"config.json": "{"}, "config.json is no config"),
        ({"config.json": "[1]"}, "config.json is no config"),
    ],
)
def test_directory_of_something_else_is_left_alone(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises((ValueError, FileExistsError), match=message):
        claim(default_config(), tmp_path)
    assert contents(tmp_path) == before


def test_run_with_patterns_is_its_own_and_their_order_counts(tmp_path):
    config = default_config()
    config.trainable = {"blocks/.*": False, ".*kernel": True, ".*": False}
    claim(config, tmp_path)
    claim(config, tmp_path)
    config.trainable = {".*kernel": True, "blocks/.*": False, ".*": False}
    with pytest.raises(FileExistsError, match="trainable"):
        claim(config, tmp_path)


def test_more_devices_than_present_are_refused_before_anything_is_written(run, world):
    refused = run("attn", world / "many", devices=99)
    assert refused.code == 2
    assert "99 devices asked for, but this process has" in refused.err
    assert not (world / "many").exists()

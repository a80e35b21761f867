"""Accuracies of zero, which nothing can be related to: the run says so, ends, and shows a dash."""

import numpy as np
import pytest

from tajax import data, models, results
from tajax.data.preprocess import normalize
from tests.workflows.conftest import TASKS


@pytest.fixture(scope="module")
def always_wrong(world):
    """A task whose validation labels are never what the pre-trained model says."""
    clip, name = models.load(world / "clip"), "tools"
    with np.load(world / f"{name}.npz") as file:
        arrays = dict(file)
    task = data.open_task(world / f"{name}.npz")
    head = models.zero_shot_head(clip, task.class_names, task.templates)
    images = normalize(arrays["val_images"], clip.preprocessing)
    logits = np.asarray(clip.encode_image(clip.params["image"], images)) @ np.asarray(head.weights)
    (world / "wrong").mkdir()
    np.savez(world / "wrong" / f"{name}.npz", **arrays | {"val_labels": 1 - logits.argmax(1)})
    return world / "wrong" / f"{name}.npz"


HARDLY = {"finetune.learning_rate": 1e-12}  # trained models answer as the pre-trained one does


def test_a_task_that_is_never_right_has_no_ratio_and_no_say(run, world, always_wrong):
    workdir = world / "without_ratio"
    tasks = (str(world / "pets.npz"), str(always_wrong))
    done = run("attn", workdir, "--quiet", tasks=tasks, **HARDLY)
    assert done.code == 0, done.err
    assert "warning: tools: the fine-tuned model is right on none of the 12 val images" in done.err
    assert "warning: α is tuned on the other tasks, without tools." in done.err
    added = {
        (r["task"], r["split"]): r for r in results.read(workdir / "results.jsonl") if r["stage"] == "task_addition"
    }
    assert set(added) == {(task, split) for task in TASKS for split in ("val", "test")}
    assert added["tools", "val"]["normalized_top1"] is None
    assert added["pets", "val"]["normalized_top1"] == 1.0
    report = (workdir / "report.md").read_text()
    (row,) = (line for line in report.splitlines() if line.startswith("| tools |"))
    assert row.endswith("| – |")
    assert "right on none of the 12 val images" in report and "without tools" in report
    assert (workdir / "report.html").exists() and (workdir / "merged").is_dir()


def test_where_no_task_has_a_ratio_accuracies_themselves_decide(run, world, always_wrong):
    done = run("attn", world / "no_ratio", tasks=f"('{always_wrong}',)", **HARDLY)
    assert done.code == 0, done.err
    assert "No task has a normalised validation accuracy: α is tuned on the accuracies as they are." in done.err


def test_a_control_that_is_never_right_limits_nothing(run, world, always_wrong):
    workdir = world / "without_limit"
    tasks = f"('{world / 'pets.npz'}',)"
    done = run("negation", workdir, tasks=tasks, control=always_wrong, **HARDLY)
    assert done.code == 0, done.err
    said = "tools: the pre-trained model is right on none of the 12 val images of this control, so every α keeps it."
    assert f"warning: {said}" in done.err and said in (workdir / "report.md").read_text()

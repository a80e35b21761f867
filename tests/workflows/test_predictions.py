"""Predictions of three models side by side: the accuracies of the run, and examples that are what they say."""

import io

import numpy as np
import pytest
from PIL import Image

from tajax import results
from tajax.workflows import predictions
from tests.workflows.conftest import TASKS


@pytest.fixture(scope="module", params=["attn", "linear"])
def recorded(request, world, run):
    """Task addition with its predictions: its records, those of the predictions, and the directory."""
    workdir = world / f"predictions_{request.param}"
    for _ in range(2):  # the second finds all of it done
        done = run(request.param, workdir, save__merged=False)
        assert done.code == 0, done.err
    records = results.read(workdir / "results.jsonl")
    return records, results.find(records, stage="predictions"), workdir


def test_accuracies_are_those_that_were_measured(recorded):
    records, found, _ = recorded
    assert [r["task"] for r in found] == list(TASKS)
    for record in found:
        for model, stage in (("pretrained", "zero_shot"), ("single", "single_task"), ("merged", "task_addition")):
            (measured,) = results.find(records, stage=stage, task=record["task"], split="test")
            assert record["top1"][model] == pytest.approx(measured["top1"], abs=1e-6), model


def test_counts_are_of_every_image_once(recorded):
    for record in recorded[1]:
        (both, single), (merged, neither) = record["correctness"]
        assert both + single + merged + neither == record["count"] == 20
        assert both + single == round(20 * record["top1"]["single"])
        assert both + merged == round(20 * record["top1"]["merged"])
        assert sum(count for _, _, count in record["confusion"]) == 20
        classes = range(len(TASKS[record["task"]]))
        assert all(a in classes and b in classes for a, b, _ in record["confusion"])
        assert record["classes"] == list(TASKS[record["task"]])


def test_examples_are_small_pictures_of_the_kind_they_name(recorded):
    _, found, workdir = recorded
    kept = [example for record in found for example in record["examples"]]
    assert kept
    for example in kept:
        right = [example[model] == example["label"] for model in predictions.MODELS]
        assert predictions.kind_of(right) == example["kind"]
        with Image.open(workdir / example["file"]) as picture:
            assert picture.format == "PNG" and picture.size == (8, 8)
    assert len(kept) == len(list((workdir / predictions.FOLDER).rglob("*.png")))


def test_summary_by_hand():
    labels = np.array([0, 1, 2, 2])
    predicted = np.array([[0, 0, 0, 0], [0, 1, 2, 1], [0, 2, 2, 2]])
    found = predictions.summary(labels, predicted, 3)
    assert found["top1"] == {"pretrained": 0.25, "single": 0.75, "merged": 0.75}
    assert found["correctness"] == [[2, 1], [1, 0]]
    assert found["confusion"] == [[0, 0, 1], [1, 2, 2], [2, 2, 1]]


def test_large_images_become_small_and_small_ones_stay():
    large = predictions.thumbnail(np.random.default_rng(0).integers(256, size=(600, 300, 3), dtype=np.uint8))
    with Image.open(io.BytesIO(large)) as picture:
        assert picture.size == (64, 128)
    tiny = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    with Image.open(io.BytesIO(predictions.thumbnail(tiny))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), tiny)

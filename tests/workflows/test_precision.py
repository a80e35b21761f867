"""A run in another precision: what it computes in, what it keeps in float32, and that it says so."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import data, models, results, tensor_files
from tajax.data.preprocess import normalize
from tajax.report import runs
from tajax.report.facts import of_run
from tests.workflows.conftest import TASKS


@pytest.fixture(scope="module")
def workdir(world, run):
    done = run("linear", world / "narrow", precision="bf16", evaluate__exact=True)
    assert done.code == 0, done.err
    assert "precision bf16: products of bfloat16" in done.out + done.err
    return world / "narrow"


def test_models_compute_in_bfloat16_with_heads_of_float32(workdir, world):
    wide = models.load(world / "clip")
    clip = dataclasses.replace(wide, dtype=jnp.bfloat16)
    records, losses = results.read(workdir / "results.jsonl"), {}
    for name in TASKS:
        task = data.open_task(world / f"{name}.npz")
        (batch,) = data.load(task, "test", batch_size=20, preprocessing=clip.preprocessing)
        pixels = normalize(jnp.asarray(batch.inputs), clip.preprocessing)
        weights = np.asarray(models.zero_shot_head(wide, task.class_names, task.templates).weights, np.float64)
        (record,) = results.find(records, stage="zero_shot", task=name, split="test")
        for one in (clip, wide):
            x = np.asarray(jax.jit(one.encode_image)(clip.params["image"], pixels), np.float64)
            logits = x / np.linalg.norm(x, axis=1, keepdims=True) @ weights
            nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), batch.label]
            losses[name, one.dtype] = abs(record["loss"] / nats.mean() - 1)
        assert losses[name, clip.dtype] < 1e-5, losses
    assert max(losses[name, wide.dtype] for name in TASKS) > 1e-4, losses


def test_what_is_kept_is_float32_and_the_precision_is_recorded(workdir):
    for name in TASKS:
        tensors, _ = tensor_files.read(workdir / "task_vectors" / f"{name}.safetensors")
        assert {leaf.dtype for leaf in tensors.values()} == {np.dtype(np.float32)}
        rounded = [np.mean(leaf.astype(jnp.bfloat16).astype(np.float32) == leaf) for leaf in tensors.values()]
        assert np.mean(rounded) < 0.5  # nor is it bfloat16 in float32's clothes
    (about,) = results.find(results.read(workdir / "results.jsonl"), stage="run")
    assert (about["precision"], about["products"]) == ("bf16", "bfloat16")
    assert json.loads((workdir / "config.json").read_text())["precision"] == "bf16"
    assert dict(of_run(runs.read(workdir)[0]))["precision"] == "bf16: products of bfloat16"


def test_a_run_does_not_go_on_in_another_precision(workdir, run):
    refused = run("linear", workdir, precision="highest", evaluate__exact=True)
    assert refused.code == 2 and "precision" in refused.err, refused.err


def test_an_unknown_precision_is_refused_before_anything_is_loaded(run, tmp_path):
    refused = run("linear", tmp_path / "no", precision="fp16", model="there is no such model")
    assert refused.code == 2 and "precision 'fp16'" in refused.err and "highest, default, bf16" in refused.err

"""Runs that are linearised through the norm of the features, recomputed from their files alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import apply_task_vector, combine, data, models, results, vector_files
from tajax.data.preprocess import normalize
from tajax.linearization import linearize
from tests.workflows.conftest import TASKS


@pytest.fixture(scope="module")
def workdir(world, run):
    done = run("linear", world / "through", linearize_through_norm=True, evaluate__exact=True)
    assert done.code == 0, done.err
    return world / "through"


def test_accuracies_are_those_of_the_expansion_of_unit_vectors(workdir, world):
    clip = models.load(world / "clip")
    theta0, records = clip.params["image"], results.read(workdir / "results.jsonl")

    def unit(params, pixels):
        features = clip.encode_image(params, pixels)
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    model = jax.jit(linearize(unit, theta0))
    taus = [
        vector_files.load_task_vector(workdir / "task_vectors" / f"{name}.safetensors", theta0)[0] for name in TASKS
    ]
    assert np.linalg.norm(taus[0]["ln_post"]["scale"]) > 0
    for name, tau in zip(TASKS, taus, strict=True):
        task = data.open_task(world / f"{name}.npz")
        (batch,) = data.load(task, "test", batch_size=20, preprocessing=clip.preprocessing)
        pixels = normalize(jnp.asarray(batch.inputs), clip.preprocessing)
        weights = np.asarray(models.zero_shot_head(clip, task.class_names, task.templates).weights, np.float64)
        for stage, vector in {"zero_shot": None, "single_task": tau, "task_addition": combine(taus)}.items():
            (record,) = results.find(records, stage=stage, task=name, split="test")
            params = theta0 if vector is None else apply_task_vector(theta0, vector, record.get("scaling_coef", 1.0))
            logits = np.asarray(model(params, pixels), np.float64) @ weights  # not normalised again
            losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), batch.label]
            assert record["top1"] == (logits.argmax(1) == batch.label).mean(), stage
            np.testing.assert_allclose(record["loss"], losses.mean(), rtol=1e-4, err_msg=stage)


def test_vectors_of_one_expansion_are_refused_in_the_other(workdir, run, tmp_path):
    path = workdir / "task_vectors" / "pets.safetensors"
    assert vector_files.read_metadata(path)["through_norm"] is True
    for source in ({"task_vectors": workdir}, {"checkpoints": (f"{workdir}/task_vectors/{{task}}.safetensors",)}):
        refused = run("linear", tmp_path / "other", **source)
        assert refused.code == 2 and "trained in the expansion through the norm" in refused.err
        assert "--config.linearize_through_norm=True" in refused.err
    done = run("linear", tmp_path / "same", task_vectors=workdir, linearize_through_norm=True, evaluate__exact=True)
    assert done.code == 0, done.err
    one, other = (
        [record["top1"] for record in results.find(results.read(place / "results.jsonl"), stage="task_addition")]
        for place in (workdir, tmp_path / "same")
    )
    assert one == other


@pytest.mark.parametrize("regime", ["standard", "attention"])
def test_it_is_refused_where_nothing_is_linearised(regime, run, tmp_path):
    refused = run("standard", tmp_path / "no", regime=regime, linearize_through_norm=True)
    assert refused.code == 2 and "linearize_through_norm is for regimes that are linearised" in refused.err

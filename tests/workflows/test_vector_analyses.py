"""Kernel behaviour and geometry of vectors on disk, against the definitions from the files alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import apply_task_vector, cosine_similarity, data, models, norm, results, trees, vector_files
from tajax.data.preprocess import normalize
from tajax.linearization import linearize
from tests.workflows.conftest import TASKS, contents

COEFS = (0.0, 0.5, 1.0, 3.0)


@pytest.fixture(scope="module")
def vectors(world, run):
    """The directory of a run with attention vectors, and them."""
    done = run("attn", world / "vectors", workflow="single_task")
    assert done.code == 0, done.err
    theta0 = models.load(world / "clip").params["image"]
    files = {name: world / "vectors" / "task_vectors" / f"{name}.safetensors" for name in TASKS}
    return world / "vectors", {name: vector_files.load_task_vector(file, theta0)[0] for name, file in files.items()}


def measured(records, name):
    """By coefficient."""
    return {r["scaling_coef"]: r for r in results.find(records, stage="kernel_behaviour", task=name)}


@pytest.mark.parametrize("config", ["attn", "posthoc"])  # the regime decides nothing here
def test_kernel_behaviour_is_the_definition_on_every_test_image(config, vectors, world, run, tmp_path):
    source, taus = vectors
    fields = {"workflow": "kernel_behaviour", "task_vectors": source, "evaluate.scaling_coefs": COEFS}
    done = run(config, tmp_path / "run", **fields)
    assert done.code == 0, done.err
    records = results.read(tmp_path / "run" / "results.jsonl")
    clip = models.load(world / "clip")
    theta0 = clip.params["image"]
    kinds = [jax.jit(clip.encode_image), jax.jit(linearize(clip.encode_image, theta0))]
    for name, tau in taus.items():
        task = data.open_task(world / f"{name}.npz")
        (batch,) = data.load(task, "test", batch_size=20, preprocessing=clip.preprocessing)
        head = np.asarray(models.zero_shot_head(clip, task.class_names, task.templates).weights)
        images = normalize(jnp.asarray(batch.inputs), clip.preprocessing)
        origin = np.asarray(kinds[0](theta0, images), np.float64)
        found = measured(records, name)
        assert tuple(found) == COEFS
        for alpha, record in found.items():
            theta = apply_task_vector(theta0, tau, alpha)
            model, linear = (np.asarray(kind(theta, images), np.float64) for kind in kinds)
            classes, linear_classes = ((y @ head).argmax(axis=1) for y in (model, linear))
            assert record["top1"] == np.mean(classes == batch.label)
            assert record["linearized_top1"] == np.mean(linear_classes == batch.label)
            assert record["agreement"] == np.mean(classes == linear_classes)
            assert (record["count"], record["split"]) == (20, "test")
            np.testing.assert_allclose(record["norm"], alpha * norm(tau), rtol=1e-6)
            moved = np.linalg.norm(model - origin)
            gap = np.linalg.norm(model - linear) / moved if alpha else 0
            np.testing.assert_allclose(record["relative_gap"], gap, rtol=1e-3)  # float32 features
            np.testing.assert_allclose(record["relative_movement"], moved / np.linalg.norm(origin), rtol=1e-4)
        assert found[3.0]["relative_gap"] > 0.05
    assert "Kernel behaviour on test at θ₀ + 1 τ" in done.out
    before = contents(tmp_path / "run")["results.jsonl"]
    assert run(config, tmp_path / "run", **fields).code == 0
    assert contents(tmp_path / "run")["results.jsonl"] == before  # nothing is measured twice


def test_features_that_overflow_are_named(vectors, run, tmp_path):
    fields = {"workflow": "kernel_behaviour", "task_vectors": vectors[0], "evaluate.scaling_coefs": (0.0, 1e38)}
    refused = run("attn", tmp_path / "run", **fields)
    assert refused.code == 2
    assert "at coefficient 1e+38 the features of task 'pets' are not finite" in refused.err


def test_geometry_is_that_of_the_files(vectors, world, run, tmp_path):
    source, taus = vectors
    done = run("attn", tmp_path / "run", workflow="geometry", task_vectors=source)
    assert done.code == 0, done.err
    records = {r["module"]: r for r in results.read(tmp_path / "run" / "results.jsonl") if r["stage"] == "geometry"}
    kernels = [f"blocks/attn/{name}" for name in ("key", "out", "query", "value")]
    assert list(records) == ["all", "blocks", *kernels]  # nothing else moved
    theta0, (a, b) = models.load(world / "clip").params["image"], taus.values()
    assert records["all"]["tasks"] == list(TASKS)
    np.testing.assert_allclose(records["all"]["norms"], [norm(a), norm(b)], rtol=1e-6)
    np.testing.assert_allclose(records["all"]["pretrained_norm"], norm(theta0), rtol=1e-6)
    cosine = cosine_similarity(a, b)
    np.testing.assert_allclose(records["all"]["cosines"], [[1, cosine], [cosine, 1]], rtol=1e-5, atol=1e-6)
    assert records["all"]["parameters"] == trees.count_params(theta0)
    assert records["blocks"]["parameters"] == trees.count_params(theta0["blocks"])
    for module, layer in itertools.product(kernels, range(2)):
        parts = [trees.flatten_paths(t)[f"{module}/kernel"][layer].ravel() for t in (a, b)]
        np.testing.assert_allclose(
            np.array(records[module]["layer_norms"])[:, layer], jnp.linalg.norm(jnp.stack(parts), axis=1), rtol=1e-5
        )
        np.testing.assert_allclose(
            records[module]["layer_cosines"][layer], cosine_similarity(*parts), rtol=1e-4, atol=1e-6
        )
    squares = sum(np.square(records[module]["layer_norms"]) for module in kernels)
    np.testing.assert_allclose(np.square(records["blocks"]["layer_norms"]), squares, rtol=1e-5)
    assert (
        "Cosines between task vectors" in done.out
        and "| blocks/attn/query |" in (tmp_path / "run" / "report.md").read_text()
    )
    before = contents(tmp_path / "run")["results.jsonl"]
    assert run("attn", tmp_path / "run", workflow="geometry", task_vectors=source).code == 0
    assert contents(tmp_path / "run")["results.jsonl"] == before


def test_reused_vectors_are_counted_as_they_were_trained(vectors, run, tmp_path):
    """The rule of the run that reuses them says nothing of them, and nobody has trained them there."""
    source, taus = vectors
    done = run("standard", tmp_path / "run", workflow="geometry", task_vectors=source)
    assert done.code == 0, done.err
    moved = sum(np.size(leaf) for leaf in trees.flatten_paths(taus["pets"]).values() if np.any(leaf))
    assert f"moved by reused vectors: {moved:,} of " in done.err and "trained" not in done.err
    assert f"Random directions of the {moved:,} parameters" in done.out
    (record,) = results.find(results.read(tmp_path / "run" / "results.jsonl"), stage="run")
    assert (record["vectors"], record["trained_parameters"]) == ("reused", moved)

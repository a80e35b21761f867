"""Curvature: files of factors, made once, held against the features of the images that they are of."""

import jax.numpy as jnp
import numpy as np
import pytest

from tajax import data, encoders, results
from tajax.curvature.files import load_factors, read_about
from tests.workflows.conftest import TASKS, contents


def curvature(run, workdir, *flags, **fields):
    return run("standard", workdir, *flags, **{"workflow": "curvature", "curvature__images": 10} | fields)


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("curvature") / "run"
    done = curvature(run, workdir)
    assert done.code == 0, done.err
    return workdir, done


def test_factors_are_those_of_the_training_images_and_recorded(made, world):
    workdir, done = made
    encoder = encoders.load(str(world / "clip"))
    records = results.find(results.read(workdir / "results.jsonl"), stage="curvature")
    assert [record["task"] for record in records] == list(TASKS)
    for record in records:
        path = workdir / "curvature" / f"{record['task']}.safetensors"
        factors, about = load_factors(path, encoder.params)
        task = data.open_task(world / f"{record['task']}.npz")
        images = data.sample(task, "train", 10, seed=0, inputs=encoder.inputs)
        features = np.asarray(encoder.apply(encoder.params, jnp.asarray(images)), np.float64)
        np.testing.assert_allclose(record["feature_norm"], np.sqrt(np.mean(np.sum(features**2, axis=1))), rtol=1e-5)
        # f = Pᵀa for the projection P and its inputs a, so that PᵀAP = E ffᵀ; float32 sums of ten
        projection = np.asarray(encoder.params["projection"]["kernel"], np.float64)
        a = np.asarray(factors.kronecker["projection/kernel"].inputs[0], np.float64)
        np.testing.assert_allclose(projection.T @ a @ projection, features.T @ features / 10, rtol=1e-3, atol=1e-3)
        assert (about.images, about.through_norm, about.trainable) == (10, False, "all")
        assert record["megabytes"] == path.stat().st_size / 1e6
        assert record["rows"] == [] and "class_embedding" in record["gram"]  # so few positions have a full matrix
        assert "blocks/attn/query/kernel + blocks/attn/query/bias" in record["kronecker"]
    assert "Curvature" in done.out and "pets" in done.out


def test_a_finished_run_is_left_alone_and_one_that_was_stopped_goes_on(run, made, tmp_path):
    workdir, _ = made
    before = contents(workdir / "curvature")
    assert curvature(run, workdir).code == 0
    assert contents(workdir / "curvature") == before
    other = tmp_path / "run"
    assert curvature(run, other).code == 0
    lines = (other / "results.jsonl").read_text().splitlines()
    (other / "results.jsonl").write_text("\n".join(line for line in lines if '"tools"' not in line) + "\n")
    kept = contents(other / "curvature")
    assert curvature(run, other).code == 0
    assert contents(other / "curvature") == kept  # the file was there: read, not made
    again = results.find(results.read(other / "results.jsonl"), stage="curvature")
    assert [record["task"] for record in again] == list(TASKS)
    for name, (_, content) in before.items():
        assert (other / "curvature" / name).read_bytes()[-1000:] == content[-1000:]  # the same bits; seconds differ


def test_damaged_and_foreign_files_are_refused_by_name(run, world, tmp_path):
    workdir = tmp_path / "run"
    assert curvature(run, workdir).code == 0
    pets, tools = (workdir / "curvature" / f"{name}.safetensors" for name in TASKS)
    whole = pets.read_bytes()
    pets.write_bytes(whole[:-100])
    refused = curvature(run, workdir)
    assert refused.code == 2 and str(pets) in refused.err and "--overwrite" in refused.err
    pets.write_bytes(tools.read_bytes())
    refused = curvature(run, workdir)
    assert refused.code == 2 and "made for another task: 'tools'" in refused.err
    pets.unlink()
    refused = curvature(run, workdir)
    assert refused.code == 2 and f"{pets} is gone" in refused.err
    assert curvature(run, workdir, "--overwrite").code == 0 and pets.exists()
    vector = tmp_path / "vector.safetensors"
    assert run("attn", tmp_path / "other", workflow="single_task").code == 0
    vector = tmp_path / "other" / "task_vectors" / "pets.safetensors"
    with pytest.raises(ValueError, match="holds no curvature of tajax"):
        read_about(vector)


def test_only_trained_leaves_have_factors_and_features_may_go_through_their_norm(run, world, tmp_path):
    assert (
        curvature(run, tmp_path / "run", trainable="attention", regime="linear", linearize_through_norm=True).code == 0
    )
    factors, about = load_factors(
        tmp_path / "run" / "curvature" / "pets.safetensors", encoders.load(str(world / "clip")).params
    )
    assert {name.split("/")[1] for name in factors.kronecker} == {"attn"} and not factors.gram
    assert about.through_norm and about.trainable == "attention"
    np.testing.assert_allclose(factors.feature_square, 1, rtol=1e-5)

"""The workflow of disentanglement maps, from vectors on disk to records, against the definition."""

import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import apply_task_vector, combine, data, models, results, vector_files
from tajax.data.preprocess import normalize
from tajax.linearization import linearize
from tests.workflows.conftest import TASKS, contents

COEFS = (-1.0, 0.0, 0.5, 2.0)
INSIDE = [0, 1, 2]


@pytest.fixture(scope="module")
def trained(world, run):
    """Vectors of both tasks, far enough from zero to change predictions."""
    done = run("standard", world / "trained", workflow="single_task")
    assert done.code == 0, done.err
    return world / "trained"


@pytest.fixture(scope="module")
def mapped(run, trained, world):
    """`mapped(config)`: the records of the maps of the trained vectors, in the regime of that config."""

    def mapped(config, workdir, **overrides):
        fields = {"workflow": "disentanglement", "task_vectors": trained, "disentanglement.coefs": COEFS}
        return run(config, workdir, **{**fields, **overrides})

    return mapped


def softmax(z):
    return np.exp(z - z.max(-1, keepdims=True)) / np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)


def oracle(world, trained, linearized, split="test", rows=slice(None)):
    """Terms [2, 2, A, A] by both distances and own curves [2, 2, A+1], one whole model a point, in NumPy."""
    clip = models.load(world / "clip")
    theta0, names = clip.params["image"], list(TASKS)
    files = [trained / "task_vectors" / f"{name}.safetensors" for name in names]
    taus = [vector_files.load_task_vector(file, theta0)[0] for file in files]
    encode = jax.jit(linearize(clip.encode_image, theta0) if linearized else clip.encode_image)
    terms, own = np.zeros((2, 2, len(COEFS), len(COEFS))), np.zeros((2, 2, len(COEFS) + 1))
    for t, name in enumerate(names):
        task = data.open_task(world / f"{name}.npz")
        (batch,) = data.load(task, split, batch_size=len(task.split(split)), preprocessing=clip.preprocessing)
        head = np.asarray(models.zero_shot_head(clip, task.class_names, task.templates).weights, np.float64)
        images = normalize(jnp.asarray(batch.inputs[rows]), clip.preprocessing)

        def features(*coefs, images=images):
            return np.asarray(encode(apply_task_vector(theta0, combine(taus, list(coefs))), images), np.float64)

        def distances(y, z, head=head):
            p, q = softmax(y), softmax(z)
            return np.mean((y @ head).argmax(-1) != (z @ head).argmax(-1)), np.mean(((p - q) * np.log(p / q)).sum(-1))

        for (i, a), (j, b) in itertools.product(enumerate(COEFS), repeat=2):
            alone = features(a, 0.0) if t == 0 else features(0.0, b)
            terms[:, t, i, j] = distances(alone, features(a, b))
        for i, a in enumerate((*COEFS, 1.0)):
            own[:, t, i] = distances(features(0.0, 0.0), features(*a * np.eye(2)[t]))
    return SimpleNamespace(terms=terms, own=own)


@pytest.mark.parametrize("config", ["standard", "posthoc"])
def test_records_are_the_definition_and_are_made_once(config, mapped, trained, world, tmp_path):
    done = mapped(config, tmp_path / "maps")
    assert done.code == 0, done.err
    records = results.read(tmp_path / "maps" / "results.jsonl")
    maps = results.find(records, stage="disentanglement", tasks=list(TASKS))
    assert [r["distance"] for r in maps] == ["prediction", "symmetric_kl"]
    assert len(maps) == len(records) - 1  # beside the record of the run
    want = oracle(world, trained, linearized=config == "posthoc")
    assert want.terms[:, :, INSIDE][..., INSIDE].max(axis=(1, 2, 3)).min() > 0.01  # something is disturbed
    for record, terms, own, degree in zip(maps, want.terms, want.own, (1, 2), strict=True):
        np.testing.assert_allclose(record["terms"], terms, rtol=1e-3, atol=2e-6)  # float32 features; rounded
        assert record["terms"] == np.round(record["terms"], 6).tolist()  # in float64, over batches of 8, 8 and 4
        np.testing.assert_allclose(record["own_curve"], own[:, :-1], rtol=1e-3, atol=2e-6)
        own = own[:, -1]
        np.testing.assert_allclose(record["own"], own, rtol=1e-3)
        square = np.ix_([0, 1], INSIDE, INSIDE)
        np.testing.assert_allclose(record["summary"], terms[square].mean(), rtol=1e-3)
        relative = ((terms / own[:, None, None]) ** (1 / degree))[square].mean() if own.all() else None
        np.testing.assert_allclose(np.float64(record["relative"]), np.float64(relative), rtol=1e-3)
        assert (record["images"], record["coefs"], record["split"]) == ([20, 20], list(COEFS), "test")
    assert "| pets | – |" in (tmp_path / "maps" / "report.md").read_text()
    assert "tools" in done.out
    before = contents(tmp_path / "maps")
    assert mapped(config, tmp_path / "maps").code == 0
    after = contents(tmp_path / "maps")
    assert before["results.jsonl"] == after["results.jsonl"]


def test_fewer_images_are_spread_over_the_split(mapped, trained, world, tmp_path):
    """Of twelve every other one: the first six of a split that is sorted by class would be one class."""
    few = mapped("standard", tmp_path / "few", disentanglement__images=6, disentanglement__split="val")
    assert few.code == 0, few.err
    maps = results.find(results.read(tmp_path / "few" / "results.jsonl"), stage="disentanglement")
    want = oracle(world, trained, linearized=False, split="val", rows=slice(None, None, 2))
    for record, terms in zip(maps, want.terms, strict=True):
        assert (record["images"], record["split"]) == ([6, 6], "val")
        np.testing.assert_allclose(record["terms"], terms, rtol=1e-3, atol=2e-6)


def test_a_run_that_was_cut_short_measures_what_is_missing(mapped, tmp_path):
    log = tmp_path / "run" / "results.jsonl"
    assert mapped("standard", tmp_path / "run").code == 0
    *whole, last = log.read_text().splitlines(keepends=True)
    log.write_text("".join(whole))
    assert mapped("standard", tmp_path / "run").code == 0
    *again, process, new = log.read_text().splitlines(keepends=True)
    assert again == whole and json.loads(process)["stage"] == "run"
    timeless = [{k: v for k, v in json.loads(line).items() if k != "elapsed_seconds"} for line in (last, new)]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"disentanglement__pairs": (("pets", "tulips"),)}, "unknown task 'tulips'. Did you mean 'tools'?"),
        ({"disentanglement__coefs": (1.5, 2.0)}, "no coefficient of [1.5, 2.0] lies in [−1, 1]"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_trained(overrides, message, mapped, tmp_path):
    refused = mapped("standard", tmp_path / "run", task_vectors=None, **overrides)
    assert refused.code == 2
    assert message in refused.err
    assert not (tmp_path / "run" / "task_vectors").exists()

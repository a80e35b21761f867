"""Runs under linear-probe heads: fitted once, kept beside the vectors, read by every run that uses those."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tajax import data, models, progress, results
from tajax.config import default_config
from tajax.data.preprocess import normalize
from tajax.workflows import heads
from tajax.workflows.start import start
from tests.workflows.conftest import TASKS

PROBED = {"heads": "linear_probe", "workflow": "single_task"}


@pytest.fixture(scope="module")
def probed(world, run):
    """A finished run whose vectors were trained under fitted heads."""
    done = run("attn", world / "probed", **PROBED)
    assert done.code == 0, done.err
    assert "Linear-probe heads" in done.out
    return world / "probed"


def test_what_was_compiled_to_fit_the_heads_is_kept_for_what_follows(world, tmp_path):
    config = default_config()
    tasks = tuple(str(world / f"{name}.npz") for name in TASKS)
    config.update(model=str(world / "clip"), tasks=tasks, heads="linear_probe")
    with progress.shown(quiet=True):
        setup, evaluator = start(config, tmp_path)
        assert set(evaluator.heads) == set(TASKS)
        assert evaluator.features_step._cache_size() == 1  # one program for all tasks
        batch = next(iter(evaluator.batches(setup.tasks[0], "test")))
    evaluator.features_step(setup.placement.params(setup.pretrained), setup.placement.shares(batch))
    assert evaluator.features_step._cache_size() == 1


def weights(workdir):
    return {path.stem: load_file(path)["weights"] for path in sorted((workdir / "heads").iterdir())}


def features(world, name, split):
    """Pre-trained features and labels of a split, in one batch."""
    clip, task = models.load(world / "clip"), data.open_task(world / f"{name}.npz")
    (batch,) = data.load(task, split, batch_size=len(task.split(split)), preprocessing=clip.preprocessing)
    images = normalize(jnp.asarray(batch.inputs), clip.preprocessing)
    return np.asarray(clip.encode_image(clip.params["image"], images)), batch.label


@pytest.mark.parametrize("name", TASKS)
def test_head_is_the_probe_on_pretrained_features_of_train_and_val(probed, world, name):
    wanted = models.linear_probe(
        *features(world, name, "train"), *features(world, name, "val"), num_classes=len(TASKS[name])
    )
    got, (record,) = (
        weights(probed)[name],
        results.find(results.read(probed / "results.jsonl"), stage="head", task=name),
    )
    scale = np.abs(wanted.head.weights).max()
    np.testing.assert_allclose(got, wanted.head.weights, atol=2e-3 * scale)  # features of another program, weak λ
    assert (record["kind"], record["images"]) == ("linear_probe", 24)
    assert record["regularization"] == wanted.regularization
    np.testing.assert_allclose(record["val_loss"], wanted.val_loss, rtol=1e-3)
    assert (record["train_top1"], record["val_top1"]) == (wanted.train_top1, wanted.val_top1)


@pytest.mark.parametrize("name", TASKS)
def test_accuracies_before_training_are_those_of_the_fitted_head(probed, world, name):
    records = results.read(probed / "results.jsonl")
    assert records[0]["heads"] == "linear_probe"
    (record,) = results.find(records, stage="zero_shot", task=name, split="test")
    x, labels = features(world, name, "test")
    assert record["top1"] == np.mean((x @ weights(probed)[name]).argmax(axis=1) == labels)


def test_every_other_run_takes_the_heads_that_the_vectors_were_trained_under(probed, world, run, monkeypatch, tmp_path):
    def never(*given, **fields):
        raise AssertionError("a head is fitted once")

    monkeypatch.setattr(models, "linear_probe", never)
    assert run("attn", probed, **PROBED).code == 0
    other = run("attn", tmp_path / "addition", heads="linear_probe", task_vectors=probed)
    assert other.code == 0, other.err
    for name, head in weights(probed).items():
        np.testing.assert_array_equal(weights(tmp_path / "addition")[name], head)
    recorded = [
        results.find(results.read(place / "results.jsonl"), stage="head") for place in (probed, tmp_path / "addition")
    ]
    assert [[r["val_loss"] for r in rs] for rs in recorded] == [[r["val_loss"] for r in recorded[0]]] * 2


def test_heads_depend_on_neither_seed_nor_regime(probed, run, tmp_path):
    assert run("linear", tmp_path / "run", seed=5, **PROBED).code == 0
    for name, head in weights(probed).items():
        np.testing.assert_allclose(weights(tmp_path / "run")[name], head, atol=2e-3 * np.abs(head).max())


def test_few_images_of_a_large_split_are_of_every_class(run, tmp_path, monkeypatch):
    """Drawn from all of train, which may be sorted by class."""
    monkeypatch.setattr(heads, "IMAGES", 9)
    monkeypatch.setattr(heads, "IMAGES_A_CLASS", 1)
    given, fit = [], models.linear_probe
    monkeypatch.setattr(models, "linear_probe", lambda *a, **k: given.append(a) or fit(*a, **k))
    assert run("attn", tmp_path / "run", **PROBED).code == 0
    assert [len(labels) for _, labels, _, _ in given] == [9, 9]
    for (x, labels, _, _), classes in zip(given, TASKS.values(), strict=True):
        assert set(labels) == set(range(len(classes)))
        assert len(np.unique(x, axis=0)) == 9  # no image twice
        assert list(labels) != [i % len(classes) for i in range(9)]  # not the first of the split


def test_a_head_of_another_model_or_a_damaged_one_is_named(probed, run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(probed, workdir)
    file = workdir / "heads" / "pets.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    refused = run("attn", workdir, **PROBED)
    assert refused.code == 2
    assert f"{file} is no head of tajax" in refused.err
    shutil.copy(workdir / "heads" / "tools.safetensors", file)  # two classes, not three
    refused = run("attn", workdir, **PROBED)
    assert refused.code == 2
    assert "wants [8, 3]" in refused.err and "Delete it" in refused.err

"""Families of models and regimes with penalties that tajax does not know: a row and a module each, in whole runs."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tajax import data, encoders, evaluate, models, results
from tajax.regimes import REGIMES, Regime
from tajax.types import Head
from tests.workflows import conv_family
from tests.workflows.conftest import GRID, TASKS


@pytest.fixture
def conv(run, monkeypatch):
    """`run` with the family in its table, and what it wants: heads that are fitted."""
    monkeypatch.setitem(encoders.FAMILIES, "conv", "tests.workflows.conv_family")

    def conv(config, workdir, *flags, **overrides):
        return run(config, workdir, *flags, **{"family": "conv", "model": "conv", "heads": "linear_probe"} | overrides)

    return conv


@pytest.mark.parametrize("config", ["standard", "linear"])
def test_another_family_adds_its_vectors_and_the_numbers_are_those_of_its_files(conv, tmp_path, world, config):
    assert conv(config, tmp_path / "run").code == 0
    records = results.read(tmp_path / "run" / "results.jsonl")
    theta = conv_family.load("conv").params

    def nested(flat):
        return {layer: {part: flat[f"{layer}/{part}"] for part in ("kernel", "bias")} for layer in ("first", "second")}

    taus = [nested(load_file(tmp_path / "run" / "task_vectors" / f"{task}.safetensors")) for task in TASKS]
    assert all(max(np.abs(leaf).max() for leaf in jax.tree.leaves(tau)) > 0 for tau in taus)
    total = jax.tree.map(lambda *leaves: sum(leaves), *taus)
    assert len({r["scaling_coef"] for r in results.find(records, stage="sweep")}) == len(GRID)

    def features_at(coef, images):
        moved = jax.tree.map(lambda leaf: coef * leaf, total)
        if config == "standard":
            return conv_family.apply(jax.tree.map(jnp.add, theta, moved), images)
        return jnp.add(*jax.jvp(lambda params: conv_family.apply(params, images), (theta,), (moved,)))

    for record in results.find(records, stage="sweep"):
        file = np.load(world / f"{record['task']}.npz")
        head = load_file(tmp_path / "run" / "heads" / f"{record['task']}.safetensors")["weights"]
        features = features_at(record["scaling_coef"], jnp.asarray(file["val_images"]))
        assert record["top1"] == np.mean(np.argmax(features @ head, axis=1) == file["val_labels"])
    (merged,) = results.find(records, stage="task_addition", split="test", task="pets")
    saved = nested(np.load(tmp_path / "run" / "merged" / "huggingface.npz"))
    want = jax.tree.map(lambda leaf, tau: leaf + np.float32(merged["scaling_coef"]) * tau, theta, total)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), saved, want)
    head = Head(load_file(tmp_path / "run" / "heads" / "pets.safetensors")["weights"], jnp.int32(len(TASKS["pets"])))
    task = data.open_task(world / "pets.npz")
    again = evaluate.accuracy(conv_family.load("conv"), saved, task, head=head, linearized=config == "linear")
    assert again == merged["top1"]


def test_accuracy_of_a_clip_is_that_of_its_features_under_its_zero_shot_head(world):
    clip, task = models.load(world / "clip"), data.open_task(world / "tools.npz")
    encoder, file = encoders.load(str(world / "clip")), np.load(world / "tools.npz")
    images = data.preprocess.normalize(jnp.asarray(file["train_images"]), clip.preprocessing)
    head = models.zero_shot_head(clip, task.class_names, task.templates)
    params = jax.tree.map(lambda leaf: 1.5 * leaf, clip.params["image"])
    guesses = np.argmax(clip.encode_image(params, images) @ head.weights, axis=1)
    assert evaluate.accuracy(encoder, params, task, "train", batch_size=7) == np.mean(guesses == file["train_labels"])
    assert 0 < np.mean(guesses == file["train_labels"]) < 1
    gone = weakref.ref(encoder)
    with pytest.raises(ValueError, match="'ln_post/scale'"):
        evaluate.accuracy(encoder, {**params, "ln_post": {"bias": params["ln_post"]["bias"]}}, task)
    del encoder
    gc.collect()
    assert gone() is None  # what was compiled for it keeps neither it nor its parameters


def test_a_regime_with_a_penalty_is_a_row_and_a_module(run, tmp_path, monkeypatch):
    """At strength 0 the vectors are those of the regime without it, up to rounding; others log their numbers."""
    monkeypatch.setitem(
        REGIMES, "near", Regime("near", "attention", method="tests.workflows.toy_penalty", strength=1.0)
    )
    lengths, vectors = {}, {}
    for regime, strength in (("attention", None), ("near", 0), ("near", 50)):
        workdir = tmp_path / f"{regime}{strength}"
        assert (
            run("attn", workdir, regime=regime, finetune__penalty_strength=strength, workflow="single_task").code == 0
        )
        logs = results.find(results.read(workdir / "results.jsonl"), stage="finetune", task="pets")
        vectors[regime, strength] = load_file(workdir / "task_vectors" / "pets.safetensors")
        lengths[regime, strength] = sum(float(np.sum(leaf**2)) for leaf in vectors[regime, strength].values())
        assert all(("penalty" in log) == (regime == "near") for log in logs)
        if strength == 50:
            assert [log["penalty"] > 0 for log in logs] == [False, True, True]  # at θ₀ it is 0
    for path, leaf in vectors["attention", None].items():
        np.testing.assert_allclose(vectors["near", 0][path], leaf, rtol=0, atol=1e-5)
    assert lengths["near", 50] < lengths["near", 0]


def test_what_another_family_has_not_is_refused_by_name(conv, tmp_path):
    refusals = {
        "model": ("tiny", "unknown convolution 'tiny'; there is 'conv'"),
        "heads": ("zero_shot", "is of the family 'conv', which makes no heads from class names"),
        "trainable": ("attention", "Named rules: all, kernels."),
        "layers": ((0, 1), "layers=(0, 1), but no node of this model stacks layers"),
        "family": ("vgg", "unknown family 'vgg'"),
    }
    for field, (value, message) in refusals.items():
        refused = conv("standard", tmp_path / field, **{field: value})
        assert refused.code == 2 and message in refused.err, refused.err

"""Regimes that do more than minimise the loss of their task, in whole runs from the command line."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tajax import models, results, vector_files
from tests.workflows.conftest import TASKS


def vectors(workdir):
    return {file.stem: load_file(file) for file in sorted((workdir / "task_vectors").iterdir())}


def furthest(first, second):
    """How far any entry of two runs' vectors is apart."""
    assert first.keys() == second.keys()
    return max(np.abs(leaf - second[task][path]).max() for task, tau in first.items() for path, leaf in tau.items())


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """`trained(regime, rule, **overrides)`: its vectors and its records of fine-tuning, made once."""
    made = {}

    def trained(regime, rule="all", **overrides):
        which = regime, rule, tuple(sorted(overrides.items()))
        if which not in made:
            workdir = tmp_path_factory.mktemp(regime) / "run"
            done = run("standard", workdir, workflow="single_task", regime=regime, trainable=rule, **overrides)
            assert done.code == 0, done.err
            made[which] = vectors(workdir), results.find(results.read(workdir / "results.jsonl"), stage="finetune")
        return made[which]

    return trained


@pytest.mark.parametrize(
    ("regime", "field", "rule"),
    [
        ("orthoreg", "finetune__penalty_strength", "attention"),
        ("saft", "finetune__radius", "all"),
    ],
)
def test_at_strength_0_the_vectors_are_those_of_standard(regime, field, rule, trained):
    """Up to rounding: the two are other programs, which XLA need not add up in one order."""
    plain, _ = trained("standard", rule)
    none, logs = trained(regime, rule, **{field: 0})
    some, _ = trained(regime, rule)
    assert furthest(none, plain) < 1e-5 < 1e-3 < furthest(some, plain)
    assert all(("penalty" in log) == (regime == "orthoreg") for log in logs)


def test_orthoreg_begins_at_the_sum_of_widths_and_draws_vectors_to_orthogonal_ones(trained):
    strong, logs = trained("orthoreg", "attention", finetune__penalty_strength=100)
    plain, _ = trained("orthoreg", "attention", finetune__penalty_strength=0)
    values = [log["penalty"] / 100 for log in logs if log["task"] == "pets"]
    assert values[0] == 2 * 4 * 16 and values[0] > values[1] > values[2]  # two layers, four kernels of 16 × 16

    def distance(tau):
        layers = [np.float64(layer) for leaf in tau.values() for layer in leaf]
        return sum(((layer.T @ layer - np.eye(16)) ** 2).sum() for layer in layers)

    assert distance(strong["pets"]) < distance(plain["pets"])
    # The penalty of the last step is that of the vector before it, so the end lies still nearer.
    assert distance(strong["pets"]) < values[-1]


def test_orthoreg_without_dense_kernels_is_refused_before_anything_is_written(run, tmp_path):
    refused = run("standard", tmp_path / "run", regime="orthoreg", trainable="biases")
    assert refused.code == 2 and "regime 'orthoreg' penalises trained dense kernels" in refused.err
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_muon_is_another_optimiser_and_is_refused_where_no_matrix_is_trained(trained, run, tmp_path):
    muon, adamw = trained("standard", finetune__optimizer="muon")[0], trained("standard")[0]
    assert all(np.any(muon["pets"][path] != leaf) for path, leaf in adamw["pets"].items() if path.endswith("kernel"))
    refused = run("standard", tmp_path / "run", trainable="biases", finetune__optimizer="muon")
    assert refused.code == 2 and "Muon is for matrices, and none of the 10 leaves" in refused.err, refused.err
    others = run("standard", tmp_path / "run", regime="talos", finetune__optimizer="muon")
    assert others.code == 2 and "takes whole dense kernels, and regime 'talos' trains others" in others.err, others.err
    assert not (tmp_path / "run" / "results.jsonl").exists()


def moved(tensors):
    """Of each leaf of a vector's file which entries it holds, from its bits; all of a leaf without any."""
    return {
        path: np.unpackbits(tensors[f"{path}#entries"]) if f"{path}#entries" in tensors else np.ones(leaf.size)
        for path, leaf in tensors.items()
        if not path.endswith("#entries")
    }


def test_talos_moves_a_tenth_of_all_entries_and_says_how_many(run, tmp_path, world):
    done = run("standard", tmp_path / "run", workflow="task_addition", regime="talos", finetune__scored=8)
    assert done.code == 0, done.err
    records = results.read(tmp_path / "run" / "results.jsonl")
    (about,) = results.find(records, stage="run")
    assert about["trained_parameters"] == round(0.1 * about["total_parameters"])
    like = models.load(world / "clip").params["image"]
    for task in TASKS:
        path = tmp_path / "run" / "task_vectors" / f"{task}.safetensors"
        tau, made = vector_files.load_task_vector(path, like)
        count = sum(int(np.sum(np.asarray(leaf) != 0)) for leaf in jax.tree.leaves(tau))
        # An entry that is 0 and has no gradient stays: all but a few of the chosen ones move.
        assert 0.9 * about["trained_parameters"] <= count <= about["trained_parameters"] == made["trained_parameters"]
        assert any(name.endswith("#entries") for name in load_file(path))
    first, second = (moved(load_file(tmp_path / "run" / "task_vectors" / f"{task}.safetensors")) for task in TASKS)
    assert any(not np.array_equal(first[path], second[path]) for path in first)  # each task has its own
    reused = run("standard", tmp_path / "again", workflow="single_task", task_vectors=tmp_path / "run")
    assert reused.code == 0, reused.err
    (again,) = results.find(results.read(tmp_path / "again" / "results.jsonl"), stage="run")
    assert again["trained_parameters"] == about["trained_parameters"]
    alone = [results.find(results.read(tmp_path / d / "results.jsonl"), stage="single_task") for d in ("run", "again")]
    assert [r["top1"] for r in alone[0]] == [r["top1"] for r in alone[1]]


def test_talos_of_everything_is_standard(trained):
    """All entries chosen: gradients, clipping and decay are those of whole leaves, up to rounding.

    Keys' biases are left out: no model depends on them, and AdamW makes steps of the rounding of their gradients.
    """
    every, _ = trained("talos", finetune__density=1.0, finetune__scored=4, finetune__rounds=1)
    plain, _ = trained("standard")
    for path, leaf in ((path, leaf) for path, leaf in plain["pets"].items() if not path.endswith("key/bias")):
        np.testing.assert_allclose(every["pets"][path], leaf, rtol=1e-3, atol=1e-5, err_msg=path)


def test_talos_with_a_density_that_keeps_nothing_is_refused_before_anything_is_written(run, tmp_path):
    for number, (density, message) in enumerate(
        {
            1e-9: "finetune.density: a density of 1e-09 leaves none of the ",
            0: "finetune.density is 0.0, want a share above 0, at most 1",
            1.5: "finetune.density is 1.5, want a share above 0, at most 1",
        }.items()
    ):
        refused = run("standard", tmp_path / str(number), regime="talos", finetune__density=density)
        assert refused.code == 2 and message in refused.err, refused.err
        assert not (tmp_path / str(number) / "results.jsonl").exists()

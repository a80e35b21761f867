"""Runs of the regime tak: with factors of another run or their own, and refused with those of another model or rule."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tajax import checkpoints, encoders, results, trees
from tajax.curvature import penalty as energy
from tajax.curvature.files import load_factors
from tests.workflows.conftest import TASKS


@pytest.fixture(scope="module")
def curvature(run, tmp_path_factory):
    """The factors of a run by itself, of all leaves."""
    workdir = tmp_path_factory.mktemp("curvature") / "run"
    done = run("tak", workdir, workflow="curvature", curvature__images=12)
    assert done.code == 0, done.err
    return workdir


def tak(run, workdir, **fields):
    return run("tak", workdir, **{"workflow": "single_task"} | fields)


def test_the_numbers_of_a_run_are_those_of_its_files(run, curvature, world, tmp_path):
    """The last penalty of three steps is the energy of the vector after two, times the strength."""
    fields = {"finetune__curvature": curvature, "finetune__learning_rate": 1e-3, "finetune__penalty_strength": 2}
    save = checkpoints.Writer.save
    taus = {}

    def keep(writer, state, *, step, notes):
        if step == 2:
            taus[len(taus)] = {path: np.asarray(leaf) for path, leaf in state.trained.items()}
        save(writer, state, step=step, notes=notes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Writer, "save", keep)
        assert tak(run, tmp_path / "run", finetune__checkpoint_every=1, **fields).code == 0
    params = encoders.load(str(world / "clip")).params
    theta0 = trees.flatten_paths(params)
    for number, (task, other) in enumerate(zip(TASKS, reversed(TASKS), strict=True)):
        logs = results.find(results.read(tmp_path / "run" / "results.jsonl"), stage="finetune", task=task)
        assert logs[0]["penalty"] == 0
        factors, _ = load_factors(curvature / "curvature" / f"{other}.safetensors", params)
        one = energy.summed([energy.reweighted(factors, "paper")])
        tau = {path: leaf - theta0[path] for path, leaf in taus[number].items()}
        np.testing.assert_allclose(logs[2]["penalty"], 2 * energy.total(one, tau), rtol=1e-4)  # sums in float32


@pytest.mark.parametrize("factors", ["summed", "per_task"])
@pytest.mark.parametrize("weighting", ["paper", "response"])
def test_every_choice_leaves_less_energy_on_the_other_task(run, curvature, world, tmp_path, factors, weighting):
    """Of the vector after twelve steps, with the penalty and with none, by the factors of the task not trained."""
    fields = {"finetune__curvature": curvature, "finetune__factors": factors, "finetune__weighting": weighting}
    fields |= {"finetune__learning_rate": 1e-3, "finetune__steps": 12}
    other, _ = load_factors(curvature / "curvature" / "tools.safetensors", encoders.load(str(world / "clip")).params)
    left = []
    for strength in (0, 30):
        done = tak(run, tmp_path / str(strength), finetune__penalty_strength=strength, **fields)
        assert done.code == 0, done.err
        tau = load_file(tmp_path / str(strength) / "task_vectors" / "pets.safetensors")
        left.append(float(energy.total(energy.summed([energy.reweighted(other, weighting)]), tau)))
    assert 0 < left[1] < 0.7 * left[0], left


def test_a_run_makes_its_own_factors_once_and_trains_attention_of_one_layer(run, tmp_path):
    assert tak(run, tmp_path / "run", trainable="attention", layers=(1, 2)).code == 0
    made = sorted(path.stem for path in (tmp_path / "run" / "curvature").iterdir())
    assert made == sorted(TASKS)
    tau = load_file(tmp_path / "run" / "task_vectors" / "pets.safetensors")
    assert {path.split("/")[1] for path in tau} == {"attn"}
    assert all(not leaf[0].any() and leaf[1].any() for leaf in tau.values())
    # the same as with these files for another run's
    fields = {"trainable": "attention", "layers": (1, 2), "finetune__curvature": tmp_path / "run"}
    assert tak(run, tmp_path / "again", **fields).code == 0
    for path, leaf in load_file(tmp_path / "again" / "task_vectors" / "pets.safetensors").items():
        np.testing.assert_array_equal(leaf, tau[path])


def test_factors_that_do_not_belong_to_the_run_are_refused_before_training(run, curvature, world, tmp_path):
    def refused(**fields):
        workdir = tmp_path / str(len(list(tmp_path.iterdir())))
        done = tak(run, workdir, **fields)
        assert done.code == 2, done.err
        assert not (workdir / "task_vectors").exists()
        return done.err

    assert "names no other" in refused(tasks=(str(world / "pets.npz"),), finetune__curvature=curvature)
    lacking = tmp_path / "lacking"
    shutil.copytree(curvature, lacking)
    (lacking / "curvature" / "pets.safetensors").unlink()
    message = refused(finetune__curvature=lacking)
    assert "there is no" in message and "pets.safetensors" in message and "--config.workflow=curvature" in message
    assert "there is no" in refused(finetune__curvature=tmp_path / "nowhere")
    attention = tmp_path / "attention"
    assert run("tak", attention, workflow="curvature", trainable="attention", curvature__images=4).code == 0
    message = refused(finetune__curvature=attention)
    assert "was made for the rule 'attention' and has nothing of" in message
    assert "before their normalisation" in refused(finetune__curvature=curvature, linearize_through_norm=True)
    other = tmp_path / "other"
    shutil.copytree(world / "clip", other)
    weights = load_file(other / "model.safetensors")
    weights = {name: leaf * 1.01 if "visual_projection" in name else leaf for name, leaf in weights.items()}
    save_file(weights, other / "model.safetensors")
    assert "another sha256 of the base" in refused(finetune__curvature=curvature, model=other)
    damaged = tmp_path / "damaged"
    shutil.copytree(curvature, damaged)
    path = damaged / "curvature" / "tools.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert str(path) in refused(finetune__curvature=damaged)


def test_other_regimes_refuse_its_options(run, tmp_path):
    done = run("linear", tmp_path / "run", finetune__curvature="anywhere")
    assert done.code == 2 and "regime 'linear' does not read it" in done.err and "tak" in done.err

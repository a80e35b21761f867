"""What holds of every regime with a method: at strength 0 it is another one, and it goes on to the same bits."""

import pytest
from safetensors.numpy import load_file

from tajax import checkpoints, results
from tajax.regimes import REGIMES

METHODS = [name for name, regime in REGIMES.items() if regime.method]
WITHOUT = {"tau_jp": "linear", "tak": "linear"}
"""By what regime each trains whose penalty has no strength."""


def bits(workdir):
    files = sorted((workdir / "task_vectors").iterdir())
    return {file.stem: {name: leaf.tobytes() for name, leaf in load_file(file).items()} for file in files}


@pytest.fixture(scope="module")
def finished(world, run):
    """`finished(regime)`: the directory of a finished run of it, made on first use."""

    def finished(regime):
        workdir = world / f"method_{regime}"
        if not workdir.exists():
            done = run("linear", workdir, regime=regime, workflow="single_task")
            assert done.code == 0, done.err
        return workdir

    return finished


@pytest.mark.parametrize("regime", WITHOUT)
def test_a_penalty_of_strength_zero_changes_no_bit(regime, finished, run, tmp_path):
    done = run("linear", tmp_path / "run", regime=regime, workflow="single_task", finetune__penalty_strength=0)
    assert done.code == 0, done.err
    assert bits(tmp_path / "run") == bits(finished(WITHOUT[regime]))


@pytest.mark.parametrize("regime", METHODS)
def test_an_interrupted_run_ends_with_the_same_vectors_and_logs(regime, finished, run, tmp_path, monkeypatch):
    """Killed at the first checkpoint: of the first task, whose method is in the middle."""
    fields, whole = {"regime": regime, "workflow": "single_task", "finetune__checkpoint_every": 1}, finished(regime)
    save = checkpoints.Writer.save

    def save_and_die(writer, state, *, step, notes):
        save(writer, state, step=step, notes=notes)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Writer, "save", save_and_die)
        assert run("linear", tmp_path / "run", **fields).code == 130
    assert run("linear", tmp_path / "run", **fields).code == 0
    assert bits(tmp_path / "run") == bits(whole)

    def logged(workdir):
        logs = results.find(results.read(workdir / "results.jsonl"), stage="finetune")
        return sorted((log["task"], log["step"], log["loss"], log.get("penalty")) for log in logs)

    assert logged(tmp_path / "run") == logged(whole) and len(logged(whole)) == 6


@pytest.mark.parametrize("regime", METHODS)
def test_what_a_method_does_is_seen(regime, finished):
    """Its vectors are not those of the regime without it."""
    assert bits(finished(regime)) != bits(finished("linear" if REGIMES[regime].train_linearized else "standard"))


@pytest.mark.parametrize("regime", METHODS)
def test_parts_of_a_batch_and_recomputed_layers_end_where_the_whole_does(regime, finished, run, tmp_path):
    """Up to the order of sums: of what memory asks for, nothing is another training."""
    fields = {"finetune__accumulation_steps": 2, "finetune__remat": "layers"}
    done = run("linear", tmp_path / "run", regime=regime, workflow="single_task", **fields)
    assert done.code == 0, done.err

    def logged(workdir):
        logs = results.find(results.read(workdir / "results.jsonl"), stage="finetune", step=3)
        return [value for log in logs for value in (log["loss"], log.get("penalty", 0.0))]

    assert logged(tmp_path / "run") == pytest.approx(logged(finished(regime)), rel=2e-2, abs=1e-4)

"""Scores for the playground: what they say at the coefficients of a run is what the run has measured there."""

import numpy as np
import pytest

from tajax import coded_scores, results
from tajax.workflows import playground
from tests.workflows.conftest import GRID, TASKS, check_records, contents

VAL = 12  # images


@pytest.fixture(scope="module", params=[False, True], ids=["before", "through"])
def added(request, world, run):
    """Task addition, linearised before the norm or through it."""
    workdir = world / f"playground_{request.param}"
    done = run(
        "linear",
        workdir,
        save__merged=False,
        save__examples=False,
        save__playground=256,
        linearize_through_norm=request.param,
    )
    assert done.code == 0, done.err
    return workdir


def top1(workdir, name, coefs):
    coded, _ = coded_scores.read(workdir / "playground" / f"{name}.safetensors")
    return coded_scores.correct(coded, np.atleast_2d(coefs)).mean(axis=1).tolist()


def test_accuracies_are_those_that_the_run_measured_with_images(added):
    records = results.read(added / "results.jsonl")
    check_records(added, "task_addition")
    measured = []
    for own, name in zip(np.eye(len(TASKS)), TASKS, strict=True):
        places = {("zero_shot", None): 0 * own, ("single_task", None): own}
        places |= {("sweep", coef): coef * np.ones(len(TASKS)) for coef in GRID}
        for (stage, coef), coefs in places.items():
            of_stage = results.find(records, stage=stage, task=name, split="val")
            (record,) = [r for r in of_stage if coef is None or r["scaling_coef"] == coef]
            assert top1(added, name, coefs) == [pytest.approx(record["top1"], abs=1e-9)], (stage, coef)
            measured.append(record["top1"])
    assert len(set(measured)) > 2  # the coefficients make a difference


def test_what_is_recorded_of_the_files_is_what_they_hold(added):
    records = results.read(added / "results.jsonl")
    for record in results.find(records, stage="playground"):
        coded, about = coded_scores.read(added / "playground" / f"{record['task']}.safetensors")
        assert record["directions"] == list(about.directions) == list(TASKS)
        assert record["count"] == len(coded.counts) == VAL and record["complete"] == VAL
        assert record["bounds"] == list(about.bounds) == [-1.0, 1.0]
        assert record["changed"] == about.changed


def test_the_best_coefficients_are_worth_what_is_recorded_and_no_less_than_others(added, rng):
    (best,) = results.find(results.read(added / "results.jsonl"), stage="playground_coefs")
    single = [top1(added, name, own)[0] for own, name in zip(np.eye(len(TASKS)), TASKS, strict=True)]
    assert best["single"] == single

    def value(coefs):
        reached = np.array([top1(added, name, coefs) for name in TASKS])
        return (reached / np.array(single)[:, None]).mean(axis=0)

    ones = np.ones(len(TASKS))
    assert value(best["common"] * ones)[0] == pytest.approx(best["common_value"])
    assert value(best["coefs"])[0] == pytest.approx(best["value"]) and best["value"] >= best["common_value"]
    assert value(np.linspace(0, 1, 201)[:, None] * ones).max() <= best["common_value"] + 1e-9
    for task in np.eye(len(TASKS), dtype=bool):
        others = np.where(task, rng(410).uniform(size=(100, 1)), best["coefs"])
        assert value(others).max() <= best["value"] + 1e-9


def test_a_run_that_goes_on_keeps_what_is_there_and_makes_what_is_not(added, run):
    through = added.name.endswith("True")
    settings = {
        "save__merged": False,
        "save__examples": False,
        "save__playground": 256,
        "linearize_through_norm": through,
    }
    before = contents(added / "playground")
    records = results.read(added / "results.jsonl")
    (added / "playground" / "tools.safetensors").unlink()  # as where a run was copied in part
    assert run("linear", added, **settings).code == 0
    again = contents(added / "playground")
    assert {name: content for name, (_, content) in again.items()} == {n: c for n, (_, c) in before.items()}
    assert again["pets.safetensors"] == before["pets.safetensors"]  # was not made again
    assert results.read(added / "results.jsonl") == records
    before = again
    kept = [line for line in (added / "results.jsonl").read_text().splitlines() if '"playground_coefs"' not in line]
    kept = [line for line in kept if not ('"playground"' in line and '"pets"' in line.split('"directions"')[0])]
    (added / "results.jsonl").write_text("".join(f"{line}\n" for line in kept))
    assert run("linear", added, **settings).code == 0
    after = contents(added / "playground")
    assert {name: content for name, (_, content) in after.items()} == {n: c for n, (_, c) in before.items()}
    assert after["tools.safetensors"][0] == before["tools.safetensors"][0]  # was not made again
    again = results.find(results.read(added / "results.jsonl"), stage="playground_coefs")
    assert [r["coefs"] for r in again] == [r["coefs"] for r in results.find(records, stage="playground_coefs")]


def test_a_negation_has_the_control_among_them(world, run):
    workdir = world / "playground_negation"
    pair = {"tasks": (str(world / "tools.npz"),), "control": world / "pets.npz"}
    done = run("negation", workdir, regime="linear", save__playground=8, **pair)
    assert done.code == 0, done.err
    check_records(workdir, "task_negation")
    records = results.read(workdir / "results.jsonl")
    assert [r["task"] for r in results.find(records, stage="playground")] == ["tools", "pets"]
    coded, about = coded_scores.read(workdir / "playground" / "pets.safetensors")
    assert about.directions == ("tools",) and len(coded.counts) == 8
    whole = world / "playground_whole"
    assert run("negation", whole, regime="linear", task_vectors=workdir, save__playground=256, **pair).code == 0
    for record in results.find(results.read(whole / "results.jsonl"), stage="negation_sweep", task="tools"):
        measured_on = record["measured_on"]
        assert top1(whole, measured_on, [-record["scaling_coef"]]) == [pytest.approx(record["top1"], abs=1e-9)]


@pytest.mark.parametrize("config, given", [("attn", {}), ("linear", {"save__playground": 0})])
def test_other_runs_have_none(world, run, config, given):
    workdir = world / f"no_playground_{config}"
    done = run(config, workdir, save__merged=False, save__examples=False, **given)
    assert done.code == 0, done.err
    assert not (workdir / playground.FOLDER).exists()
    assert not [r for r in results.read(workdir / "results.jsonl") if r["stage"].startswith("playground")]


def test_eight_tasks_fit_on_a_page_whatever_their_classes():
    for tasks, vectors, wanted in ((8, 8, 256), (9, 8, 400), (20, 20, 256), (8, 8, 10**6)):
        examples, most = playground.room(tasks, vectors, wanted)
        taken = tasks * examples * (4 + most * 2 * (vectors + 1)) * 4 / 3
        assert most >= 2 and 0.8 * playground.LARGEST_PAGE < taken <= playground.LARGEST_PAGE
        assert examples == wanted or most == 2

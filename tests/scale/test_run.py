"""The command: what is planned, what is kept, and the tables; with a compiler that is made up."""

import json

import pytest

from experiments.scale import plan, prediction, records, run, subjects, tables, targets
from experiments.scale.prediction import Evaluation
from experiments.scale.programs import Job
from experiments.scale.records import Records, job_of, select

README = "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("compiled", "largest", "predicted"))


def fitted(job):
    """A program that needs 2 GB and 100 MB an image on each device."""
    return {
        "operations": 10**12 * job.batch,
        "fits": True,
        "arguments": 10**9,
        "results": 0,
        "temporary": 10**9 + 10**8 * job.batch,
        "collectives": [{"kind": "all-reduce", "number": 2, "executions": 12, "bytes": 2**30}],
        "compile_seconds": 3.0,
    }


def refused(job):
    return {"operations": 1, "fits": False, "refusal": "RESOURCE_EXHAUSTED", "compile_seconds": 3.0}


def made(folder, measure=fitted):
    return Records(folder, measure=measure, report=lambda text: None)


def test_a_job_that_is_kept_is_not_compiled_again(tmp_path):
    job = Job("v5e_2x4", "b32", regime="linear")
    first = made(tmp_path).make(job)
    again = made(tmp_path, measure=lambda job: pytest.fail("compiled again"))
    assert again.make(job) == first and again.all() == [first] and job_of(first) == job
    assert [path.name for path in tmp_path.iterdir()] == ["v5e_2x4.jsonl"]


@pytest.mark.parametrize(
    "changed", [{"batch": 64}, {"remat": "layers"}, {"precision": "highest"}, {"program": "sweep"}]
)
def test_a_job_that_differs_in_anything_is_another(tmp_path, changed):
    job = Job("v5e_2x4", "b32")
    found = made(tmp_path)
    found.make(job)
    assert found.find(job._replace(**changed)) is None


def test_the_plan_has_each_job_once_and_every_name_is_known():
    jobs = plan.jobs()
    assert len(jobs) == len(set(jobs)) > 100
    assert {job.device for job in jobs} == set(targets.TARGETS)
    assert {job.model for job in jobs} < set(subjects.SUBJECTS) == set(subjects.TITLES)
    assert [(job.model, job.regime) for job in jobs[:6]] == [("l14", "linear")] * 6
    assert {job.remat for job in jobs[:6]} == {"none", "dots", "layers"}
    assert all(size <= targets.TARGETS[job.device].memory for job, size in plan.searches())


def test_only_takes_values_of_fields(capsys):
    wanted = run.filters(["device=v5e_2x4,h100_x1", "batch=128"])
    assert select([Job("v5e_2x4", "b32"), Job("v6e_2x4", "b32"), Job("h100_x1", "b32", batch=8)], wanted) == [
        Job("v5e_2x4", "b32")
    ]
    with pytest.raises(ValueError, match="chip=v5e"):
        run.filters(["chip=v5e"])
    with pytest.raises(SystemExit):
        run.main(["--only", "chip=v5e"])
    run.main(["--list", "--only", "model=minilm", "device=h100_x1", "regime=linear", "remat=none"])
    assert capsys.readouterr().out == "h100_x1 minilm linear train × 128 replicated remat none precision default\n"


def test_a_device_without_a_compiler_is_named_and_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(targets, "missing", lambda target: "no compiler" if target.platform == "tpu" else "")
    found = made(tmp_path)
    run.compile_all(found, [Job("v5e_2x4", "b32"), Job("h100_x1", "b32")], float("inf"))
    assert [record["device"] for record in found.all()] == ["h100_x1"]
    assert "left out: TPU v5e, 2×4, no compiler" in capsys.readouterr().out


def test_the_tables_say_what_was_compiled(tmp_path):
    found = made(tmp_path)
    found.make(Job("h100_x1", "l14", regime="linear"))
    (table,) = tables.compiled(found.all())
    assert table.rows[0][:8] == ("L/14", "train", "linear", "128", "replicated", "none", "default", "0.93")
    assert table.rows[0][-4:] == ("13.78", "128.00", "all-reduce 12 ×, 1.00 GiB", "3")
    assert len(table.rows[0]) == len(table.columns)
    refusals = made(tmp_path / "other", measure=refused)
    refusals.make(Job("h100_x1", "l14"))
    assert tables.compiled(refusals.all())[0].rows[0][7:11] == ("–", "–", "–", "refused")


def test_the_table_of_the_largest_batches_has_what_was_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "missing", lambda target: "")
    found, job = made(tmp_path), Job("h100_x1", "l14", regime="linear")
    found.make(Job("h100_x1", "l14", regime="standard"))  # nobody looked for its largest
    run.search_all(found, [(job, 16)], float("inf"))
    assert tables.largest(found).rows == (("H100", "L/14", "linear", "none", "16", "136", "15.6", "256", "yes"),)


def test_a_prediction_takes_the_first_program_that_fits_and_the_operations_of_the_protocol(tmp_path):
    def measure(job):
        return refused(job) if job.remat == "none" else fitted(job)

    found = made(tmp_path, measure=measure)
    for remat in ("none", "layers"):
        found.make(Job("h100_x1", "b32", regime="standard", remat=remat))
    table = tables.predicted(found.all(), {"b32": Evaluation(pointwise=10**12, affine=3 * 10**12)})
    training = 8 * 2000 * 128 * 10**12
    # 21 points and the single-task model on validation; zero-shot, single-task and merged on test
    images = 22 * (814 + 376 + 2700 + 2664 + 5000 + 1890 + 1985 + 5000) + 3 * 87_433
    hours = (training + images * 10**12) / (495e12 * 0.4) / 3600
    assert table.rows == (
        ("H100", "B/32", "standard", "layers", f"{training / 1e18:.2f}", f"{images / 1e6:.3f}", f"{hours:.2f}"),
    )


def test_linearised_models_are_evaluated_in_one_pass_for_all_points():
    step, image = 1000, 10
    ordinary, linear = (prediction.counted(step, image, linearized=linearized) for linearized in (False, True))
    assert ordinary.training == linear.training == 8 * 2000 * step
    assert linear.evaluation == 2 * (20_429 + 87_433) * image < ordinary.evaluation


def test_a_record_in_words():
    job = Job("h100_x1", "b32")
    assert records.in_words(fitted(job)) == "13.78 GiB a device, 128.00 TFLOP, compiled in 3 s"
    assert records.in_words(refused(job)) == "does not fit, compiled in 3 s: RESOURCE_EXHAUSTED"


def test_the_readme_is_written_from_the_records_alone(tmp_path, monkeypatch):
    found = made(tmp_path / "results")
    found.make(Job("h100_x1", "b32"))
    readme = tmp_path / "README.md"
    readme.write_text(README)
    costs = {model: {"pointwise": 1, "affine": 3} for model in plan.MODELS}
    (tmp_path / "results" / "passes.json").write_text(json.dumps(costs))
    run.main(["--what", "tables", "--results", str(tmp_path / "results"), "--readme", str(readme)])
    text = readme.read_text()
    assert "### Compiled for H100 (1 × 80 GB)" in text and "| B/32 | train | standard | 128 |" in text
    assert "A prediction and no measurement" in text

"""Whole runs of negation and analogy on a minute CLIP, against accuracies worked out from the files alone."""

import itertools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tajax import analogy, apply_task_vector, data, models, results, vector_files
from tajax.data.preprocess import normalize
from tajax.linearization import linearize
from tajax.scaling import select_negation_coef
from tests.workflows.conftest import TASKS, contents
from tests.workflows.test_workflows import measure

GRID = (0.0, 0.2, 1.0)
SPLITS = ("val", "test")
REGIMES = {"attention": False, "linear": True}  # evaluated linearised?


@pytest.fixture(scope="module")
def control(world):
    """Images whose labels are the pre-trained model's own predictions: every change of them is a loss."""
    clip, draw = models.load(world / "clip"), np.random.default_rng([20230522, 300])
    names, arrays = ["leaf", "stone", "cloud", "river"], {"templates": ["{}"]}
    head = models.zero_shot_head(clip, names, ["{}"])
    for split, count in {"train": 4, "val": 30, "test": 20}.items():
        images = draw.integers(256, size=(count, 1, 1, 3)) + draw.integers(-60, 60, size=(count, 8, 8, 3))
        images = images.clip(0, 255).astype(np.uint8)
        features = clip.encode_image(clip.params["image"], normalize(images, clip.preprocessing))
        logits = np.asarray(features) @ np.asarray(head.weights)
        labels = np.arange(4) if split == "train" else logits.argmax(1)  # nothing is trained on it
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    np.savez(world / "control.npz", class_names=names, **arrays)
    return world / "control.npz"


@pytest.fixture(scope="module")
def negate(run, control):
    def negate(workdir, *flags, **overrides):
        given = {"control": control, "evaluate.scaling_coefs": GRID} | overrides
        return run("negation", workdir, *flags, **given)

    return negate


@pytest.fixture(scope="module")
def negated(world, negate):
    """`negated(regime)`: the directory of a finished run of it, made on first use."""
    made = {}

    def negated(regime):
        if regime not in made:
            made[regime] = negate(world / f"negated_{regime}", regime=regime)
            assert made[regime].code == 0, made[regime].err
            made[regime].workdir = world / f"negated_{regime}"
        return made[regime]

    return negated


@pytest.fixture(scope="module")
def base(world, control):
    """θ₀, the ordinary and the linearised encoder, and head and images of every task and split."""
    clip, tasks = models.load(world / "clip"), {}
    for path in (control, *(world / f"{name}.npz" for name in TASKS)):
        task = data.open_task(path)
        head = models.zero_shot_head(clip, task.class_names, task.templates)
        for split in SPLITS:
            (batch,) = data.load(task, split, batch_size=len(task.split(split)), preprocessing=clip.preprocessing)
            tasks[task.name, split] = head, batch
    theta0 = clip.params["image"]
    encoders = clip.encode_image, linearize(clip.encode_image, theta0)
    return SimpleNamespace(clip=clip, theta0=theta0, tasks=tasks, models=[jax.jit(encoder) for encoder in encoders])


def top1(base, linearized, on, split, tau, coef):
    params = apply_task_vector(base.theta0, tau, coef)
    return measure(base, (on, split), base.models[linearized], params)[0]


def vector(base, workdir, name):
    return vector_files.load_task_vector(workdir / "task_vectors" / f"{name}.safetensors", base.theta0)[0]


@pytest.mark.parametrize("regime", REGIMES)
def test_every_accuracy_is_that_of_the_model_minus_the_vector(regime, negated, base):
    workdir = negated(regime).workdir
    records = results.read(workdir / "results.jsonl")
    sweep = results.find(records, stage="negation_sweep")
    assert len(sweep) == len(TASKS) * 2 * len(GRID)
    for name, coef in itertools.product(TASKS, GRID):
        tau = vector(base, workdir, name)
        for on in (name, "control"):
            (record,) = results.find(sweep, task=name, measured_on=on, scaling_coef=coef)
            assert record["top1"] == top1(base, REGIMES[regime], on, "val", tau, -coef), (name, on, coef)
    for name, split in itertools.product(TASKS, SPLITS):
        (record,) = results.find(records, stage="task_negation", task=name, split=split)
        tau, coef = vector(base, workdir, name), record["scaling_coef"]
        assert record["top1"] == top1(base, REGIMES[regime], name, split, tau, -coef)
        assert record["control_top1"] == top1(base, REGIMES[regime], "control", split, tau, -coef)
        assert (record["count"], record["control_count"]) == ((12, 30) if split == "val" else (20, 20))
    for split in SPLITS:
        (record,) = results.find(records, stage="control", split=split)
        assert record["top1"] == 1.0  # by construction
    assert len({r["top1"] for r in sweep if r["measured_on"] == "control"}) > 2  # there was something to lose


@pytest.mark.parametrize("regime", REGIMES)
def test_the_coefficient_follows_from_the_recorded_sweep(regime, negated):
    records = results.read(negated(regime).workdir / "results.jsonl")
    for name in TASKS:
        curves = [results.find(records, stage="negation_sweep", task=name, measured_on=on) for on in (name, "control")]
        assert all([r["scaling_coef"] for r in curve] == list(GRID) for curve in curves)
        expected = select_negation_coef(GRID, *([r["top1"] for r in curve] for curve in curves), required=0.95)
        for record in results.find(records, stage="task_negation", task=name):
            assert {field: record[field] for field in expected._fields} == expected._asdict()
            assert record["control_required"] == 0.95 and record["satisfied"]  # 0 is in the grid


def test_exact_coefficient_forgets_at_least_as_much_as_any_of_the_grid(negated, negate, world):
    source, workdir = negated("linear").workdir, world / "negated_exactly"
    exact = {"regime": "linear", "task_vectors": source, "evaluate.exact": True, "evaluate.control_threshold": 0.8}
    assert negate(workdir, **exact).code == 0
    records = results.read(workdir / "results.jsonl")
    grid_alone = results.find(results.read(source / "results.jsonl"), stage="negation_sweep")
    points = [(r["task"], r["measured_on"], r["scaling_coef"], r["top1"]) for r in grid_alone]
    sweep = results.find(records, stage="negation_sweep")
    assert sorted((r["task"], r["measured_on"], r["scaling_coef"], r["top1"]) for r in sweep) == sorted(points)
    for name in TASKS:
        on_task, on_control = (
            {r["scaling_coef"]: r["top1"] for r in results.find(sweep, task=name, measured_on=on)}
            for on in (name, "control")
        )
        (record,) = results.find(records, stage="task_negation", task=name, split="val")
        assert record["satisfied"] and record["control_top1"] >= 0.8
        assert record["top1"] <= min(on_task[c] for c in GRID if on_control[c] >= 0.8)
        assert GRID[0] <= record["lower"] < record["scaling_coef"] < record["upper"] <= GRID[-1]
    assert negate(workdir, **exact).code == 0
    assert results.read(workdir / "results.jsonl") == records  # read back, not searched again


def test_a_control_that_cannot_be_kept_is_a_result(negated, negate, tmp_path):
    """Steps so long that the model is another, and a control of which nothing may be lost."""
    source = negated("attention").workdir
    fields = {"evaluate.scaling_coefs": (20.0, 30.0), "evaluate.control_threshold": 1.0}
    done = negate(tmp_path / "run", task_vectors=source, **fields)
    assert done.code == 0, done.err
    records = results.read(tmp_path / "run" / "results.jsonl")
    for name in TASKS:
        curve = results.find(records, stage="negation_sweep", task=name, measured_on="control")
        best = max(r["top1"] for r in curve)
        assert best < 1
        chosen = results.find(records, stage="task_negation", task=name)
        assert [r["satisfied"] for r in chosen] == [False, False]
        assert results.find(chosen, split="val")[0]["control_top1"] == best  # the nearest miss
    assert "no α of the grid keeps the control for pets, tools: the nearest miss" in done.out
    assert "end of the grid" not in done.out


def test_second_run_measures_nothing_and_prints_the_same(negated, negate):
    first = negated("attention")
    before = contents(first.workdir)["results.jsonl"]
    again = negate(first.workdir, regime="attention")
    assert (again.code, again.out) == (0, first.out)
    assert contents(first.workdir)["results.jsonl"] == before


def test_interrupted_sweep_ends_with_the_same_records(negated, negate, tmp_path, monkeypatch):
    source, append = negated("attention").workdir, results.append

    def append_and_die(path, record):
        append(path, record)
        if record["stage"] == "negation_sweep" and (record["task"], record["scaling_coef"]) == ("tools", GRID[1]):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "append", append_and_die)
        assert negate(tmp_path / "run", task_vectors=source).code == 130
    assert negate(tmp_path / "run", task_vectors=source).code == 0

    def measured(workdir):
        skipped = ("elapsed_seconds", "config_hash")
        records = (r for r in results.read(workdir / "results.jsonl") if r["stage"] not in ("run", "finetune"))
        return sorted(json.dumps({k: v for k, v in r.items() if k not in skipped}, sort_keys=True) for r in records)

    assert measured(tmp_path / "run") == measured(source)


def test_control_and_task_of_one_name_are_refused_before_training(negate, world, control, tmp_path):
    (tmp_path / "pets.npz").write_bytes(control.read_bytes())
    refused = negate(tmp_path / "run", control=tmp_path / "pets.npz")
    assert refused.code == 2
    assert "are both called 'pets'" in refused.err
    assert not list((tmp_path / "run").rglob("*.safetensors"))


ANALOGY = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def quadruple(world):
    """Four tasks of two classes: B and D are A and C with inverted colours."""
    draw = np.random.default_rng([20230522, 310])
    for pair in (("a", "b"), ("c", "d")):
        colors = draw.integers(40, 216, size=(2, 1, 1, 3))
        arrays = {"class_names": ["ox", "zebra"] if "a" in pair else ["saw", "pickaxe"], "templates": ["{}"]}
        for split, count in {"train": 24, "val": 12, "test": 20}.items():
            labels = np.arange(count) % 2
            images = (colors[labels] + draw.integers(-40, 40, size=(count, 8, 8, 3))).astype(np.uint8)
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        np.savez(world / f"{pair[0]}.npz", **arrays)
        inverted = {key: 255 - value if key.endswith("images") else value for key, value in arrays.items()}
        np.savez(world / f"{pair[1]}.npz", **inverted)
    return {"workflow": "task_analogy", "tasks": tuple(str(world / f"{name}.npz") for name in ANALOGY)}


def test_analogy_is_measured_on_the_fourth_task(run, quadruple, world, tmp_path):
    done = run("attn", tmp_path / "run", **quadruple, **{"evaluate.scaling_coefs": GRID})
    assert done.code == 0, done.err
    records = results.read(tmp_path / "run" / "results.jsonl")
    clip = models.load(world / "clip")
    task = data.open_task(world / "d.npz")
    head = models.zero_shot_head(clip, task.class_names, task.templates)
    base = SimpleNamespace(clip=clip, theta0=clip.params["image"], tasks={}, models=[jax.jit(clip.encode_image)])
    for split in SPLITS:
        (batch,) = data.load(task, split, batch_size=len(task.split(split)), preprocessing=clip.preprocessing)
        base.tasks["d", split] = head, batch
    a, b, c = (vector(base, tmp_path / "run", name) for name in ANALOGY[:3])
    for name, tau in {"analogy": analogy(a, b, c), "c_alone": c}.items():
        curve = {coef: top1(base, False, "d", "val", tau, coef) for coef in GRID}
        recorded = results.find(records, stage="analogy_sweep", vector=name)
        assert {r["scaling_coef"]: r["top1"] for r in recorded} == curve
        best = min(GRID, key=lambda coef, curve=curve: (-curve[coef], coef))
        for split in SPLITS:
            (record,) = results.find(records, stage="task_analogy", vector=name, split=split)
            assert (record["task"], record["scaling_coef"]) == ("d", best)
            assert record["top1"] == top1(base, False, "d", split, tau, best)
    assert "c + (b − a)" in done.out and "fine-tuned on d" in done.out
    assert run("attn", tmp_path / "run", **quadruple, **{"evaluate.scaling_coefs": GRID}).code == 0
    assert results.read(tmp_path / "run" / "results.jsonl") == records


def test_analogy_refuses_what_it_does_not_do(run, quadruple, tmp_path):
    refused = run("linear", tmp_path / "run", **quadruple, **{"evaluate.exact": True})
    assert refused.code == 2 and "evaluate.exact is not for task_analogy" in refused.err

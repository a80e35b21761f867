"""Whole runs from the command line, on a minute CLIP and two small tasks: what they leave, skip and resume."""

import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tajax import apply_task_vector, checkpoints, combine, data, models, results, scaling, trees, vector_files
from tajax.config import REGIMES
from tajax.data.preprocess import normalize
from tajax.linearization import linearize
from tajax.models.preprocessor import OPENAI_MEAN
from tajax.workflows import sweep as sweeps
from tests.workflows.conftest import CONFIGS, GRID, TASKS, contents, save_clip


@pytest.fixture(scope="module")
def finished(world, run):
    """`finished(config)`: the directory of a finished run of it, made on first use, and what it printed."""
    done = {}

    def finished(config):
        if config not in done:
            source = {"task_vectors": finished("standard").workdir} if config == "posthoc" else {}
            done[config] = run(config, world / config, **source)
            assert done[config].code == 0, done[config].err
            done[config].workdir = world / config
        return done[config]

    return finished


def vectors(workdir, like):
    return [vector_files.load_task_vector(workdir / "task_vectors" / f"{name}.safetensors", like)[0] for name in TASKS]


def vector_bits(workdir):
    """The tensors of every vector, bit for bit; the order of a file's metadata is not determined."""
    files = sorted((workdir / "task_vectors").iterdir())
    return {file.stem: {name: leaf.tobytes() for name, leaf in load_file(file).items()} for file in files}


@pytest.fixture(scope="module")
def base(world):
    """The pre-trained model and its expansion, and of each task the head and the test split as one batch."""
    clip = models.load(world / "clip")
    tasks = {}
    for name in TASKS:
        task = data.open_task(world / f"{name}.npz")
        (batch,) = data.load(task, "test", batch_size=20, preprocessing=clip.preprocessing)
        tasks[name] = models.zero_shot_head(clip, task.class_names, task.templates), batch
    theta0 = clip.params["image"]
    encoders = clip.encode_image, linearize(clip.encode_image, theta0)
    return SimpleNamespace(clip=clip, theta0=theta0, tasks=tasks, models=[jax.jit(encoder) for encoder in encoders])


def measure(base, task, model, params):
    """Accuracy and mean loss of a model on a test split, by the shortest way, in NumPy float64."""
    head, batch = base.tasks[task]
    features = np.asarray(model(params, normalize(jnp.asarray(batch.inputs), base.clip.preprocessing)), np.float64)
    logits = features / np.linalg.norm(features, axis=1, keepdims=True) @ np.asarray(head.weights, np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), batch.label]
    return (logits.argmax(1) == batch.label).mean(), losses.mean()


OTHERS = {"pretrain", "negation", "merge", *(name for name, regime in REGIMES.items() if regime.method)}
EVERY_CONFIG = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in OTHERS)


@pytest.mark.parametrize("config", EVERY_CONFIG)
def test_every_config_runs_and_records_every_stage_once(config, finished):
    workdir = finished(config).workdir
    records = results.read(workdir / "results.jsonl")
    seen = [(r["stage"], r.get("task"), r.get("split"), r.get("step", r.get("scaling_coef"))) for r in records]
    (coef,) = {r["scaling_coef"] for r in records if r["stage"] == "task_addition"}
    both = [(task, split) for task in TASKS for split in ("val", "test")]
    expected = [("run", None, None, None)]
    expected += [(stage, *where, None) for stage in ("zero_shot", "single_task") for where in both]
    expected += [("task_addition", *where, coef) for where in both]
    expected += [("predictions", task, "test", None) for task in TASKS]
    expected += [("sweep", task, "val", point) for task in TASKS for point in GRID]
    if config != "posthoc":  # it takes the vectors of the standard run
        expected += [("finetune", task, None, step) for task in TASKS for step in (1, 2, 3)]
    assert sorted(seen, key=repr) == sorted(expected, key=repr)
    assert len({r["config_hash"] for r in records}) == 1
    assert {r["regime"] for r in records} == {json.loads((workdir / "config.json").read_text())["regime"]}
    counts = {(r["task"], r["split"]): r["count"] for r in records if "count" in r}
    assert counts == {(task, split): {"val": 12, "test": 20}[split] for task in TASKS for split in ("val", "test")}
    assert (workdir / "task_vectors").exists() == (config != "posthoc")
    assert not list((workdir / "checkpoints").glob("*/*"))  # a finished task needs none
    assert (workdir / "report.md").read_text().count("| pets |") == 1


@pytest.mark.parametrize("config", EVERY_CONFIG)
def test_accuracies_are_those_of_the_vectors_on_disk(config, finished, base):
    """Everything recorded, from the files alone and without tajax's sweeps, in the regime's kind of model."""
    workdir = finished(config).workdir
    records = results.read(workdir / "results.jsonl")
    regime = REGIMES[records[0]["regime"]]
    theta0 = base.theta0
    taus = vectors(workdir if config != "posthoc" else finished("standard").workdir, theta0)
    trained = trees.flatten_paths(trees.param_mask(theta0, regime.trainable))
    for tau in taus:
        moved = {path for path, leaf in trees.flatten_paths(tau).items() if np.any(leaf)}
        assert moved <= {path for path, chosen in trained.items() if chosen}
        assert len(moved) > 3
    sizes = {path: np.size(leaf) for path, leaf in trees.flatten_paths(theta0).items()}
    assert records[0]["trained_parameters"] == sum(sizes[path] for path, chosen in trained.items() if chosen)
    model = base.models[regime.evaluate_linearized]
    for name, tau in zip(TASKS, taus, strict=True):
        measured = results.find(records, task=name, split="test")
        for stage, vector in {"zero_shot": None, "single_task": tau, "task_addition": combine(taus)}.items():
            (record,) = results.find(measured, stage=stage)
            params = theta0 if vector is None else apply_task_vector(theta0, vector, record.get("scaling_coef", 1.0))
            top1, loss = measure(base, name, model, params)
            assert record["top1"] == top1, stage
            np.testing.assert_allclose(record["loss"], loss, rtol=1e-4, err_msg=stage)  # float32, temperature 20


def test_coefficient_is_chosen_by_validation_accuracies(finished, run, monkeypatch):
    workdir, seen = finished("attn").workdir, []
    records = results.read(workdir / "results.jsonl")
    select = scaling.select_scaling_coef
    monkeypatch.setattr(sweeps, "select_scaling_coef", lambda *given: seen.append(given) or select(*given))
    assert run("attn", workdir).code == 0
    ((grid, accuracies, single),) = seen
    sweep, alone = results.find(records, stage="sweep"), results.find(records, stage="single_task", split="val")
    assert tuple(grid) == GRID
    assert accuracies.tolist() == [[r["top1"] for r in results.find(sweep, task=task)] for task in TASKS]
    assert single.tolist() == [r["top1"] for r in alone]
    for record in results.find(records, stage="task_addition"):
        assert record["scaling_coef"] == GRID[select(grid, accuracies, single)]
        (alone,) = results.find(records, stage="single_task", task=record["task"], split=record["split"])
        assert record["normalized_top1"] == record["top1"] / alone["top1"]


@pytest.mark.parametrize("regime", ["standard", "posthoc"])
def test_a_search_measures_a_part_of_the_grid_and_the_rest_can_follow(regime, finished, run, world):
    """Only where each α costs a pass; what is measured is what the whole grid has there; θ₀ is not measured twice."""
    grid = tuple(round(0.1 * k, 1) for k in range(11))
    settings = {"task_vectors": finished("standard").workdir, "evaluate.scaling_coefs": grid}

    def measured(workdir):
        records = results.read(workdir / "results.jsonl")
        found = {(r["task"], r["scaling_coef"]): r["top1"] for r in results.find(records, stage="sweep")}
        return found, results.find(records, stage="task_addition"), records

    assert run(regime, world / f"whole_{regime}", **settings, **{"evaluate.search": "grid"}).code == 0
    done = run(regime, world / f"part_{regime}", **settings)
    assert done.code == 0, done.err
    (whole, _, _), (part, added, records) = measured(world / f"whole_{regime}"), measured(world / f"part_{regime}")
    assert set(whole) == {(task, coef) for task in TASKS for coef in grid}
    assert part.items() <= whole.items()
    if regime == "posthoc":  # one pass gives all
        assert part == whole and not any("search" in r for r in added)
        return
    coefs = {coef for _, coef in part}
    assert {0.0, 0.4, 0.8, 1.0} <= coefs < set(grid) and set(part) == {(task, coef) for task in TASKS for coef in coefs}
    assert {r["search"] for r in added} == {"coarse_to_fine"}
    assert "tuned on validation, coarse to fine" in done.out
    origin = {r["task"]: (r["top1"], r["loss"]) for r in results.find(records, stage="zero_shot", split="val")}
    at_zero = results.find(records, stage="sweep", scaling_coef=0.0)
    assert {r["task"]: (r["top1"], r["loss"]) for r in at_zero} == origin
    again = run(regime, world / f"part_{regime}", **settings, **{"evaluate.search": "grid"})
    filled, later, _ = measured(world / f"part_{regime}")
    assert filled == whole
    best = {r["scaling_coef"] for r in measured(world / f"whole_{regime}")[1]}
    assert again.code == (0 if best == {r["scaling_coef"] for r in added} else 2), again.err
    assert later == added
    assert run(regime, world / f"part_{regime}", **settings).code == 0  # what the search sees is what it was


def test_exact_coefficient_is_at_least_as_good_as_any_of_the_grid(finished, run, world):
    """Post-hoc linearised vectors, the grid and the optimum from the same pass."""
    workdir, grid_alone = world / "exact", finished("posthoc").workdir
    exact = {"task_vectors": finished("standard").workdir, "evaluate.exact": True}
    assert run("posthoc", workdir, **exact).code == 0
    records = results.read(workdir / "results.jsonl")
    (best,) = results.find(records, stage="exact_scaling_coef")
    assert GRID[0] <= best["lower"] < best["scaling_coef"] < best["upper"] <= GRID[-1]
    sweep, alone = results.find(records, stage="sweep"), results.find(records, stage="single_task", split="val")
    same = results.find(results.read(grid_alone / "results.jsonl"), stage="sweep")
    assert [(r["task"], r["scaling_coef"], r["top1"]) for r in sweep] == [
        (r["task"], r["scaling_coef"], r["top1"]) for r in same
    ]
    single = {record["task"]: record["top1"] for record in alone}
    means = [np.mean([r["top1"] / single[r["task"]] for r in results.find(sweep, scaling_coef=c)]) for c in GRID]
    assert len(set(means)) > 1 and max(means) <= best["value"] + 1e-12
    chosen = results.find(records, stage="task_addition", split="val")
    assert {r["scaling_coef"] for r in chosen} == {best["scaling_coef"]}
    assert np.mean([r["normalized_top1"] for r in chosen]) == pytest.approx(best["value"], abs=1e-9)
    assert run("posthoc", workdir, **exact).code == 0
    assert results.read(workdir / "results.jsonl") == records  # read back, not searched again


def test_merged_model_opens_and_lies_on_the_sum_of_the_vectors(finished, world):
    workdir = finished("attn").workdir
    base, merged = models.load(world / "clip"), models.load(workdir / "merged")
    (coef,) = {r["scaling_coef"] for r in results.read(workdir / "results.jsonl") if r["stage"] == "task_addition"}
    expected = apply_task_vector(base.params["image"], combine(vectors(workdir, base.params["image"])), coef)
    got = trees.flatten_paths(merged.params)
    for path, leaf in trees.flatten_paths(base.params | {"image": expected}).items():
        np.testing.assert_allclose(got[path], leaf, rtol=0, atol=1e-7, err_msg=path)  # float32 on disk; order of sums
    assert coef > 0 and merged.image_sha256 != base.image_sha256


def test_open_clips_copy_of_the_merged_model_can_be_asked_for_later(finished, run, tmp_path):
    workdir = shutil.copytree(finished("attn").workdir, tmp_path / "run")
    before = contents(workdir / "merged")
    assert run("attn", workdir, save__open_clip=True).code == 0
    assert contents(workdir / "merged") == before
    jax.tree.map(
        np.testing.assert_array_equal,
        models.load(workdir / "merged_open_clip").params,
        models.load(workdir / "merged").params,
    )


def test_second_run_trains_and_measures_nothing_and_prints_the_same(finished, run):
    first = finished("attn")
    before = {name: file for name, file in contents(first.workdir).items() if not name.startswith("report.")}
    again = run("attn", first.workdir)
    assert (again.code, again.out) == (0, first.out)
    assert {name: file for name, file in contents(first.workdir).items() if not name.startswith("report.")} == before


def test_operational_fields_may_change_in_a_finished_run(finished, run):
    """How often to log is not part of what a run computes, nor how many images are evaluated at once."""
    workdir = finished("attn").workdir
    before = contents(workdir)["results.jsonl"]
    assert run("attn", workdir, evaluate__batch_size=5, finetune__log_every=2).code == 0
    assert contents(workdir)["results.jsonl"] == before


def test_another_config_is_refused_by_field_and_touches_nothing(finished, run):
    workdir = finished("attn").workdir
    before = contents(workdir)
    refused = run("attn", workdir, seed=3, finetune__weight_decay=0.2, finetune__log_every=7)
    assert refused.code == 2
    assert "seed: 0 → 3" in refused.err
    assert "finetune.weight_decay: 0.1 → 0.2" in refused.err
    assert "log_every" not in refused.err  # that one could have been changed
    assert "--overwrite" in refused.err
    assert contents(workdir) == before


def test_overwrite_replaces_the_run_and_nothing_else(finished, run, tmp_path):
    """With another workflow too, which stops after the single tasks."""
    shutil.copytree(finished("attn").workdir, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    old = vector_bits(tmp_path / "run")
    done = run("attn", tmp_path / "run", "--overwrite", workflow="single_task", seed=3)
    assert done.code == 0, done.err
    records = results.read(tmp_path / "run" / "results.jsonl")
    assert {r["stage"] for r in records} == {"run", "zero_shot", "finetune", "single_task"}
    assert {r["seed"] for r in records} == {3}
    assert not (tmp_path / "run" / "merged").exists()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    new = vector_bits(tmp_path / "run")
    assert all(new[name] != old[name] for name in old)


def test_interrupted_run_ends_with_the_same_vectors_and_records(finished, run, tmp_path, monkeypatch):
    """Killed in the second task after a checkpoint, then once more while the sweep is being measured."""
    whole = finished("attn").workdir
    save, calls = checkpoints.Writer.save, []

    def save_and_die(writer, state, *, step, notes):
        save(writer, state, step=step, notes=notes)
        calls.append((writer.directory.name, step))
        if calls[-1] == ("tools", 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Writer, "save", save_and_die)
        killed = run("attn", tmp_path / "run", finetune__checkpoint_every=1)
    assert killed.code == 130
    assert calls == [("pets", 1), ("pets", 2), ("tools", 1)]
    assert set(vector_bits(tmp_path / "run")) == {"pets"}

    append = results.append

    def append_and_die(path, record):
        append(path, record)
        if record["stage"] == "sweep" and record["scaling_coef"] == GRID[1]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "append", append_and_die)
        assert run("attn", tmp_path / "run", finetune__checkpoint_every=1).code == 130
    assert vector_bits(tmp_path / "run") == vector_bits(whole)

    last = run("attn", tmp_path / "run")
    assert last.code == 0, last.err

    def measured(workdir):
        skipped = ("elapsed_seconds", "images_per_second")
        records = (r for r in results.read(workdir / "results.jsonl") if r["stage"] != "run")
        return sorted(json.dumps({k: v for k, v in r.items() if k not in skipped}, sort_keys=True) for r in records)

    assert measured(tmp_path / "run") == measured(whole)


def test_posthoc_trains_nothing_and_refuses_vectors_of_another_base(finished, run, rng, tmp_path):
    finished("posthoc")  # with the vectors of the standard run and their base
    save_clip(tmp_path / "other", rng(211))
    refused = run("posthoc", tmp_path / "run", model=tmp_path / "other", task_vectors=finished("standard").workdir)
    assert refused.code == 2
    assert "pets.safetensors was made from an encoder with sha256" in refused.err
    missing = run("posthoc", tmp_path / "second", task_vectors=tmp_path / "nowhere")
    assert missing.code == 2
    assert f"there are no task vectors in {tmp_path / 'nowhere'}" in missing.err and not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.safetensors", "was begun with a model of sha256"),
        ("preprocessor_config.json", "preprocessing mean: [0.5, 0.5, 0.5] → "),
        ("config.json", "encoder hidden_act: quick_gelu → "),
    ],
)
def test_base_that_changed_under_a_run_is_refused(finished, run, tmp_path, world, rng, file, message):
    """The same path with another model: vectors and accuracies in the directory are of one that is gone."""
    workdir = tmp_path / "run"
    shutil.copytree(finished("attn").workdir, workdir)
    before = contents(workdir)
    kept = shutil.copytree(world / "clip", tmp_path / "kept")
    save_clip(tmp_path / "other", rng(211))
    other = tmp_path / "other" / file
    if file.endswith(".json"):
        other.write_text((kept / file).read_text().replace('"quick_gelu"', '"gelu"').replace("0.5", "0.25"))
    try:
        shutil.copy(other, world / "clip" / file)
        refused = run("attn", workdir)
    finally:
        shutil.copy(kept / file, world / "clip" / file)
    assert refused.code == 2
    assert message in refused.err
    assert contents(workdir) == before


def test_what_is_doubtful_is_said_recorded_and_on_top_of_the_report(world, run, base, tmp_path):
    """Splits that say little, cuts that were made, and a pre-trained model that guesses better than it knows."""
    arrays = dict(np.load(world / "pets.npz"))
    features = jax.jit(base.clip.encode_image)
    head = np.asarray(base.tasks["pets"][0].weights)
    for split in ("train", "test"):  # labels that the pre-trained model never predicts
        images = jnp.asarray(arrays[f"{split}_images"])
        predicted = np.asarray(features(base.theta0, normalize(images, base.clip.preprocessing)) @ head).argmax(1)
        arrays[f"{split}_labels"] = (predicted + 1) % 3
    arrays["train_labels"][:3] = range(3)
    del arrays["val_images"], arrays["val_labels"]
    np.savez(tmp_path / "wrong.npz", **arrays)
    workdir, fields = tmp_path / "run", {"workflow": "single_task", "finetune__steps": 1}
    done = run("attn", workdir, "--quiet", tasks=str(tmp_path / "wrong.npz"), **fields)
    assert done.code == 0, done.err
    records = results.read(workdir / "results.jsonl")
    (about,) = results.find(records, stage="run")
    task = data.open_task(tmp_path / "wrong.npz")
    assert about["cuts"] == {"wrong": {"val": {"seed": 0, "count": 2}}} and about["warnings"] == [*task.warnings]
    assert any(line.startswith("wrong: the val split has 2 images of 3 classes") for line in about["warnings"])
    (measured,) = results.find(records, stage="zero_shot", split="test")
    (below,) = measured["warnings"]
    assert (
        measured["top1"] == 0
        and "wrong: the pre-trained model has 0.0% on the test split, below chance (33.3%" in below
    )
    every = [*about["warnings"], *(w for r in results.find(records, stage="zero_shot") for w in r.get("warnings", ()))]
    assert done.err.splitlines() == [f"warning: {line}" for line in every]  # a quiet run says nothing else
    assert (workdir / "report.md").read_text().startswith("".join(f"> {line}\n\n" for line in every))
    page = (workdir / "report.html").read_text()
    assert all(f'<p class="notice">{line}</p>' in page for line in every)


def test_the_record_says_what_was_told_of_the_model_and_what_was_a_default(finished, run, tmp_path, world, caplog):
    (told,) = results.find(results.read(finished("attn").workdir / "results.jsonl"), stage="run")
    assert told["preprocessing"].pop("from") == "preprocessor_config.json"
    assert told["activation"] == {"hidden_act": "quick_gelu", "from": "config.json"}
    clip = shutil.copytree(world / "clip", tmp_path / "clip")
    (clip / "preprocessor_config.json").unlink()
    run("posthoc", tmp_path / "run", model=clip, task_vectors=finished("standard").workdir)
    (default,) = results.find(results.read(tmp_path / "run" / "results.jsonl"), stage="run")
    assert default["preprocessing"].pop("from") == "default (OpenAI's)"
    assert default["preprocessing"]["mean"] == list(OPENAI_MEAN)
    assert caplog.text.count("images are prepared with OpenAI's mean and deviation") == 1

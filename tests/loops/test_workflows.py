"""Whole runs from the command line, on a minute CLIP and two small tasks: what they leave, skip, refuse and resume."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tajax import apply_task_vector, checkpoints, combine, data, finetune, main, models, results, trees
from tajax.config import REGIMES, default_config
from tajax.data.preprocess import normalize
from tajax.linearize import linearize
from tajax.models import CLIP, ClipConfig, TextConfig, VisionConfig, save_pretrained, train_bpe
from tajax.types import Preprocessing
from tajax.workflows import task_addition
from tajax.workflows.workdir import claim

CONFIGS = Path(__file__).parents[2] / "configs"
GRID = (0.3, 0.6, 1.0)
TASKS = {"pets": ("ox", "zebra", "hummingbird"), "tools": ("saw", "pickaxe")}


def save_clip(directory, rng):
    """A random CLIP of 8 pixels, width 16 and 2 layers, in the Hugging Face format."""
    tokenizer = train_bpe(["a photo of a bee or an axe."] * 2, vocab_size=520, context_length=16)
    depth = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8, "intermediate_size": 16}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = ClipConfig(
        vision=VisionConfig(hidden_size=16, image_size=8, patch_size=4, **depth),
        text=TextConfig(hidden_size=16, vocab_size=tokenizer.vocab_size, max_position_embeddings=16, **ids, **depth),
    )
    blank = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 16), jnp.int32)
    shapes = jax.eval_shape(CLIP(config).init, jax.random.key(0), *blank)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    for path in ("position_embedding", "bias"):  # common to all texts: without them the heads tell class names apart
        zeros = trees.param_mask(params["text"], f".*{path}")
        params["text"] = jax.tree.map(lambda leaf, zero: leaf * (not zero), params["text"], zeros)
    params["logit_scale"] = jnp.float32(3)
    save_pretrained(directory, config, params, tokenizer, Preprocessing(8, (0.5,) * 3, (0.3,) * 3))


@pytest.fixture(scope="module")
def world(tmp_path_factory, rng, programs):
    """The model, and two tasks whose classes differ in colour."""
    home = tmp_path_factory.mktemp("world")
    save_clip(home / "clip", rng(210))
    for number, (name, classes) in enumerate(TASKS.items()):
        draw, arrays = rng(200 + number), {"class_names": list(classes), "templates": ["{}"]}
        colors = draw.integers(40, 216, size=(len(classes), 1, 1, 3))
        for split, count in {"train": 24, "val": 12, "test": 20}.items():
            labels = np.arange(count) % len(classes)
            noise = draw.integers(-40, 40, size=(count, 8, 8, 3))
            arrays |= {f"{split}_images": (colors[labels] + noise).astype(np.uint8), f"{split}_labels": labels}
        np.savez(home / f"{name}.npz", **arrays)
    return home


@pytest.fixture(scope="module")
def run(world):
    """`run(config, workdir, **overrides)` as from the command line: its exit code and what it printed."""

    def run(config, workdir, *flags, **overrides):
        name, _, variant = config.partition(":")
        fields = {
            "model": world / "clip",
            "tasks": tuple(str(world / f"{name}.npz") for name in TASKS),
            "finetune.steps": 3,
            "finetune.batch_size": 8,
            "finetune.learning_rate": 0.01,
            "finetune.log_every": 1,
            "evaluate.batch_size": 8,
            "evaluate.scaling_coefs": GRID,
        } | {name.replace("__", "."): value for name, value in overrides.items()}
        given = [f"--config.{field}={value}" for field, value in fields.items() if value is not None]
        file = f"{CONFIGS / name}.py:{variant or 'tiny'}"
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.main(["tajax", f"--config={file}", f"--workdir={workdir}", *given, *flags])
        return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())

    return run


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


def contents(directory):
    """Every file with its bytes and time of change."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def vectors(workdir, like):
    return [checkpoints.load_task_vector(workdir / "task_vectors" / f"{name}.safetensors", like)[0] for name in TASKS]


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
    features = np.asarray(model(params, normalize(jnp.asarray(batch.image), base.clip.preprocessing)), np.float64)
    logits = features / np.linalg.norm(features, axis=1, keepdims=True) @ np.asarray(head.weights, np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), batch.label]
    return (logits.argmax(1) == batch.label).mean(), losses.mean()


EVERY_CONFIG = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "pretrain")


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
    select = task_addition.select_scaling_coef
    monkeypatch.setattr(task_addition, "select_scaling_coef", lambda *given: seen.append(given) or select(*given))
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


def test_more_devices_than_present_are_refused_before_anything_is_written(run, world):
    refused = run("attn", world / "many", devices=99)
    assert refused.code == 2
    assert "99 devices asked for, but this process has" in refused.err
    assert not (world / "many").exists() or not any((world / "many").iterdir())


def test_merged_model_opens_and_lies_on_the_sum_of_the_vectors(finished, world):
    workdir = finished("attn").workdir
    base, merged = models.load(world / "clip"), models.load(workdir / "merged")
    (coef,) = {r["scaling_coef"] for r in results.read(workdir / "results.jsonl") if r["stage"] == "task_addition"}
    expected = apply_task_vector(base.params["image"], combine(vectors(workdir, base.params["image"])), coef)
    got = trees.flatten_paths(merged.params)
    for path, leaf in trees.flatten_paths(base.params | {"image": expected}).items():
        np.testing.assert_allclose(got[path], leaf, rtol=0, atol=1e-7, err_msg=path)  # float32 on disk; order of sums
    assert coef > 0 and merged.image_sha256 != base.image_sha256


def test_second_run_trains_and_measures_nothing_and_prints_the_same(finished, run):
    first = finished("attn")
    before = {name: file for name, file in contents(first.workdir).items() if name != "report.md"}
    again = run("attn", first.workdir)
    assert (again.code, again.out) == (0, first.out)
    assert {name: file for name, file in contents(first.workdir).items() if name != "report.md"} == before


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
    save, calls = checkpoints.save, []

    def save_and_die(directory, state, *, step):
        save(directory, state, step=step)
        calls.append((directory.name, step))
        if calls[-1] == ("tools", 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", save_and_die)
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

    assert run("attn", tmp_path / "run").code == 0

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
    assert "pets.safetensors was made from an image tower with sha256" in refused.err
    missing = run("posthoc", tmp_path / "second", task_vectors=tmp_path / "nowhere")
    assert missing.code == 2
    assert f"no task vector {tmp_path / 'nowhere' / 'task_vectors' / 'pets.safetensors'}" in missing.err


def test_base_that_changed_under_a_run_is_refused(finished, run, tmp_path, world, rng):
    """The same path with other weights: vectors and accuracies in the directory are of a model that is gone."""
    workdir = tmp_path / "run"
    shutil.copytree(finished("attn").workdir, workdir)
    before = contents(workdir)
    kept = shutil.copytree(world / "clip", tmp_path / "kept")
    save_clip(tmp_path / "other", rng(211))
    try:
        shutil.copy(tmp_path / "other" / "model.safetensors", world / "clip" / "model.safetensors")
        refused = run("attn", workdir)
    finally:
        shutil.copy(kept / "model.safetensors", world / "clip" / "model.safetensors")
    assert refused.code == 2
    assert "was begun with an image tower of sha256" in refused.err
    assert contents(workdir) == before


BAD = {  # overrides, and what the message has to hold
    "regime": (
        {"regime": "atention"},
        "unknown regime 'atention'",
        "Did you mean 'attention'?",
        "standard, attention, ",
    ),
    "rule": (
        {"trainable": "atention"},
        "trainable rule 'atention' matches none",
        "Did you mean 'attention'?",
        "biases",
    ),
    "mask": ({"trainable": "attn/kwery/kernel"}, "matches none", "Nearest paths: ", "blocks/attn/query/kernel"),
    "task": ({"tasks": "('digts',)"}, "unknown task 'digts'", "Did you mean 'digits'", "shapes, "),
    "path": ({"tasks": "('./nothing.npz',)"}, "nothing.npz does not exist"),
    "hub id": ({"model": "openai/clip-vit-base-patch32"}, "Cannot fetch 'openai/clip-vit-base-patch32'", "hf download"),
    "model": ({"model": "tinny"}, "No model 'tinny'", "'tiny'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_its_name_before_anything_is_kept(case, run, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    overrides, *fragments = BAD[case]
    refused = run("attn", tmp_path / "run", **overrides)
    assert refused.code == 2
    assert not [fragment for fragment in fragments if fragment not in refused.err], refused.err
    assert not list((tmp_path / "run").glob("*"))


def test_every_task_can_be_trained_before_the_first_one_is(run, world, tmp_path, monkeypatch):
    """One epoch of the second task is a single step, which leaves no room for the warm-up of a b32 config."""
    few = dict(np.load(world / "tools.npz"))
    few |= {name: few[name][:8] for name in ("train_images", "train_labels")}
    np.savez(tmp_path / "few.npz", **few)
    monkeypatch.setattr(finetune, "finetune", None)
    overrides = {"finetune.epochs": 1, "finetune.steps": None, "finetune.warmup_steps": 1}
    tasks = (str(world / "pets.npz"), str(tmp_path / "few.npz"))
    refused = run("attn:b32", tmp_path / "run", tasks=tasks, **overrides)
    assert refused.code == 2
    assert "finetune.warmup_steps is 1, but the run has 1 steps" in refused.err


def test_nonfinite_loss_stops_with_step_task_and_learning_rate(run, tmp_path, monkeypatch):
    def step(state, pretrained, head, batch):
        return state._replace(step=state.step + 1), {"loss": 1.0 if int(state.step) == 0 else float("nan"), "top1": 0.5}

    monkeypatch.setattr(finetune, "make_train_step", lambda *arguments, **options: step)
    stopped = run("attn", tmp_path / "run")
    assert stopped.code == 2
    assert "NonFiniteLossError: the loss is nan at step 2 of task 'pets', learning rate 0.0075." in stopped.err
    assert not list((tmp_path / "run").glob("task_vectors/*"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"results.jsonl": ""}, "holds results without a config.json"),
        ({"config.json": "{"}, "config.json is no config"),
        ({"config.json": "[1]"}, "config.json is no config"),
    ],
)
def test_directory_of_something_else_is_left_alone(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises((ValueError, FileExistsError), match=message):
        claim(default_config(), tmp_path)
    assert contents(tmp_path) == before


def test_run_with_patterns_is_its_own_and_their_order_counts(tmp_path):
    config = default_config()
    config.trainable = {"blocks/.*": False, ".*kernel": True, ".*": False}
    claim(config, tmp_path)
    claim(config, tmp_path)
    config.trainable = {".*kernel": True, "blocks/.*": False, ".*": False}
    with pytest.raises(FileExistsError, match="trainable"):
        claim(config, tmp_path)

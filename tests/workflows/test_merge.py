"""Encoders that others fine-tuned, merged by any method: as if the vectors had been trained here."""

import itertools
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import tajax
from tajax import apply_task_vector, data, merging, models, norm, results, trees, vector_files
from tajax.config import default_config
from tajax.losses import head_logits
from tajax.models.convert import tensors_from_params
from tajax.workflows import task_addition
from tests.workflows.conftest import GRID, TASKS, contents, save_clip


@pytest.fixture(scope="module")
def standard(world, run):
    done = run("standard", world / "standard")
    assert done.code == 0, done.err
    return world / "standard"


@pytest.fixture(scope="module")
def theta0(world):
    return models.load(world / "clip").params["image"]


def load_vectors(workdir, like):
    paths = (workdir / "task_vectors" / f"{task}.safetensors" for task in TASKS)
    return [vector_files.load_task_vector(path, like)[0] for path in paths]


def measured(workdir, stage):
    fields = ("task", "split", "top1", "loss", "scaling_coef")
    return [
        [r.get(field) for field in fields] for r in results.find(results.read(workdir / "results.jsonl"), stage=stage)
    ]


WITHOUT_DATA = [name for name, method in merging.METHODS.items() if method.fit is None]  # test_merge_with_data.py
OPTIONS = {  # other than the defaults
    "breadcrumbs": {"smallest": 0.5, "largest": 0.1},
    "consensus": {"threshold": 0.6},
    "della": {"drop_rate": 0.4, "window": 0.5},
    "karcher": {"iterations": 3},
    "lines": {"shallow": 0.5},
    "pcb": {"ratio": 0.2},
    "slerp": {"share": 0.3},
    "localize_and_stitch": {"density": 0.3},
    "ties": {"density": 0.4, "merge": "sum"},
    "cart": {"rank": 0.3, "fused": True},
    "core_space": {"merge": "iso_cts", "rank": 8},
    "dare": {"drop_rate": 0.3},
    "iso_c": {"exclude": ".*attn.*"},
    "iso_cts": {"common": 0.5, "svd": "randomized"},
    "star": {"share": 0.7},
    "svc": {"merge": "tsv_m", "floor": 0.9},
    "tsv_m": {"fused": True},
    "wudi": {"weights": "one"},
}


def in_one_step(name, theta0, taus, coef):
    """The merged model as the method itself makes it, with λ = `coef` if it has one."""
    method = merging.METHODS[name]
    scaled = {"scaling_coef": coef} if method.scaled else {}
    drawn = {"key": jax.random.key(0)} if method.random else {}
    return method(theta0, taus, **OPTIONS.get(name, {}), **scaled, **drawn)


def assert_near(params, expected):
    for path, leaf in trees.flatten_paths(expected).items():
        np.testing.assert_allclose(trees.flatten_paths(params)[path], leaf, rtol=0, atol=1e-6, err_msg=path)


def keep_lengths(pretrained, taus, *, scaling_coef=1.0):
    """θ₀ + λ Σ τ, each leaf as long as that of θ₀: affine in nothing."""
    moved = merging.task_arithmetic(pretrained, taus, scaling_coef=scaling_coef)
    return jax.tree.map(lambda a, b: b * jnp.linalg.norm(a) / jnp.linalg.norm(b), pretrained, moved)


@pytest.fixture
def bent(monkeypatch):
    """A method that is not affine, in the table for one test: its name."""
    monkeypatch.setitem(merging.METHODS, "keep_lengths", merging.Method(keep_lengths))
    return "keep_lengths"


@pytest.mark.parametrize("name", [*WITHOUT_DATA, "keep_lengths"])
def test_the_models_of_a_run_are_those_of_the_method(name, bent, standard, theta0):
    config, tasks = default_config(), [SimpleNamespace(name=name) for name in TASKS]
    config.merging.method = name
    for keyword, value in OPTIONS.get(name, {}).items():
        config.merging[name][keyword] = value
    taus = load_vectors(standard, theta0)
    setup = SimpleNamespace(config=config, tasks=tasks, pretrained=theta0, encoder=SimpleNamespace(stacked="blocks"))
    merged, coefs = task_addition.merge(setup, dict(zip(TASKS, taus, strict=True))), (0.0, 0.7)
    coefs = coefs if merging.METHODS[name].scaled else (1.0,)
    passes = list(merged(coefs))
    assert len(passes) == (1 if merging.METHODS[name].affine else len(coefs))
    models_of = [apply_task_vector(theta0, tau, along) for tau, moves in passes for along in moves]
    for params, coef in zip(models_of, coefs, strict=True):
        assert_near(params, in_one_step(name, theta0, taus, coef))


@pytest.mark.parametrize("prepare", [("trim", "rescale"), ("rescale", "drop")])
@pytest.mark.parametrize("name", ["lines", "slerp"])  # one that is not affine, one that is
def test_the_vectors_of_a_run_are_prepared_in_order(prepare, name, standard, theta0):
    config, tasks = default_config(), [SimpleNamespace(name=name) for name in TASKS]
    config.merging.method, config.merging.prepare = name, prepare
    config.merging.trim.density, config.merging.drop.drop_rate = (
        (0.3, 0.5) if "trim" in prepare else (0.2, 0.4)  # the other is not read
    )
    taus = load_vectors(standard, theta0)
    setup = SimpleNamespace(config=config, tasks=tasks, pretrained=theta0, encoder=SimpleNamespace(stacked="blocks"))
    merged = task_addition.merge(setup, dict(zip(TASKS, taus, strict=True)))
    first, second = (merging.PREPARATIONS[row] for row in prepare)
    if prepare[0] == "trim":
        prepared = second(first(taus, density=0.3))
    else:
        prepared = second(first(taus), key=jax.random.key(config.seed), drop_rate=0.4)
    [(tau, [along])] = merged((0.7,))
    assert_near(apply_task_vector(theta0, tau, along), merging.METHODS[name](theta0, prepared, scaling_coef=0.7))


@pytest.mark.parametrize("config", ["standard", "posthoc"])
def test_a_method_that_is_not_affine_is_measured_point_by_point(config, bent, standard, theta0, run, world):
    """From the true θ₀: what a run records is what its models give, one by one, and so is what it leaves."""
    workdir, grid = world / f"bent_{config}", (0.0, 0.4, 1.0)
    done = run(config, workdir, **{"merging.method": bent, "task_vectors": standard, "evaluate.scaling_coefs": grid})
    assert done.code == 0, done.err
    clip, taus = models.load(world / "clip"), load_vectors(standard, theta0)
    found, records = models.load(workdir / "merged").params["image"], results.read(workdir / "results.jsonl")
    added = results.find(records, stage="task_addition")
    ((chosen, method),) = {(r["scaling_coef"], r["method"]) for r in added}
    assert chosen in grid and method == bent
    assert_near(found, keep_lengths(theta0, taus, scaling_coef=chosen))
    encode = tajax.linearize(clip.encode_image, theta0) if config == "posthoc" else clip.encode_image
    sweep = results.find(records, stage="sweep")
    assert [(r["task"], r["scaling_coef"]) for r in sweep] == [(name, coef) for name in TASKS for coef in grid]
    test = [r for r in added if r["split"] == "test"]
    kept = {r["task"]: r["top1"]["merged"] for r in results.find(records, stage="predictions")}
    assert kept == {r["task"]: r["top1"] for r in test}
    for record in (*sweep, *test):
        task = data.open_task(world / f"{record['task']}.npz")
        head = models.zero_shot_head(clip, task.class_names, task.templates)
        (batch,) = data.load(task, record["split"], batch_size=record["count"], preprocessing=clip.preprocessing)
        params = keep_lengths(theta0, taus, scaling_coef=record["scaling_coef"])
        images = data.preprocess.normalize(batch.inputs, clip.preprocessing)
        logits = np.asarray(head_logits(encode(params, images), head))
        assert np.mean(np.argmax(logits, axis=1) == batch.label) == record["top1"]
        losses = jax.nn.logsumexp(logits, axis=1) - logits[np.arange(len(logits)), batch.label]
        np.testing.assert_allclose(record["loss"], losses.mean(), rtol=1e-4)
    again = run(config, workdir, **{"merging.method": bent, "task_vectors": standard, "evaluate.scaling_coefs": grid})
    assert again.code == 0 and results.read(workdir / "results.jsonl") == records


def test_run_with_another_method_leaves_its_model(standard, theta0, run, world):
    options = {"merging.ties.density": 0.4, "merging.ties.merge": "sum"}
    settings = {"merging.method": "ties", "task_vectors": standard, **options}
    done = run("standard", world / "ties", **settings)
    assert done.code == 0, done.err
    added = results.find(results.read(world / "ties" / "results.jsonl"), stage="task_addition")
    ((coef, method),) = {(r["scaling_coef"], r["method"]) for r in added}
    assert method == "ties" and coef in GRID and " of ties, tuned" in done.out
    prepared = run("standard", world / "prepared_ties", **settings, **{"merging.prepare": repr(("rescale",))})
    assert prepared.code == 0, prepared.err
    assert " of rescale + ties, tuned" in prepared.out
    merged = models.load(world / "ties" / "merged").params["image"]
    assert_near(merged, in_one_step("ties", theta0, load_vectors(standard, theta0), coef))


def test_weight_average_of_a_run_is_the_mean_model(standard, theta0, run, world):
    done = run("standard", world / "average", **{"merging.method": "weight_average", "task_vectors": standard})
    assert done.code == 0, done.err
    records = results.read(world / "average" / "results.jsonl")
    assert not results.find(records, stage="sweep")
    added = results.find(records, stage="task_addition")
    assert {(r["scaling_coef"], r["method"], r["tuned"]) for r in added} == {(1.0, "weight_average", False)}
    assert "α = 1 of weight_average, which has none to tune." in done.out

    mean = merging.weight_average(theta0, load_vectors(standard, theta0))
    clip = models.load(world / "average" / "merged")
    for path, leaf in trees.flatten_paths(clip.params["image"]).items():
        np.testing.assert_array_equal(leaf, trees.flatten_paths(mean)[path], err_msg=path)
    for name in TASKS:
        task = data.open_task(world / f"{name}.npz")
        head = models.zero_shot_head(clip, task.class_names, task.templates)
        (batch,) = data.load(task, "test", batch_size=20, preprocessing=clip.preprocessing)
        features = clip.encode_image(mean, data.preprocess.normalize(batch.inputs, clip.preprocessing))
        top1 = np.mean(np.argmax(np.asarray(head_logits(features, head)), axis=1) == batch.label)
        assert [top1] == [r["top1"] for r in added if (r["task"], r["split"]) == (name, "test")]


def test_an_average_that_an_earlier_version_scaled_is_not_taken_for_the_average(world, run, standard, tmp_path):
    shutil.copytree(world / "average", tmp_path / "run")
    path = tmp_path / "run" / "results.jsonl"
    path.write_text(path.read_text().replace('"scaling_coef": 1.0', '"scaling_coef": 0.3'))
    settings = {"merging.method": "weight_average", "task_vectors": standard}
    refused = run("standard", tmp_path / "run", **settings)
    assert refused.code == 2
    assert "holds the accuracy of weight_average at α = 0.3, and this version measures it at 1" in refused.err


def test_methods_differ(standard, theta0):
    models_of = [in_one_step(name, theta0, load_vectors(standard, theta0), 1.0) for name in WITHOUT_DATA]
    first = [np.asarray(trees.flatten_paths(params)["blocks/mlp/fc_in/kernel"]) for params in models_of]
    found = dict(zip(WITHOUT_DATA, first, strict=True))
    same = {(a, b) for a, b in itertools.combinations(found, 2) if np.abs(found[a] - found[b]).max() < 1e-4}
    assert same == {("cart", "weight_average")}  # of two models the differences from their mean are opposite


@pytest.fixture(scope="module")
def encoders(standard, theta0, world):
    """Each fine-tuned model as a Hugging Face directory, as another program would have left it."""
    clip = models.load(world / "clip")
    for task, tau in zip(TASKS, load_vectors(standard, theta0), strict=True):
        params = clip.params | {"image": apply_task_vector(theta0, tau)}
        models.save_pretrained(world / f"encoder_{task}", clip.config, params, clip.tokenizer, clip.preprocessing)
    return str(world / "encoder_{task}")


def test_encoders_of_others_give_what_their_vectors_give(standard, encoders, run, world):
    done = run("merge", world / "merged_encoders", checkpoints=repr((encoders,)))
    assert done.code == 0, done.err
    assert "moved by imported vectors: " in done.err
    for stage in ("zero_shot", "single_task", "sweep", "task_addition"):
        for ours, theirs in zip(measured(world / "merged_encoders", stage), measured(standard, stage), strict=True):
            assert ours[:3] == theirs[:3] and ours[4] == theirs[4], stage
            np.testing.assert_allclose(ours[3], theirs[3], rtol=1e-5)
    assert not results.find(results.read(world / "merged_encoders" / "results.jsonl"), stage="finetune")


def test_task_vector_files_give_what_their_run_gave(standard, run, world):
    places = tuple(str(standard / "task_vectors" / f"{task}.safetensors") for task in TASKS)
    done = run("merge", world / "merged_vectors", checkpoints=repr(places))
    assert done.code == 0, done.err
    for stage in ("zero_shot", "single_task", "sweep", "task_addition"):
        assert measured(world / "merged_vectors", stage) == measured(standard, stage)


def test_what_half_precision_does_to_a_vector_is_said_and_recorded(standard, theta0, run, world, tmp_path):
    """One of two models in a file, wrapped, in bfloat16, of vectors as short as its rounding."""
    clip = models.load(world / "clip")
    for task, tau in zip(TASKS, load_vectors(standard, theta0), strict=True):
        directory = shutil.copytree(world / "clip", tmp_path / task)
        scale = 0.001 * float(norm(theta0) / norm(tau))
        near = clip.params | {"image": apply_task_vector(theta0, tau, scale)}
        tensors = tensors_from_params(near, clip.config)
        half = {name: value.astype(jnp.bfloat16) for name, value in tensors.items()}
        ema = {f"model_ema.{name}": np.zeros_like(value) for name, value in half.items()}
        both = ema | {f"model.module.{name}": value for name, value in half.items()}
        save_file(both, directory / "model.safetensors")
    places = str(tmp_path / "{task}")
    refused = run("merge", tmp_path / "refused", checkpoints=repr((places,)))
    first = tmp_path / next(iter(TASKS))
    assert refused.code == 2 and f"Choose one: {first}#model or {first}#model_ema." in refused.err
    done = run("merge", tmp_path / "run", checkpoints=repr((f"{places}#model",)))
    assert done.code == 0, done.err
    records = results.find(results.read(tmp_path / "run" / "results.jsonl"), stage="checkpoint")
    assert [(r["task"], r["source"]) for r in records] == [(task, f"{tmp_path / task}#model") for task in TASKS]
    for record in records:
        assert record["format"] == "huggingface" and record["rounding"]["dtype"] == "bfloat16"
        assert 0.1 < record["rounding"]["share"] <= 1 and record["warning"] in done.err
        assert "prefix 'model.' removed from names" in record["notes"]
    assert run("merge", tmp_path / "run", checkpoints=repr((f"{places}#model",))).code == 0
    assert results.find(results.read(tmp_path / "run" / "results.jsonl"), stage="checkpoint") == records


def test_second_run_needs_the_checkpoints_no_more(standard, run, world, tmp_path):
    shutil.copytree(standard / "task_vectors", tmp_path / "given")
    places = repr((str(tmp_path / "given" / "{task}.safetensors"),))
    assert run("merge", tmp_path / "run", checkpoints=places).code == 0
    shutil.rmtree(tmp_path / "given")
    before = contents(tmp_path / "run")["results.jsonl"]
    assert run("merge", tmp_path / "run", checkpoints=places).code == 0
    assert contents(tmp_path / "run")["results.jsonl"] == before
    refused = run("merge", tmp_path / "run", "--overwrite", checkpoints=places)
    assert refused.code == 2 and "given/pets.safetensors" in refused.err
    assert contents(tmp_path / "run")["results.jsonl"] == before  # nothing is removed for a run that cannot begin


def test_encoder_of_another_base_is_refused_unless_insisted_on(encoders, run, world, rng, tmp_path):
    save_clip(tmp_path / "other", rng(212))
    refused = run("merge", tmp_path / "run", model=tmp_path / "other", checkpoints=repr((encoders,)))
    assert refused.code == 2
    assert "is no fine-tuned copy of" in refused.err and "--config.any_base=True" in refused.err
    assert not (tmp_path / "run").exists()
    forced = run("merge", tmp_path / "run", model=tmp_path / "other", checkpoints=repr((encoders,)), any_base=True)
    assert forced.code == 0, forced.err


def test_base_itself_is_no_fine_tuned_encoder(run, world, tmp_path):
    refused = run("merge", tmp_path / "run", checkpoints=repr((str(world / "clip"),) * 2))
    assert refused.code == 2 and "is the base itself" in refused.err
    assert not (tmp_path / "run").exists()


def test_other_workflows_take_checkpoints_too(encoders, run, world, theta0):
    done = run("merge", world / "geometry", checkpoints=repr((encoders,)), workflow="geometry")
    assert done.code == 0, done.err
    taus = load_vectors(world / "geometry", theta0)
    (record,) = results.find(results.read(world / "geometry" / "results.jsonl"), stage="geometry")[:1]
    assert record and len(taus) == len(data.open_tasks([str(world / f"{task}.npz") for task in TASKS]))

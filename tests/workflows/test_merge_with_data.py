"""Merging methods that need data, in whole runs: what they are handed, what is recorded of it, and what goes on."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import apply_task_vector, data, merging, models, results, trees, vector_files
from tests.workflows.conftest import TASKS, contents

KINDS = {"standard": "ordinary", "linear": "linearized"}
SEEN = []


def fit(encode, pretrained, taus, batches, heads, *, power=1.0):
    """A number for each task, from all that there is: features of the merged model, inputs and labels."""
    merging.check_data(pretrained, taus, batches, heads)
    merged = apply_task_vector(pretrained, tajax.combine(list(taus.values())), 0.3)
    seen, coefs = {}, []
    for task in taus:
        rows = [np.concatenate([b[leaf][b.mask] for b in batches[task]]) for leaf in (0, 1)]
        moved = np.asarray(encode(apply_task_vector(pretrained, taus[task], 2.0), rows[0]))
        seen[task] = (moved, *rows, int(heads[task].num_classes))
        coefs.append(jnp.mean(jnp.tanh(encode(merged, rows[0]))) + np.mean(rows[1]))
    SEEN.append(seen)
    return {"coefs": power * jnp.stack(coefs)}


def merge(pretrained, taus, *, coefs):
    return apply_task_vector(pretrained, tajax.combine(taus, coefs))


METHOD = merging.Method(
    merge,
    affine=True,
    scaled=False,
    needs="inputs",
    fit=fit,
    fit_options={"power": merging.Option(1.0, "of what", lambda v: v > 0, "above 0")},
)


@pytest.fixture
def learned(monkeypatch):
    """`learned(**fields)` puts the method above into the table for one test, and says what it was called with."""

    def learned(**fields):
        monkeypatch.setitem(merging.METHODS, "learned", merging.Method(**{**vars(METHOD), **fields}))
        SEEN.clear()
        return SEEN

    return learned


@pytest.fixture(scope="module")
def vectors(world, run):
    for config in ("standard", "linear"):
        done = run(config, world / config, workflow="single_task")
        assert done.code == 0, done.err
    return {config: world / config for config in ("standard", "linear")}


def load_vectors(workdir, like):
    paths = (workdir / "task_vectors" / f"{task}.safetensors" for task in TASKS)
    return [vector_files.load_task_vector(path, like)[0] for path in paths]


def settings_of(vectors, config, **more):
    return {"merging.method": "learned", "task_vectors": vectors[config], "merging.images": 6} | more


@pytest.mark.parametrize("config", ["standard", "linear"])
@pytest.mark.parametrize("needs", ["inputs", "labels"])
def test_a_method_is_handed_examples_and_merges_by_what_it_finds(config, needs, learned, vectors, world, run):
    seen, workdir = learned(needs=needs), world / f"learned_{config}_{needs}"
    settings = settings_of(vectors, config, **{"merging.learned.power": 0.5, "merging.split": "train"})
    done = run(config, workdir, **settings)
    assert done.code == 0, done.err
    (found,) = results.find(results.read(workdir / "results.jsonl"), stage="merging_fit")
    assert (found["method"], found["split"], found["labels"]) == ("learned", "train", needs == "labels")
    assert found["images"] == dict.fromkeys(TASKS, 6)
    clip, (handed,) = models.load(world / "clip"), seen
    theta0 = clip.params["image"]
    taus = load_vectors(vectors[config], theta0)
    assert list(handed) == list(TASKS)
    for tau, (name, (features, inputs, labels, classes)) in zip(taus, handed.items(), strict=True):
        task = data.open_task(world / f"{name}.npz")
        (batch,) = data.load(
            data.drawn(task, "train", 6, seed=0), "train", batch_size=6, preprocessing=clip.preprocessing
        )
        np.testing.assert_array_equal(inputs, batch.inputs)
        np.testing.assert_array_equal(labels, batch.label if needs == "labels" else np.zeros(6))
        assert classes == len(TASKS[name])
        encode = tajax.linearize(clip.encode_image, theta0) if config == "linear" else clip.encode_image
        want = encode(apply_task_vector(theta0, tau, 2.0), data.preprocess.normalize(inputs, clip.preprocessing))
        np.testing.assert_allclose(features, want, rtol=2e-4, atol=2e-4)
    merged = merge(theta0, taus, coefs=jnp.asarray(found["found"]["coefs"]))
    jax.tree.map(np.testing.assert_array_equal, models.load(workdir / "merged").params["image"], merged)
    added = results.find(results.read(workdir / "results.jsonl"), stage="task_addition")
    assert {(r["scaling_coef"], r["tuned"]) for r in added} == {(1.0, False)}
    words = "with" if needs == "labels" else "without"
    assert f"learned was fitted to 6 train examples of each task, {words} their labels." in done.out


def test_what_is_recorded_is_not_found_again_and_what_is_too_large_is(
    learned, vectors, world, run, monkeypatch, tmp_path
):
    seen, settings = learned(), settings_of(vectors, "standard")
    assert run("standard", tmp_path / "run", **settings).code == 0 and len(seen) == 1
    before = contents(tmp_path / "run")
    lines = before["results.jsonl"][1].splitlines(keepends=True)
    stages = [record["stage"] for record in results.read(tmp_path / "run" / "results.jsonl")]
    place = stages.index("merging_fit")
    assert stages[:place].count("single_task") == 4 and "single_task" not in stages[place:]
    for kept, times in ((place + 1, 1), (place, 2), (len(stages), 2)):  # killed after it, before it, at the end
        shutil.copytree(tmp_path / "run", tmp_path / str(kept))
        (tmp_path / str(kept) / "results.jsonl").write_bytes(b"".join(lines[:kept]))
        shutil.rmtree(tmp_path / str(kept) / "merged")
        assert run("standard", tmp_path / str(kept), **settings).code == 0 and len(seen) == times
        again = contents(tmp_path / str(kept))
        assert again["merged/model.safetensors"][1] == before["merged/model.safetensors"][1]
    monkeypatch.setattr("tajax.workflows.fitting.RECORDED", 1)
    for times in (3, 4):
        assert run("standard", tmp_path / "large", **settings).code == 0 and len(seen) == times
    (found,) = results.find(results.read(tmp_path / "large" / "results.jsonl"), stage="merging_fit")
    assert "found" not in found
    assert contents(tmp_path / "large")["merged/model.safetensors"][1] == before["merged/model.safetensors"][1]


def test_a_method_that_saw_the_images_it_is_measured_on_is_said_to(learned, vectors, run, tmp_path):
    learned()
    done = run("standard", tmp_path / "run", **settings_of(vectors, "standard", **{"merging.split": "test"}))
    said = "without their labels, which are among those that it is measured on"
    assert done.code == 0 and said in " ".join(done.out.split())
    assert "fitted to 6 test examples" in (tmp_path / "run" / "report.md").read_text()


def test_what_a_method_cannot_take_is_refused_before_anything_runs(learned, vectors, run, tmp_path):
    refusals = [
        ("standard", {"needs": "labels"}, {"merging.split": "test"}, "but merging.method 'learned' reads labels"),
        (
            "linear",
            {"models": "ordinary"},
            {},
            "'learned' merges ordinary models alone, and regime 'linear' is evaluated",
        ),
        ("standard", {"models": "linearized"}, {}, "Regimes that it takes: linear"),
        ("standard", {}, {"merging.split": "validation"}, "unknown merging.split 'validation'"),
        ("standard", {}, {"merging.images": 0}, "merging.images is 0, want 1 or more"),
        ("standard", {}, {"merging.learned.power": -1.0}, "merging.learned.power is -1.0, want above 0"),
        ("standard", {}, {"merging.method": "ties"}, "merging.images is 6, but merging.method 'ties' sees no example"),
        ("standard", {}, {"tune.learning_rate": (0.1, 0.2), "task_vectors": None}, "'learned' needs data"),
    ]
    for number, (config, fields, more, message) in enumerate(refusals):
        seen = learned(**fields)
        refused = run(config, tmp_path / str(number), **settings_of(vectors, config, **more))
        assert refused.code == 2 and message in refused.err, (message, refused.err)
        assert not seen and not (tmp_path / str(number)).exists()


def test_a_fit_names_the_task_that_lacks_something():
    theta, taus = {"w": jnp.ones(2)}, {"a": {"w": jnp.ones(2)}, "b": {"w": jnp.ones(2)}}
    with pytest.raises(ValueError, match="batches lacks b, which is in taus"):
        merging.check_data(theta, taus, {"a": [1]})
    with pytest.raises(ValueError, match="heads lacks a"):
        merging.check_data(theta, taus, dict.fromkeys(taus, [1]), {"b": None})
    with pytest.raises(ValueError, match="task 'b' has no example"):
        merging.check_data(theta, taus, {"a": [1], "b": []})
    with pytest.raises(ValueError, match="'w' has shape"):
        merging.check_data(theta, {"a": {"w": jnp.ones(3)}}, {"a": [1]})
    with pytest.raises(ValueError, match="is empty"):
        merging.check_data(theta, {}, {})


NEEDING = {name: method for name, method in merging.METHODS.items() if method.fit}
SETTINGS = {
    "adamerging": {"granularity": "task", "steps": 3, "learning_rate": 0.1},
    "atlas": {"steps": 3, "learning_rate": 0.1},
    "fisher": {"labels": "true"},
    "localize_few_shot": {"density": 1.0, "steps": 2, "learning_rate": 3e3, "initial": 1.0},
}
CASES = [(n, c) for n, m in NEEDING.items() for c in ("standard", "linear") if m.models in ("all", KINDS[c])]


@pytest.mark.parametrize(("name", "config"), CASES)
def test_the_model_of_a_run_is_the_one_that_the_method_makes_in_python(name, config, vectors, world, run, tmp_path):
    method, own = NEEDING[name], SETTINGS.get(name, {})
    settings = settings_of(vectors, config, **{"merging.method": name, "merging.images": 10})
    done = run(config, tmp_path / "run", **settings, **{f"merging.{name}.{key}": v for key, v in own.items()})
    assert done.code == 0, done.err
    (record,) = results.find(results.read(tmp_path / "run" / "results.jsonl"), stage="merging_fit")
    assert (record["method"], record["split"], record["images"]) == (name, "val", dict.fromkeys(TASKS, 10))
    clip = models.load(world / "clip")
    theta0, batches, heads = clip.params["image"], {}, {}
    for each in TASKS:
        task = data.open_task(world / f"{each}.npz")
        some = data.drawn(task, "val", 10, seed=0)
        batches[each] = data.load(some, "val", batch_size=10, preprocessing=clip.preprocessing)
        heads[each] = models.zero_shot_head(clip, task.class_names, task.templates)
    taus = dict(zip(TASKS, load_vectors(vectors[config], theta0), strict=True))

    def plain(params, images):
        return clip.encode_image(params, data.preprocess.normalize(images, clip.preprocessing))

    encode = tajax.linearize(plain, theta0) if config == "linear" else plain
    stacked = {"stacked": "blocks"} if method.layered else {}
    found = method.fit(encode, theta0, taus, batches, heads, **stacked, **own_of(method.fit_options, own))
    merged = method(theta0, list(taus.values()), **found, **stacked, **own_of(method.options, own))
    saved = trees.flatten_paths(models.load(tmp_path / "run" / "merged").params["image"])
    for path, leaf in trees.flatten_paths(merged).items():
        np.testing.assert_allclose(saved[path], leaf, rtol=1e-3, atol=2e-4, err_msg=path)
    assert any(np.abs(saved[path] - leaf).max() > 1e-3 for path, leaf in trees.flatten_paths(theta0).items())


def own_of(options, own):
    return {key: value for key, value in own.items() if key in options}

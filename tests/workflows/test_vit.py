"""A whole run on a ViT, which has no texts: its heads are fitted, and its numbers are those of its files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tajax import data, encoders, evaluate, results
from tajax.trees import flatten_paths, unflatten_paths
from tajax.types import Head
from tests.encoders.vit.conftest import CONFIGS, tensors_of, write
from tests.workflows.conftest import GRID, TASKS


@pytest.fixture(scope="module")
def directory(tmp_path_factory, rng):
    return write(
        tmp_path_factory.mktemp("vit") / "dino", CONFIGS["registers"], tensors_of(CONFIGS["registers"], rng(770))
    )


@pytest.mark.parametrize("config", ["standard", "linear"])
def test_vectors_of_a_vit_are_added_and_the_numbers_are_those_of_its_files(run, directory, tmp_path, world, config):
    flags = {"family": "vit", "model": directory, "heads": "linear_probe"}
    done = run(config, tmp_path / "run", **flags)
    assert done.code == 0, done.err
    records = results.read(tmp_path / "run" / "results.jsonl")
    encoder = encoders.load(str(directory), family="vit")
    taus = [load_file(tmp_path / "run" / "task_vectors" / f"{task}.safetensors") for task in TASKS]
    assert all(max(np.abs(leaf).max() for leaf in tau.values()) > 0 for tau in taus)
    total = unflatten_paths({path: sum(tau[path] for tau in taus) for path in flatten_paths(encoder.params)})
    sweep = results.find(records, stage="sweep")
    assert len({record["scaling_coef"] for record in sweep}) == len(GRID)

    @jax.jit
    def features_at(coef, images):
        moved = jax.tree.map(lambda leaf: coef * leaf, total)
        if config == "standard":
            return encoder.apply(jax.tree.map(jnp.add, encoder.params, moved), images)
        return jnp.add(*jax.jvp(lambda params: encoder.apply(params, images), (encoder.params,), (moved,)))

    for record in sweep:
        file = np.load(world / f"{record['task']}.npz")
        head = load_file(tmp_path / "run" / "heads" / f"{record['task']}.safetensors")["weights"]
        features = features_at(record["scaling_coef"], jnp.asarray(file["val_images"]))
        assert record["top1"] == np.mean(np.argmax(np.asarray(features) @ head, axis=1) == file["val_labels"])
    (merged,) = results.find(records, stage="task_addition", split="test", task="pets")
    saved = encoders.load(str(tmp_path / "run" / "merged"), family="vit")
    want = jax.tree.map(lambda leaf, tau: leaf + np.float32(merged["scaling_coef"]) * tau, encoder.params, total)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), saved.params, want)
    head = Head(load_file(tmp_path / "run" / "heads" / "pets.safetensors")["weights"], jnp.int32(len(TASKS["pets"])))
    task = data.open_task(world / "pets.npz")
    again = evaluate.accuracy(encoder, saved.params, task, head=head, linearized=config == "linear")
    assert again == merged["top1"]


def test_what_a_vit_has_not_is_refused_by_name(run, directory, tmp_path):
    refusals = {
        "model": ("tiny", "'tiny' is a CLIP, of the family 'clip'"),
        "heads": ("zero_shot", "heads are from class names, and models of the family 'vit' take no texts"),
        "trainable": ("projection", "trainable rule 'projection' matches none"),
    }
    for field, (value, message) in refusals.items():
        fields = {"family": "vit", "model": directory, "heads": "linear_probe"} | {field: value}
        refused = run("standard", tmp_path / field, **fields)
        assert refused.code == 2 and message in refused.err, refused.err


def test_vectors_are_made_of_what_others_fine_tuned(run, directory, tmp_path, rng):
    for number, task in enumerate(TASKS):
        base, random = load_file(directory / "model.safetensors"), rng(771 + number)
        theirs = {n: (v + 0.02 * random.normal(size=v.shape)).astype(np.float32) for n, v in base.items()}
        write(tmp_path / "theirs" / task, CONFIGS["registers"], theirs)
    fields = {"family": "vit", "model": directory, "heads": "linear_probe", "checkpoints": tmp_path / "theirs/{task}"}
    done = run("merge", tmp_path / "run", **fields, **dict.fromkeys(("finetune__steps", "finetune__batch_size")))
    assert done.code == 0, done.err
    tau = load_file(tmp_path / "run" / "task_vectors" / "pets.safetensors")
    theta = flatten_paths(encoders.load(str(directory), family="vit").params)
    theirs = flatten_paths(encoders.load(str(tmp_path / "theirs" / "pets"), family="vit").params)
    for path, leaf in theta.items():
        np.testing.assert_allclose(tau[path], theirs[path] - leaf, atol=1e-7, err_msg=path)

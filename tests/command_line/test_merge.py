"""Checkpoints to one model without a task: the model of the method, a record of it, and errors before anything."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import tajax
from tajax import encoders, merge, merging, sharing, trees, vector_files


@pytest.fixture(scope="module")
def encoder():
    return encoders.load("tiny")


@pytest.fixture(scope="module")
def places(encoder, tmp_path_factory):
    """Two fine-tuned models, as a whole directory and as a vector of attention alone, and their task vectors."""
    home, (k1, k2) = tmp_path_factory.mktemp("tuned"), jax.random.split(jax.random.key(7))
    flat = trees.flatten_paths(encoder.params)
    draws = [
        {
            p: 0.02 * np.asarray(jax.random.normal(jax.random.fold_in(k, i), np.shape(x)))
            for i, (p, x) in enumerate(flat.items())
        }
        for k in (k1, k2)
    ]
    whole = trees.unflatten_paths({p: np.asarray(flat[p]) + draws[0][p] for p in flat})
    encoder.save(home / "whole", whole, format="huggingface")
    mask = trees.param_mask(encoder.params, "attention")
    tau = jax.tree.map(lambda x, m: x * m, trees.unflatten_paths(draws[1]), mask)
    made = vector_files.vector_metadata(model="tiny", base_sha256=encoder.identity.sha256, task="b")
    vector_files.save_task_vector(home / "b.safetensors", tau, made, mask=mask)
    return (str(home / "whole"), str(home / "b.safetensors")), (tajax.task_vector(encoder.params, whole), tau)


OPTIONS = {"core_space": {"merge": "task_arithmetic"}}  # noise determines no basis, and the default sees entries


@pytest.mark.parametrize("method", [name for name, row in merging.METHODS.items() if row.needs == "nothing"])
def test_what_is_written_is_the_model_of_the_method(method, places, encoder, tmp_path):
    (names, taus), row = places, merging.METHODS[method]
    options = OPTIONS.get(method, {})
    record = merge.merge_checkpoints("tiny", names, tmp_path / "merged", method=method, **options)
    found = encoders.load(str(tmp_path / "merged"))
    scaled = {"scaling_coef": row.usual_coef} if row.scaled else {}
    assert record["scaling_coef"] == scaled.get("scaling_coef")
    assert [(s["place"], s["format"]) for s in record["sources"]] == [
        (names[0], "huggingface"),
        (names[1], "task vector"),
    ]
    if row.random:  # draws are of the vectors that it was given, which are read one by one
        moved = trees.flatten_paths(tajax.task_vector(encoder.params, found.params))
        total = trees.flatten_paths(tajax.combine(taus))
        assert all(np.any(moved[path]) == np.any(total[path]) for path in total)
        return
    want = trees.flatten_paths(row(encoder.params, taus, **options, **scaled))
    for path, leaf in trees.flatten_paths(found.params).items():
        np.testing.assert_allclose(leaf, want[path], rtol=0, atol=2e-5, err_msg=path)


def test_a_method_that_cannot_take_so_many_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="slerp goes from one task vector to another and takes two; got 3"):
        merge.merge_checkpoints("none such", ["a", "b", "c"], tmp_path / "merged", method="slerp")


def test_the_command_writes_a_model_its_record_and_a_card(places, encoder, tmp_path, capsys):
    out = tmp_path / "deep" / "merged"
    argv = ["tiny", *places[0], f"--out={out}", "--method=ties", "--density=0.5", "--merge=sum", "--scaling-coef=0.4"]
    assert merge.main([*argv, "--format=open_clip"]) == 0
    said = capsys.readouterr()
    assert re.search(r"ties at λ = 0.4: ‖τ‖/‖θ₀‖ = 0\.\d+", said.out) and "[4/5] merge: 1845120/1845120" in said.err
    record = json.loads((out / "merge.json").read_text())
    assert record["options"] == {"density": 0.5, "merge": "sum"} and record["base"]["sha256"] == encoder.identity.sha256
    want = trees.flatten_paths(merging.ties(encoder.params, places[1], density=0.5, merge="sum", scaling_coef=0.4))
    for path, leaf in trees.flatten_paths(encoders.load(str(out)).params).items():
        np.testing.assert_allclose(leaf, want[path], rtol=0, atol=1e-5, err_msg=path)
    card = (out / "README.md").read_text()
    assert card == sharing.model_card(out, "merged") and "density 0.5, merge sum, λ = 0.4" in card
    assert all(f"`{place}`" in card for place in places[0]) and "base_model_relation" not in card  # tiny is on no hub
    assert sorted(path.name for path in out.parent.iterdir()) == ["merged"]  # nothing is left beside it
    assert merge.main([*argv]) == 2  # there is something now
    assert "exists. Choose another directory" in capsys.readouterr().err


REFUSED = {
    ("--method=tise",): "unknown merging method 'tise'. Did you mean 'ties'?",
    ("--method=weight_average", "--scaling-coef=1"): "weight_average takes none",
    ("--format=onnx",): "format is 'onnx'; of the family clip can be written: huggingface, open_clip",
    ("--method=ties", "--density=0"): "density is 0.0, want a share above 0, at most 1",
    ("--prepare=tirm",): "unknown preparation 'tirm'. Did you mean 'trim'? Choices: drop, rescale, trim",
    ("--prepare=trim", "--prepare=trim"): "--prepare=trim stands there more than once",
    ("--prepare=drop", "--drop.drop-rate=1"): "drop_rate is 1.0, want a share below 1",
    ("--trim.density=0.1",): "--trim.density is 0.1, but nothing reads it. Leave it out, or add --prepare=trim",
}


@pytest.mark.parametrize("flags", REFUSED, ids=" ".join)
def test_what_cannot_be_is_refused_before_anything_is_loaded(flags, tmp_path, capsys):
    assert merge.main(["nowhere", "a", "b", f"--out={tmp_path / 'm'}", *flags]) == 2
    assert REFUSED[flags] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


PREPARED = {"trim": {"density": 0.3}, "rescale": {}}


@pytest.mark.parametrize("method", ["ties", "lines"])  # leaf by leaf, and of all leaves
def test_vectors_are_prepared_as_in_a_run(method, places, encoder, tmp_path, capsys):
    (names, taus), out = places, tmp_path / "merged"
    flags = ["--prepare=trim", "--trim.density=0.3", "--prepare=rescale", f"--method={method}", f"--out={out}"]
    assert merge.main(["tiny", *names, *flags]) == 0
    said = capsys.readouterr()
    assert f"trim + rescale + {method} at λ" in said.out
    assert f"[3/5] prepare the vectors: {6 if method == 'ties' else 4}/" in said.err
    record = json.loads((out / "merge.json").read_text())
    assert record["prepare"] == PREPARED and list(record["prepare"]) == ["trim", "rescale"] and record["seed"] is None
    assert f"`trim`, density 0.3, then `rescale`, then `{method}`" in (out / "README.md").read_text()
    row = merging.METHODS[method]
    for name in reversed(PREPARED):
        row = merging.compose(merging.PREPARATIONS[name], row, **PREPARED[name])
    want = trees.flatten_paths(row(encoder.params, taus, scaling_coef=row.usual_coef))
    for path, leaf in trees.flatten_paths(encoders.load(str(out)).params).items():
        np.testing.assert_allclose(leaf, want[path], rtol=0, atol=2e-5, err_msg=path)


def test_a_preparation_that_draws_keeps_the_seed_and_about_so_many_entries(places, encoder, tmp_path):
    outs = [tmp_path / name for name in ("one", "same", "other")]
    for out, seed in zip(outs, (1, 1, 2), strict=True):
        prepare = {"drop": {"drop_rate": 0.25}}
        record = merge.merge_checkpoints("tiny", places[0], out, prepare=prepare, scaling_coef=1, seed=seed)
        assert record["seed"] == seed
    one, same, other = ((out / "model.safetensors").read_bytes() for out in outs)
    assert one == same != other
    path = "blocks/mlp/fc_in/kernel"  # which the first vector alone moves
    moved, tau = (
        np.asarray(trees.flatten_paths(tree)[path])
        for tree in (tajax.task_vector(encoder.params, encoders.load(str(outs[0])).params), places[1][0])
    )
    np.testing.assert_allclose(moved[moved != 0], tau[moved != 0] / 0.75, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.mean(moved != 0), 0.75, atol=0.01)  # of 65,536 entries: σ = 0.0017


def test_places_are_named_where_they_are_wrong_and_nothing_is_left(places, encoder, tmp_path, capsys):
    out = f"--out={tmp_path / 'm'}"
    far = trees.unflatten_paths({p: np.asarray(x) + 1 for p, x in trees.flatten_paths(encoder.params).items()})
    encoder.save(tmp_path / "far", far, format="huggingface")
    for place, wanted in {
        str(tmp_path / "none"): "none",
        str(tmp_path / "far"): "is no fine-tuned copy of tiny",
    }.items():
        assert merge.main(["tiny", places[0][0], place, out]) == 2
        assert wanted in capsys.readouterr().err
    assert merge.main(["tiny", places[0][0], out]) == 2
    assert "two fine-tuned models or more, got 1" in capsys.readouterr().err
    assert merge.main(["tiny", places[0][0], places[0][0], out]) == 2
    assert "stands there more than once" in capsys.readouterr().err
    made = vector_files.vector_metadata(model="tiny", base_sha256=encoder.identity.sha256, task="c", linearized=True)
    vector_files.save_task_vector(tmp_path / "far" / "linear.safetensors", places[1][1], made)
    linear = [str(tmp_path / "far" / "linear.safetensors"), places[0][0]]
    assert merge.main(["tiny", *linear, out]) == 2
    assert "was trained in the expansion around the base" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["far"]
    assert merge.main(["tiny", *linear, out, "--linearized"]) == 0
    assert "meant for it" in (tmp_path / "m" / "README.md").read_text()


def test_help_has_the_options_of_the_method(capsys):
    with pytest.raises(SystemExit) as stop:
        merge.main(["--method=ties", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "--density" in said and "share of entries that TIES keeps (0.2)" in said
    assert "drop, rescale, trim" in said and "--trim.density" in said and "--drop.drop-rate" in said


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "tajax.merge", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "BASE" in done.stdout and "task_arithmetic" in done.stdout

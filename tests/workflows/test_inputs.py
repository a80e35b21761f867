"""A finished run goes on from what it has only where its data and model are what they were."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tajax import data, models, results
from tajax.config import default_config
from tajax.data import fingerprint
from tajax.workflows import inputs
from tests.workflows.conftest import TASKS, contents

ALONE = {"workflow": "single_task"}


@pytest.fixture(scope="module")
def finished(world, run, tmp_path_factory):
    """A copy of the world, and a finished run on it."""
    home = tmp_path_factory.mktemp("finished")
    shutil.copytree(world / "clip", home / "clip")
    for name in TASKS:
        shutil.copy(world / f"{name}.npz", home)
    done = run("attn", home / "run", **ALONE, **places(home))
    assert done.code == 0, done.err
    return home


@pytest.fixture
def home(finished, tmp_path, monkeypatch):
    """The same for one test, under the paths that the run was begun with."""
    shutil.copytree(finished, tmp_path / "kept")
    yield finished
    shutil.rmtree(finished)
    shutil.copytree(tmp_path / "kept", finished)


def places(home):
    return {"model": home / "clip", "tasks": tuple(str(home / f"{name}.npz") for name in TASKS)}


def edit(path, **changes):
    """Changes arrays of an .npz file: `name=function of the array`."""
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {name: change(arrays[name]) for name, change in changes.items()})


def inverted(array):
    array = array.copy()
    array[4] = 255 - array[4]
    return array


def edit_text_tower(home):
    clip = models.load(home / "clip")
    text = {**clip.params["text"], "token_embedding": clip.params["text"]["token_embedding"] * 2}
    parts = clip.config, {**clip.params, "text": text}, clip.tokenizer, clip.preprocessing
    models.save_pretrained(home / "clip", *parts, overwrite=True)


def edit_preprocessing(home):
    file = home / "clip" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.4] * 3}))


def edit_activation(home):
    file = home / "clip" / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"]["hidden_act"] = "gelu" if config["vision_config"]["hidden_act"] != "gelu" else "quick_gelu"
    file.write_text(json.dumps(config))


EDITS = {  # how, and what the message has to say
    "an image": (
        lambda home: edit(home / "pets.npz", test_images=inverted),
        "task pets, test: 20 images as before, but not the same ones (zebra 7, others than before)",
    ),
    "an image more": (
        lambda home: edit(
            home / "tools.npz",
            test_images=lambda images: np.concatenate([images, images[:1]]),
            test_labels=lambda labels: np.append(labels, 1),
        ),
        "task tools, test: 20 → 21 images (pickaxe 10 → 11)",
    ),
    "labels": (
        lambda home: edit(home / "tools.npz", val_labels=lambda labels: 1 - labels),
        "task tools, val: 12 images as before, but not the same ones (saw 6, others than before, pickaxe 6,",
    ),
    "order": (
        lambda home: edit(
            home / "tools.npz",
            train_images=lambda images: images.reshape(-1, 2, *images.shape[1:])[:, ::-1].reshape(images.shape),
            train_labels=lambda labels: labels.reshape(-1, 2)[:, ::-1].ravel(),
        ),
        "task tools, train: 24 images as before, but not the same ones (the same ones in another order)",
    ),
    "a class name": (
        lambda home: edit(home / "pets.npz", class_names=lambda _: np.array(["ox", "horse", "hummingbird"])),
        "task pets, class names: 1 of 3 differ: 'zebra' → 'horse'",
    ),
    "templates": (
        lambda home: edit(home / "pets.npz", templates=lambda _: np.array(["{}", "a photo of a {}."])),
        "task pets, templates: 1 → 2, now with 'a photo of a {}.'",
    ),
    "preprocessing": (edit_preprocessing, "preprocessing mean: [0.5, 0.5, 0.5] → [0.4, 0.4, 0.4]"),
    "activation": (edit_activation, "encoder hidden_act: "),
    "text tower": (edit_text_tower, "weights of the text tower: "),
}


@pytest.mark.parametrize("edited", EDITS)
def test_edited_inputs_do_not_give_old_results(edited, home, run):
    change, said = EDITS[edited]
    assert run("attn", home / "run", **ALONE, **places(home)).code == 0  # as it was
    before = contents(home / "run")
    change(home)
    refused = run("attn", home / "run", **ALONE, **places(home))
    assert refused.code == 2
    for words in ("holds a run of the same config on other inputs", f"\n  {said}", "--workdir, or pass --overwrite"):
        assert words in refused.err, refused.err
    assert refused.err.count("\n  ") == 1  # that alone differs
    after = contents(home / "run")
    assert {name: after[name] for name in before if name != ".lock"} == {n: before[n] for n in before if n != ".lock"}


def test_overwriting_takes_the_edited_data(home, run):
    edit(home / "pets.npz", test_images=inverted)
    assert run("attn", home / "run", "--overwrite", **ALONE, **places(home)).code == 0
    (record,) = results.find(results.read(home / "run" / "results.jsonl"), stage="run")
    assert record["data"]["pets"] == fingerprint.brief(fingerprint.of_task(data.open_task(home / "pets.npz")))
    assert record["skipped_images"] == {}
    assert run("attn", home / "run", **ALONE, **places(home)).code == 0


def test_a_run_that_did_not_keep_its_inputs_goes_on_and_says_so(home, run):
    (home / "run" / "inputs.json").unlink()
    edit(home / "pets.npz", test_images=inverted)
    again = run("attn", home / "run", **ALONE, **places(home))
    assert again.code == 0 and "whether they are the same is not known" in again.err
    quiet = run("attn", home / "run", **ALONE, **places(home))
    assert quiet.code == 0 and "not known" not in quiet.err


def test_where_nothing_was_made_yet_other_inputs_are_welcome(tmp_path):
    inputs.keep(tmp_path, {"tasks": {}, "facts": {"text tower": "a"}})
    inputs.keep(tmp_path, {"tasks": {}, "facts": {"text tower": "b"}})
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(FileExistsError, match="text tower: b → c"):
        inputs.keep(tmp_path, {"tasks": {}, "facts": {"text tower": "c"}})
    inputs.keep(tmp_path, {"tasks": {}, "facts": {"preprocessing": 1}})  # of a later version: kept beside the others
    assert json.loads((tmp_path / "inputs.json").read_text())["facts"] == {"text tower": "b", "preprocessing": 1}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tasks": 1, "facts": {}}'])
def test_damaged_inputs_are_named(content, tmp_path):
    (tmp_path / "results.jsonl").touch()
    (tmp_path / "inputs.json").write_text(content)
    with pytest.raises(ValueError, match=r"inputs.json does not say what .*--overwrite"):
        inputs.keep(tmp_path, {"tasks": {}, "facts": {}})


def test_a_geometry_that_an_earlier_version_kept_under_its_name_is_compared(tmp_path):
    (tmp_path / "results.jsonl").write_text("")
    (tmp_path / "inputs.json").write_text(json.dumps({"tasks": {}, "facts": {"image tower": {"width": 8}}}))
    inputs.keep(tmp_path, {"tasks": {}, "facts": {"encoder": {"width": 8}}})
    (tmp_path / "inputs.json").write_text(json.dumps({"tasks": {}, "facts": {"image tower": {"width": 16}}}))
    with pytest.raises(FileExistsError, match="encoder width: 16 → 8"):
        inputs.keep(tmp_path, {"tasks": {}, "facts": {"encoder": {"width": 8}}})


def test_vectors_may_be_evaluated_on_other_data_and_are_known_by_their_content(home, run, tmp_path):
    reused = {**ALONE, "task_vectors": home / "run"}
    edit(home / "pets.npz", test_images=inverted)
    assert run("attn", tmp_path / "new", **reused, **places(home)).code == 0
    recorded = [results.read(place / "results.jsonl")[0]["data"]["pets"] for place in (home / "run", tmp_path / "new")]
    assert [part for part in recorded[0] if recorded[0][part] != recorded[1][part]] == ["test"]

    vectors = home / "run" / "task_vectors"
    shutil.copy(vectors / "pets.safetensors", tmp_path / "pets.safetensors")
    assert run("attn", home / "run", "--overwrite", **ALONE, **places(home), finetune__steps=4).code == 0
    refused = run("attn", tmp_path / "new", **reused, **places(home))
    assert refused.code == 2 and f"\n  {vectors / 'pets.safetensors'} (task pets): " in refused.err
    encoders = {**ALONE, "checkpoints": repr((f"{vectors}/{{task}}.safetensors",))}
    assert run("merge", tmp_path / "imported", **encoders, **places(home)).code == 0
    shutil.copy(tmp_path / "pets.safetensors", vectors)
    refused = run("merge", tmp_path / "imported", **encoders, **places(home))
    assert refused.code == 2 and f"\n  {vectors / 'pets.safetensors'} (task pets): " in refused.err
    shutil.rmtree(vectors)  # a checkpoint that is gone cannot be compared, and is not needed
    assert run("merge", tmp_path / "imported", **encoders, **places(home)).code == 0


def test_an_edited_file_is_noticed_where_one_of_its_models_is_chosen(tmp_path):
    config, task = default_config(), SimpleNamespace(name="pets")
    config.checkpoints = (f"{tmp_path}/{{task}}.pt#model_ema",)
    digests = []
    for content in (b"one", b"other"):
        (tmp_path / "pets.pt").write_bytes(content)
        digests += inputs._vectors(config, [task])
    (first, before), (second, after) = digests
    assert first == second == f"{tmp_path}/pets.pt#model_ema (task pets)" and before != after


def test_fitted_heads_of_other_data_are_not_taken(home, run, tmp_path):
    probed = {**ALONE, "heads": "linear_probe"}
    source, new = tmp_path / "probed", tmp_path / "new"
    assert run("attn", source, **probed, **places(home)).code == 0
    edit(home / "pets.npz", test_images=inverted)  # which heads do not see
    assert run("attn", new, **probed, task_vectors=source, **places(home)).code == 0
    edit(home / "pets.npz", train_images=inverted)
    refused = run("attn", tmp_path / "other", **probed, task_vectors=source, **places(home))
    assert refused.code == 2
    file = source / "heads" / "pets.safetensors"
    assert f"{file} was fitted to other data: train of task 'pets' changed since" in refused.err


@pytest.fixture
def photographs(world, tmp_path):
    """`pets` as a folder of images, some of which cannot be read."""
    arrays = np.load(world / "pets.npz")
    for split in ("train", "val", "test"):
        for row, (image, label) in enumerate(zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)):
            folder = tmp_path / "pets" / split / TASKS["pets"][label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{row:02d}.png")
    bad = [tmp_path / "pets" / name for name in ("train/ox/00.png", "train/zebra/01.png", "test/ox/03.png")]
    for path in bad:
        path.write_bytes(path.read_bytes()[:50])
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "float.tiff")
    shutil.move(tmp_path / "float.tiff", bad[1])
    return tmp_path / "pets", bad


def test_bad_images_are_listed_and_left_out_where_the_config_says_so(photographs, run, tmp_path):
    folder, bad = photographs
    given = {**ALONE, "tasks": (str(folder),)}
    refused = run("attn", tmp_path / "run", **given)
    assert refused.code == 2
    assert all(str(path) in refused.err for path in bad), refused.err
    for words in (
        "2 of the 24 images of pets/train cannot be read",
        "1 of the 20 images of pets/test cannot be read",
        "floats from 0 to 1 (mode F)",
        "Mend or remove them, or pass --config.on_bad_image=skip.",
    ):
        assert words in refused.err, refused.err
    assert not (tmp_path / "run" / "config.json").exists()

    done = run("attn", tmp_path / "run", **given, on_bad_image="skip")
    assert done.code == 0, done.err
    said = "pets: images that cannot be read are left out: 2 of 24 in train, 1 of 20 in test"
    assert f"warning: {said}" in done.err
    records = results.read(tmp_path / "run" / "results.jsonl")
    assert said in records[0]["warnings"]
    assert records[0]["skipped_images"] == {"pets": {"train": 2, "test": 1}}
    (zero_shot,) = results.find(records, stage="zero_shot", split="test")
    assert zero_shot["count"] == 19
    for path in bad:
        path.unlink()
    cleaned = run("attn", tmp_path / "cleaned", **given)
    assert cleaned.code == 0
    same = results.read(tmp_path / "cleaned" / "results.jsonl")
    numbers = [[record.get("top1") for record in found] for found in (records, same)]
    assert numbers[0] == numbers[1]
    assert records[0]["data"] == same[0]["data"]
    assert records[0]["config_hash"] != same[0]["config_hash"]

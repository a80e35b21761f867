"""What is pushed to the hub is what was made, with a card that says so; and a push that fails leaves nothing there."""

import json
import os
import re
import subprocess
import sys

import huggingface_hub
import jax
import numpy as np
import pytest

import tajax
from tajax import encoders, models, results, sharing, trees
from tajax.vector_files import load_task_vector, save_task_vector, vector_metadata
from tests.workflows import members

TOP1 = {"zero_shot": 0.25, "single_task": 0.875, "task_addition": 0.625}


@pytest.fixture(scope="module")
def clip():
    return models.load("tiny")


@pytest.fixture(scope="module")
def taus(clip):
    """An attention-only vector of each of two tasks."""
    theta = clip.params["image"]
    mask = trees.param_mask(theta, "attention")
    return mask, {
        name: jax.tree.map(lambda x, m, k=k: x * 0.1 * k * m, theta, mask) for k, name in enumerate(("a", "b"), 1)
    }


@pytest.fixture
def run(tmp_path, clip, taus):
    """The directory of a run that trained attention on two tasks of the bundled model."""
    mask, vectors = taus
    directory = tmp_path / "runs" / "attn_tiny"
    for task, tau in vectors.items():
        metadata = vector_metadata(
            model="tiny", base_sha256=clip.image_sha256, task=task, regime="attention", trainable="attention", seed=3
        )
        save_task_vector(directory / "task_vectors" / f"{task}.safetensors", tau, metadata, mask=mask)
    origin = {"regime": "attention", "model": "tiny", "seed": 3, "config_hash": "0d134eb23e5d", "elapsed_seconds": 9.0}
    records = [
        {"stage": stage, "task": task, "split": "test", "top1": top1, "loss": 1.0, "count": 8, **origin}
        for stage, top1 in TOP1.items()
        for task in vectors
    ]
    for record in records[-2:]:
        record |= {"scaling_coef": 0.3, "normalized_top1": 0.7}
    (directory / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory


@pytest.fixture
def merged(run, clip):
    models.save_pretrained(run / "merged", clip.config, clip.params, clip.tokenizer, clip.preprocessing)
    return run / "merged"


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def code_of(card):
    return re.search(r"```python\n(.*?)```", card, flags=re.S)[1]


def test_a_run_is_pushed_and_its_vectors_come_back_bit_for_bit(hub, run, clip, taus):
    name = sharing.push_to_hub(run, "owner/vectors", private=True)
    repository, commit = name.split("@")
    assert (repository, hub.private["owner/vectors"]) == ("owner/vectors", True)
    files = hub.repos["owner/vectors"][commit]
    assert set(files) == {"a.safetensors", "b.safetensors", "README.md", ".gitattributes"}
    for task, tau in taus[1].items():
        loaded, metadata = load_task_vector(
            f"owner/vectors/{task}.safetensors@{commit}", clip.params["image"], base_sha256=clip.image_sha256
        )
        same(loaded, tau)
        assert (metadata["task"], metadata["trainable"], metadata["seed"]) == (task, "attention", 3)
    with pytest.raises(ValueError, match="a.safetensors was made from an encoder with sha256"):
        load_task_vector("owner/vectors/a.safetensors", clip.params["image"], base_sha256="a" * 64)
    with pytest.raises(FileNotFoundError, match="has no 'c.safetensors'"):
        load_task_vector("owner/vectors/c.safetensors", clip.params["image"])


def test_the_card_says_what_it_is_and_its_code_runs(hub, run, clip, taus):
    sharing.push_to_hub(run, "owner/vectors", license="mit")
    text = hub.repos["owner/vectors"]["main"]["README.md"].decode()
    data = huggingface_hub.ModelCard(text).data
    assert (data.library_name, data.license, data.base_model) == ("tajax", "mit", None)  # the bundled model is nowhere
    assert {"task-vector", "task-arithmetic", "clip", "attention"} <= set(data.tags)
    assert clip.image_sha256 in text
    assert "| a | 25.0 | 87.5 | 62.5 | 70.0 |" in text
    assert "| a.safetensors | a | attention | attention | – | 3 | float32 | – |" in text
    assert str(run.parent) not in text
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    names = {"inputs": (255 * images).astype(np.uint8)}
    exec(code_of(text), names)
    same(names["edited"], tajax.apply_task_vector(clip.params["image"], taus[1]["a"]))
    assert names["features"].shape == (2, 128)


@pytest.mark.parametrize("choice", ["", "#model_ema"])
def test_a_card_names_the_base_on_the_hub_at_its_revision(run, taus, tmp_path, choice):
    origin = {"model": f"openai/clip-vit-base-patch32@main{choice}", "revision": "3d" * 20, "base_sha256": "5f" * 32}
    metadata = vector_metadata(**origin, task="sun397", regime="linear", layers=(0, 6), linearized=True)
    save_task_vector(tmp_path / "sun397.safetensors", taus[1]["a"], metadata, naming="huggingface")
    text = sharing.model_card(tmp_path / "sun397.safetensors", "owner/vectors")
    assert huggingface_hub.ModelCard(text).data.base_model == "openai/clip-vit-base-patch32"
    assert f'encoders.load("openai/clip-vit-base-patch32@{"3d" * 20}{choice}")' in text
    assert "tajax.linearize" in text and "state_dict[name] += scaling_coef * tau[name]" in text
    assert "[0, 6]" in text and "No licence is stated" in text


def test_a_merged_model_is_pushed_and_loaded(hub, merged, clip):
    name = sharing.push_to_hub(merged, "owner/merged", revision="v1")
    assert set(hub.repos["owner/merged"]["main"]) == {".gitattributes"}
    loaded = models.load(name)
    same(loaded.params, clip.params)
    assert loaded.revision == name.split("@")[1] == models.load("owner/merged@v1").revision
    text = hub.repos["owner/merged"]["v1"]["README.md"].decode()
    assert "| a | 25.0 | 87.5 | 62.5 | 70.0 |" in text and 'encoders.load("owner/merged")' in text


@pytest.mark.parametrize(
    ("method", "formula"),
    [("ties", "θ₀ + ατ, with τ merged by ties"), ("weight_average", "the average of the fine-tuned")],
)
def test_a_card_of_a_merged_model_says_by_which_method(method, formula, merged):
    path, stage = merged.parent / "results.jsonl", '"stage": "task_addition"'
    path.write_text(path.read_text().replace(stage, f'{stage}, "method": "{method}"'))
    assert formula in sharing.model_card(merged, "owner/merged")


def test_pushing_again_adds_to_what_is_there(hub, run):
    first = sharing.push_to_hub(run / "task_vectors" / "a.safetensors", "owner/vectors")
    second = sharing.push_to_hub(run / "task_vectors" / "b.safetensors", "owner/vectors")
    assert first != second
    assert {"a.safetensors", "b.safetensors"} <= set(hub.repos["owner/vectors"]["main"])


@pytest.mark.parametrize(
    ("failing", "kind", "message"),
    [
        ({"repos/create": 401}, PermissionError, "no access.*hf auth login"),
        ({"repos/create": 403}, PermissionError, "no access"),
        ({"preupload": 404}, FileNotFoundError, "no such repository"),
        ({"lfs/objects": 403}, PermissionError, "no access"),
        ({"api/models/owner/vectors/commit": 403}, PermissionError, "no access"),
        ({"api/models/owner/vectors/commit": 413}, ConnectionError, "the hub answered 413"),
    ],
)
def test_a_push_that_fails_says_why_and_leaves_nothing(hub, run, failing, kind, message):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    hub.failing = failing
    with pytest.raises(kind, match=message) as refused:
        sharing.push_to_hub(run, "owner/vectors")
    assert "nothing was committed" in str(refused.value)
    assert set(hub.repos.get("owner/vectors", {}).get("main", {})) <= {".gitattributes"}
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_without_token_or_network_nothing_is_sent(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="hf auth login"):
        sharing.push_to_hub(run, "owner/vectors")
    sharing.push_to_hub(run, "owner/vectors", token="hf_stand_in")
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
            sharing.push_to_hub(run, "owner/others", token="hf_stand_in")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:\d+ cannot be reached"):
        sharing.push_to_hub(run, "owner/others", token="hf_stand_in")
    assert set(hub.repos) == {"owner/vectors"}


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(hub, run, tmp_path, taus):
    for name in ("vectors", "owner/vectors/a.safetensors", "owner/vectors@v1", "../vectors"):
        with pytest.raises(ValueError, match="is no name of a repository: it has the form 'owner/name'"):
            sharing.push_to_hub(run, name)
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="nothing to push in"):
            sharing.push_to_hub(path, "owner/vectors")
    other = run / "task_vectors" / "c.safetensors"
    save_task_vector(other, taus[1]["a"], vector_metadata(model="tiny", base_sha256="a" * 64, task="c"))
    with pytest.raises(ValueError, match="were made from 2 bases"):
        sharing.push_to_hub(run, "owner/vectors")
    other.write_bytes(other.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"c\.safetensors \(1,000 bytes\) is truncated"):
        sharing.push_to_hub(run, "owner/vectors")
    assert not hub.seen


def test_the_command_pushes_and_prints_the_name(hub, run, capsys):
    command = [sys.executable, "-m", "tajax.sharing", str(run), "owner/vectors", "--private"]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"owner/vectors@{hub.resolve('owner/vectors', 'main')}"
    assert sharing.main([str(run / "absent"), "owner/vectors"]) == 2
    assert "FileNotFoundError: nothing to push in" in capsys.readouterr().err


def test_a_sentence_encoder_is_pushed_whole_and_its_card_loads_it_by_its_family(hub, tmp_path, taus):
    encoder = encoders.load(str(members.save_bert(tmp_path / "bert", np.random.default_rng(0))), family="text")
    encoder.save(tmp_path / "run" / "merged", encoder.params, format="huggingface")
    about = {"family": "text", "model": "bert", "seed": 0, "regime": "standard", "config_hash": "0"}
    results.append(tmp_path / "run" / "results.jsonl", {"stage": "run", **about})
    sharing.push_to_hub(tmp_path / "run" / "merged", "owner/sentences")
    pushed = hub.repos["owner/sentences"]["main"]
    assert {"modules.json", "1_Pooling/config.json", "model.safetensors"} <= set(pushed)
    text = pushed["README.md"].decode()
    assert 'encoders.load("owner/sentences", family="text")' in text and "CLIP" not in text
    assert "text" in huggingface_hub.ModelCard(text).data.tags
    again = encoders.load("owner/sentences", family="text")
    same(again.params, encoder.params)

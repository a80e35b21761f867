"""What a name means, which revision it was, and what is said if the hub does not answer; nothing leaves the machine."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors.numpy import save_file

from tajax.models import load
from tajax.models.hub import check_name, commit_of, hub_name, locate, split_choice
from tajax.models.layout import DESCRIPTIONS

COMMIT = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"


@pytest.fixture
def repository(hub, saved):
    """The small CLIP in a repository of the stand-in, in two commits; the first and the second."""
    files = {file.name: file.read_bytes() for file in saved.iterdir()}
    return [hub.commit("owner/clip", files | {"notes.md": text}) for text in (b"first", b"second")]


def fill_cache(directory, saved, *, refs=("main",), files=()):
    """A cache as huggingface_hub lays it out, by hand: refs that name a commit, and its snapshot."""
    repository = Path(directory) / "models--owner--clip"
    for ref in refs:
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(COMMIT)
    snapshot = shutil.copytree(saved, repository / "snapshots" / COMMIT)
    for name in files:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({}, snapshot / name)


@pytest.mark.parametrize(
    "name",
    ["clip", "/a/b", "./a/b", "~/a/b", "a//b", "a/b/", "a/b@", "a/../b", "a/b/../c.safetensors", "a/b/c", "a\\b/c"]
    + ["a/b/*.safetensors", "a/b/c.safetensors/../../../d.safetensors"],
)
def test_what_is_no_hub_name_is_not_taken_for_one(name):
    assert hub_name(name) is None
    with pytest.raises((FileNotFoundError, ValueError), match="No model"):
        locate(name)


def test_a_choice_among_models_ends_a_name_and_a_path_that_exists_has_none(tmp_path):
    path = tmp_path / "run#3" / "m.pt"
    path.parent.mkdir()
    path.touch()
    assert split_choice(path) == (path, None) and split_choice(path.parent) == (path.parent, None)
    assert split_choice(f"{path}#ema") == (str(path), "ema") and split_choice(Path(f"{path}#ema")) == (path, "ema")
    for name in ("tiny", "owner/clip@v1#ema", f"{path}#ema", "tiny#model"):
        check_name(name)
    with pytest.raises(FileNotFoundError, match="No model"):
        check_name(f"{path}.absent#ema")


def test_a_branch_is_resolved_to_its_commit_and_a_commit_is_itself(hub, repository):
    first, second = repository
    assert load("owner/clip").revision == load("owner/clip@main").revision == second
    pinned = load(f"owner/clip@{first}")
    assert (pinned.revision, pinned.name) == (first, f"owner/clip@{first}")
    assert load("owner/clip", revision=first).revision == first
    assert pinned.image_sha256 == load("owner/clip").image_sha256
    hub.commit("owner/clip", {"config.json": b"{}"})
    assert load(f"owner/clip@{first}").config == pinned.config  # whatever became of the branch
    with pytest.raises(
        ValueError, match="'owner/clip@main' names the revision .main., and revision=.other. is another"
    ):
        load("owner/clip@main", revision="other")


def test_only_what_is_needed_is_fetched_and_only_once(hub, repository):
    directory = locate("owner/clip")
    assert {"model.safetensors", "config.json"} <= {file.name for file in directory.iterdir()}
    assert not (directory / "notes.md").exists()
    hub.seen.clear()
    assert locate(f"owner/clip@{repository[1]}") == directory
    assert not hub.seen


def test_all_that_is_read_beside_the_weights_is_fetched(hub, saved):
    files = {name: b"{}" for name in DESCRIPTIONS} | {file.name: file.read_bytes() for file in saved.iterdir()}
    preprocessing = files.pop("preprocessor_config.json")
    files["processor_config.json"] = b'{"image_processor": ' + preprocessing + b"}"
    hub.commit("owner/clip", files)
    hub.commit("owner/clips", {f"b32/{name}": content for name, content in files.items()})
    for name in ("owner/clip", "owner/clips/b32/model.safetensors"):
        place = locate(name)
        directory = place if place.is_dir() else place.parent
        fetched = (file for file in directory.rglob("*") if file.is_file())
        assert {str(file.relative_to(directory)) for file in fetched} == files.keys()
        clip = load(name)
        assert (clip.preprocessing, clip.sources["preprocessing"]) == (
            load(saved).preprocessing,
            "processor_config.json",
        )


@pytest.mark.parametrize("revision", [None, "main", "refs/pr/1", COMMIT])
def test_the_cache_serves_without_network(hub, saved, monkeypatch, revision):
    fill_cache(huggingface_hub.constants.HF_HUB_CACHE, saved, refs=("main", "refs/pr/1"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    clip = load("owner/clip" if revision is None else f"owner/clip@{revision}")
    assert clip.revision == COMMIT
    assert not hub.seen


def test_the_cache_serves_when_the_hub_does_not_answer(hub, saved):
    fill_cache(huggingface_hub.constants.HF_HUB_CACHE, saved)
    hub.shutdown()
    hub.server_close()
    assert load("owner/clip").revision == COMMIT
    with pytest.raises(
        FileNotFoundError, match=r"http://127.0.0.1:\d+ cannot be reached(.|\n)*hf download owner/other"
    ):
        load("owner/other")


def test_one_file_of_a_repository(hub, saved, monkeypatch):
    weights, config = (saved / "model.safetensors").read_bytes(), (saved / "config.json").read_bytes()
    commit = hub.commit(
        "owner/clips", {"b32/model.safetensors": weights, "b32/config.json": config, "a.safetensors": b"a"}
    )
    assert load("owner/clips/b32/model.safetensors").revision == commit
    with pytest.raises(FileNotFoundError, match=rf"at commit {commit} has no 'b16.safetensors'"):
        locate("owner/clips/b16.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert locate("owner/clips/b32/model.safetensors@main").read_bytes() == weights
    with pytest.raises(FileNotFoundError, match=r"HF_HUB_OFFLINE is set(.|\n)*--include 'a\.safetensors'"):
        locate("owner/clips/a.safetensors")
    fill_cache(huggingface_hub.constants.HF_HUB_CACHE, saved)
    with pytest.raises(FileNotFoundError, match=r"no 'a\.safetensors', or it is not in the local cache.*: model\.saf"):
        locate("owner/clip/a.safetensors")


@pytest.mark.parametrize(
    ("failing", "name", "message"),
    [
        ({}, "owner/absent", "no such repository or file, or a private one"),
        ({}, "owner/clip@v9", "the repository has no such revision"),
        ({"api/models": 401}, "owner/clip", "no access, or no such repository: log in with `hf auth login`"),
        ({"api/models": 403}, "owner/clip", "no access"),
        ({"resolve": 404}, "owner/clip", "no such repository or file"),
    ],
)
def test_a_refusal_says_what_to_do(hub, repository, failing, name, message):
    hub.failing = failing
    with pytest.raises(FileNotFoundError, match=message) as refused:
        load(name)
    assert "hf download owner/" in str(refused.value)


def test_a_transfer_that_breaks_off_leaves_no_model(hub, repository):
    hub.failing = {"model.safetensors": 403}
    with pytest.raises(FileNotFoundError, match="no access"):
        load("owner/clip")
    hub.failing = {}
    assert load("owner/clip").revision == repository[1]


def test_the_commit_is_told_from_the_cache_alone(tmp_path, saved):
    assert commit_of(tmp_path / "snapshots" / COMMIT) is None
    assert load(saved).revision is load("tiny").revision is None
    fill_cache(tmp_path, saved)
    assert load(tmp_path / "models--owner--clip" / "snapshots" / COMMIT).revision == COMMIT

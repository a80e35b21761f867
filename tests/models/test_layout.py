"""What is there and cannot be read is refused by name, never taken for absent; and what is read is what is fetched."""

import fnmatch
import os
from pathlib import Path

import pytest

from tajax.models import hub, load
from tajax.models.layout import ADAPTER, DESCRIPTIONS, PICKLED_WEIGHTS, WEIGHTS, is_there

SAVED = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)
ABSENT = ("processor_config.json", "open_clip_config.json", "special_tokens_map.json", "added_tokens.json")

OF_SENTENCE_ENCODERS = (  # read by their own family
    *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    "vocab.txt",
)


def read(directory):
    return load(directory).tokenizer


def test_a_file_is_there_and_nothing_is_not(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert is_there(tmp_path / "file") and is_there(tmp_path / "link")
    assert not is_there(tmp_path / "none") and not is_there(tmp_path / "file" / "none")


def test_what_is_no_file_is_an_error(tmp_path):
    (tmp_path / "link").symlink_to("gone.json")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, error, message in (
        ("link", FileNotFoundError, "link is a link to gone.json, which is not there"),
        ("circle", OSError, "circle"),
        ("directory", ValueError, "directory is a directory where a file should be"),
        ("pipe", ValueError, "pipe is a pipe or a device"),
    ):
        with pytest.raises(error, match=message):
            is_there(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_what_may_not_be_read_is_an_error(tmp_path):
    (tmp_path / "file").touch(mode=0)
    with pytest.raises(PermissionError, match="file may not be read by this user"):
        is_there(tmp_path / "file")


def test_the_names_are_those_of_the_files_that_are_read(copy, monkeypatch):
    asked, stat = set(), Path.stat

    def note(self, **options):
        asked.update([self.name] * (self.parent == copy))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", note)
    read(copy)
    (copy / "model.safetensors").unlink()
    (copy / "renamed.bin").write_bytes(b"N.")
    with pytest.raises(ValueError, match=r"renamed\.bin"):
        read(copy)
    assert asked == {*SAVED, *ABSENT, ADAPTER, *WEIGHTS, *PICKLED_WEIGHTS, "renamed.bin", "additional_chat_templates"}
    assert set(DESCRIPTIONS) == {*SAVED, *ABSENT, *OF_SENTENCE_ENCODERS, ADAPTER}
    patterns = [pattern for patterns in hub._IN_TURN for pattern in patterns]
    assert all(any(fnmatch.fnmatch(name, p) for p in patterns) for name in (*WEIGHTS, *PICKLED_WEIGHTS))


@pytest.mark.parametrize("name", [*SAVED, *ABSENT, "model.safetensors"])
@pytest.mark.parametrize("form", ["link to nothing", "directory"])
def test_no_default_is_taken_for_a_file_that_cannot_be_read(copy, name, form):
    (copy / name).unlink(missing_ok=True)
    (copy / name).mkdir() if form == "directory" else (copy / name).symlink_to("gone")
    error = ValueError if form == "directory" else FileNotFoundError
    with pytest.raises(error, match=f"{copy / name} is a {form if form == 'directory' else 'link to gone'}"):
        read(copy)


@pytest.mark.parametrize("content", ["", "[]", "null", '"text"', "\udcff"], ids=repr)
@pytest.mark.parametrize("name", [name for name in (*SAVED, *ABSENT[:1], *ABSENT[2:]) if name.endswith(".json")])
def test_no_default_is_taken_for_a_file_that_holds_no_object(copy, name, content):
    (copy / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"{copy / name} (is not valid JSON|must hold a JSON object)"):
        read(copy)


def test_a_link_to_nothing_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/clip").symlink_to("gone")
    for find in (load, hub.locate):
        with pytest.raises(FileNotFoundError, match="models/clip is a link to gone, which is not there"):
            find("models/clip")

"""What is saved: the files of the model that was loaded, with other parameters."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax.encoders.text import FAMILY
from tajax.encoders.text.loading import load_text
from tajax.encoders.text.saving import save
from tests.encoders.text.conftest import stored


def names(directory):
    return sorted(str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file())


def test_what_was_loaded_is_written_back_to_the_bit(text, tensors, tmp_path):
    save(text, tmp_path / "again", text.params)
    found = stored(tmp_path / "again")
    assert found.keys() == tensors.keys()  # the pooler, too
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    again = load_text(tmp_path / "again")
    assert again.sha256 == text.sha256 and again.tokenizer.facts() == text.tokenizer.facts()
    assert again.described.config == text.described.config and again.described.pooling == ("mean",)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["hidden_dropout_prob"] == 0.25
    assert names(tmp_path / "again") == [
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]


def test_pooling_prompts_and_the_end_are_kept(change, tmp_path):
    change("1_Pooling/config.json", pooling_mode=["lasttoken", "cls"])
    prompts = {"prompts": {"query": "news: ", "other": "a "}, "default_prompt_name": "query"}
    directory = change("config_sentence_transformers.json", similarity_fn_name="cosine", **prompts)
    modules = json.loads((directory / "modules.json").read_text())
    (directory / "modules.json").write_text(json.dumps(modules[:2]))
    loaded = load_text(directory)
    save(loaded, tmp_path / "again", loaded.params)
    again = load_text(tmp_path / "again")
    assert again.described.pooling == ("lasttoken", "cls") and again.tokenizer.prompt == "news: "
    assert again.described.prompting.told == prompts | {"similarity_fn_name": "cosine"}
    assert not again.described.modules.normalize and not (tmp_path / "again" / "2_Normalize").exists()


def test_other_parameters_in_place_of_its_own(saved, tmp_path):
    encoder = FAMILY.load(str(saved))
    params = jax.tree.map(lambda leaf: 1.5 * leaf, encoder.params)
    encoder.save(tmp_path / "moved", params, format="huggingface")
    jax.tree.map(np.testing.assert_array_equal, FAMILY.load(str(tmp_path / "moved")).params, params)


def test_nothing_is_written_that_is_refused(text, saved, tmp_path):
    broken = text.params | {"type_embedding": jnp.full((2, 24), jnp.inf)}
    with pytest.raises(ValueError, match="token_type_embeddings.weight is not finite"):
        save(text, tmp_path / "new", broken)
    with pytest.raises(ValueError, match="type_embedding"):
        save(text, tmp_path / "new", text.params | {"type_embedding": jnp.zeros((3, 24))})
    with pytest.raises(ValueError, match="'open_clip' is none that a text encoder is written in; choose 'huggingface'"):
        FAMILY.load(str(saved)).save(tmp_path / "new", text.params, format="open_clip")
    with pytest.raises(ValueError, match="'open_clip'"):
        FAMILY.load(str(saved)).check_format("open_clip")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="taken exists"):
        save(text, tmp_path / "taken", text.params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_a_save_that_fails_leaves_nothing(text, tmp_path, monkeypatch):
    monkeypatch.setattr(type(text.tokenizer), "save", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        save(text, tmp_path / "new", text.params)
    assert not list(tmp_path.iterdir())

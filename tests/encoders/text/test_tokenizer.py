"""Ids of texts, how long ones are cut, and tokenizers that do not fit."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from tajax.encoders.text.tokenizer import load_tokenizer, padded
from tests.encoders.text.conftest import TEXTS, VOCAB

SIZES = {"vocab_size": len(VOCAB) + 3, "positions": 48}


@pytest.fixture(scope="module")
def tokenizer(saved):
    return load_tokenizer(saved, max_length=20, **SIZES)


def test_ids_are_those_of_the_words(tokenizer):
    (ids,) = tokenizer.split(["The texts, 1x!"])
    words = ["[CLS]", "the", "text", "##s", ",", "1", "##x", "!", "[SEP]"]
    assert ids.dtype == np.int32 and [VOCAB[i] for i in ids] == words


def test_cut_rows_are_those_of_transformers(saved, tokenizer):
    """Keeping what stands at the end is its truncation, for texts of any length."""
    backend = AutoTokenizer.from_pretrained(saved)
    texts = TEXTS + [" ".join(["a text"] * n) for n in range(15)]
    theirs = backend(texts, truncation=True, max_length=20, padding="max_length")
    ids, mask = padded(tokenizer.tokenization(), texts, multiple=20)
    np.testing.assert_array_equal(mask, np.asarray(theirs["attention_mask"], bool))
    np.testing.assert_array_equal(ids, theirs["input_ids"])
    assert (mask.sum(1) == 20).sum() > 3
    assert max(map(len, tokenizer.split(texts))) > 60  # which are longer before


def test_what_a_run_is_told(tokenizer):
    tokenization = tokenizer.tokenization()
    assert (tokenization.max_length, tokenization.ending) == (20, 1)
    assert json.loads(json.dumps(tokenization.facts)) == tokenization.facts
    assert [len(ids) for ids in tokenization.split([])] == []


def test_the_digest_is_of_what_ids_depend_on(saved, copy, change, tokenizer, tmp_path):
    digest = tokenizer.facts()["sha256"]
    (tmp_path / "again").mkdir()
    tokenizer.save(tmp_path / "again")
    assert (tmp_path / "again" / "vocab.txt").read_text() == (saved / "vocab.txt").read_text()
    again = load_tokenizer(tmp_path / "again", max_length=20, **SIZES)
    again.backend(["a"], truncation=True, max_length=5, padding="max_length")
    assert again.facts() == tokenizer.facts()
    cased = load_tokenizer(change("tokenizer_config.json", do_lower_case=False), max_length=20, **SIZES)
    assert cased.facts()["sha256"] != digest
    words = (copy / "vocab.txt").read_text().replace("good", "fine")
    (copy / "vocab.txt").write_text(words)
    other = load_tokenizer(change("tokenizer_config.json", do_lower_case=True), max_length=20, **SIZES)
    assert other.facts()["sha256"] != digest


def test_lower_casing_before_a_tokenizer_that_keeps_case(change):
    directory = change("tokenizer_config.json", do_lower_case=False)
    kept, lowered = (load_tokenizer(directory, lower_case=lower, **SIZES) for lower in (False, True))
    assert [VOCAB[i] for i in kept.split(["The Text"])[0]] == ["[CLS]", "[UNK]", "[UNK]", "[SEP]"]
    assert [VOCAB[i] for i in lowered.split(["The Text"])[0]] == ["[CLS]", "the", "text", "[SEP]"]


def test_a_prompt_goes_before_each_text(saved, tokenizer):
    prompted = load_tokenizer(saved, prompt="news: ", **SIZES)
    for ours, theirs in zip(prompted.split(TEXTS), tokenizer.split([f"news: {text}" for text in TEXTS]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert prompted.facts()["prompt"] == "news: "


def test_the_length_is_what_somebody_says(saved, change):
    assert load_tokenizer(saved, **SIZES).max_length == 48  # of the tokenizer's 512 and the 48 positions
    assert load_tokenizer(change("tokenizer_config.json", model_max_length=30), **SIZES).max_length == 30
    assert load_tokenizer(change("tokenizer_config.json", model_max_length=10**30), **SIZES).max_length == 48
    for wrong in (49, 2, 0):
        with pytest.raises(ValueError, match=f"max_seq_length is {wrong}, but the encoder has 48 positions"):
            load_tokenizer(saved, max_length=wrong, **SIZES)


def test_a_tokenizer_with_more_ids_than_rows_is_refused(saved):
    with pytest.raises(ValueError, match=f"gives ids up to {len(VOCAB) - 1}, but the token embedding has 40 rows"):
        load_tokenizer(saved, vocab_size=40, positions=48)


def test_what_is_no_tokenizer_is_refused(copy, change, tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer: neither tokenizer.json nor vocab.txt"):
        load_tokenizer(tmp_path, **SIZES)
    tokenizer.save(copy)
    change("tokenizer_config.json", do_lower_case=False)
    whole = json.loads((copy / "tokenizer.json").read_text())
    assert whole["normalizer"]["lowercase"] is True
    with pytest.raises(ValueError, match=r"tokenizer.json and the files beside it disagree"):
        load_tokenizer(copy, **SIZES)
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json is not valid JSON"):
        load_tokenizer(copy, **SIZES)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read|gives ids|disagree"):
        load_tokenizer(copy, **SIZES)


@pytest.mark.parametrize(("texts", "message"), [("abc", "single text 'abc'"), (["a", 5], "got int 5 at position 1")])
def test_what_is_no_text_is_refused(tokenizer, texts, message):
    with pytest.raises(TypeError, match=message):
        tokenizer.split(texts)

"""The tokenizer: CLIP's rows, any text, and the same ids from `transformers`."""

import json

import numpy as np
import pytest
from transformers import CLIPTokenizer

from tajax.models import load_tokenizer, train_bpe

PROBES = [
    "a photo of a red square.",
    "A  PHOTO\tof a Red\nsquare.",
    "it's 3 o'clock: don't!!! ...",
    "日本 ïc 🙂 \x00\x7f",
    "",
    "<|endoftext|> in the middle <|startoftext|>",
    "word " * 60,
]


def test_rows_are_bos_text_eos_padding(tokenizer):
    rows = tokenizer.tokenize(PROBES)
    assert rows.shape == (len(PROBES), 24) and rows.dtype == np.int32
    assert (rows[:, 0] == tokenizer.bos_token_id).all()
    ends = (rows == tokenizer.eos_token_id).argmax(axis=1)
    assert (ends > 0).all()
    assert ends[PROBES.index("")] == 1
    assert ends[-1] == 23  # the long text is cut, its EOS is not
    for probe, row, end in zip(PROBES, rows, ends, strict=True):
        marks = "<|" in probe  # a mark in the text is read as the mark, as in the reference
        assert marks or (row[end:] == tokenizer.eos_token_id).all()


def test_case_and_white_space_do_not_matter(tokenizer):
    np.testing.assert_array_equal(*tokenizer.tokenize(PROBES[:2]))


def test_no_text_is_unknown(tokenizer):
    decoded = tokenizer.backend.decode(tokenizer.tokenize(PROBES[3])[0], skip_special_tokens=True)
    assert decoded == "日本 ïc 🙂 \x00\x7f"


def test_ids_are_laid_out_as_clips(tokenizer):
    vocab = tokenizer.backend.get_vocab()
    assert sorted(vocab.values()) == list(range(tokenizer.vocab_size))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (tokenizer.vocab_size - 2, tokenizer.vocab_size - 1)
    assert 514 < tokenizer.vocab_size <= 560
    by_id = sorted(vocab, key=vocab.get)
    assert all(len(symbol) == 1 for symbol in by_id[:256])
    assert by_id[256:512] == [f"{symbol}</w>" for symbol in by_id[:256]]


def test_merges_shorten_the_texts_they_were_learnt_from(tokenizer):
    bare = train_bpe(["x"], vocab_size=514, context_length=77)
    text = "a photo of a green circle."
    lengths = [(t.tokenize(text)[0] == t.eos_token_id).argmax() - 1 for t in (bare, tokenizer)]
    assert lengths[0] == len(text.replace(" ", ""))  # without merges, one id a letter
    assert lengths[1] < lengths[0] / 2


@pytest.mark.parametrize("files", [{"tokenizer.json", "tokenizer_config.json"}, {"vocab.json", "merges.txt"}])
def test_saved_tokenizer_gives_equal_ids_here_and_in_transformers(tokenizer, tmp_path, files):
    tokenizer.save(tmp_path)
    for file in tmp_path.iterdir():
        if file.name not in files:
            file.unlink()
    ids = tokenizer.tokenize(PROBES)
    np.testing.assert_array_equal(load_tokenizer(tmp_path, context_length=24).tokenize(PROBES), ids)
    reference = CLIPTokenizer.from_pretrained(tmp_path)(PROBES, padding="max_length", truncation=True, max_length=24)
    np.testing.assert_array_equal(reference["input_ids"], ids)


def test_code_beside_a_tokenizer_is_never_run(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass T:\n    pass\n")
    config = tmp_path / "tokenizer_config.json"
    remote = '{"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T", '
    config.write_text(remote + config.read_text().strip()[1:])
    np.testing.assert_array_equal(
        load_tokenizer(tmp_path, context_length=24).tokenize(PROBES), tokenizer.tokenize(PROBES)
    )
    assert not canary.exists()


def test_merges_that_are_cut_off_are_refused(tokenizer, tmp_path):
    """`transformers` takes what is left of them, and gives other ids without a word."""
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    lines = (tmp_path / "merges.txt").read_text().splitlines()
    for kept in (0, 1, len(lines) - 1):
        (tmp_path / "merges.txt").write_text("\n".join(lines[:kept]))
        message = f"no merge makes {len(lines) - max(kept, 1)} of the {tokenizer.vocab_size} tokens"
        with pytest.raises(ValueError, match=rf"tokenizer in {tmp_path} is damaged: {message}, such as .*merges\.txt"):
            load_tokenizer(tmp_path, context_length=24)


def test_another_kind_of_tokenizer_is_refused(tokenizer, tmp_path):
    """`transformers.CLIPTokenizer` takes the vocabulary of any, and nothing else of it."""
    tokenizer.save(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole | {"normalizer": {"type": "NFC"}}))
    with pytest.raises(
        ValueError, match=r"tokenizer\.json is another kind of tokenizer than CLIP's: by itself it cuts \"A Ph"
    ):
        load_tokenizer(tmp_path, context_length=24)
    words = {"type": "WordPiece", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}
    words |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 99}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole | {"model": words, "added_tokens": []}))
    with pytest.raises(ValueError, match=r"is not CLIP's: its vocabulary of 2 has 511 of the 512 byte tokens missing"):
        load_tokenizer(tmp_path, context_length=24)


def test_bad_texts_are_refused(tokenizer, tmp_path):
    with pytest.raises(TypeError, match="int 3 at position 1"):
        tokenizer.tokenize(["a", 3])
    with pytest.raises(ValueError, match="at least one text"):
        tokenizer.tokenize([])
    with pytest.raises(ValueError, match="vocab_size must be at least 514"):
        train_bpe(["a"], vocab_size=100)
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer.*openai/clip-vit-base-patch32"):
        load_tokenizer(tmp_path, context_length=24)


def test_learning_twice_gives_the_same_vocabulary():
    """A hundred pairs are equally frequent, 26 are learnt: which must not depend on the order of a hash map."""
    texts = [first + second for first in "abcdefghij" for second in "klmnopqrst"]
    first, *others = (train_bpe(texts, vocab_size=540).backend.get_vocab() for _ in range(4))
    assert all(other == first for other in others)

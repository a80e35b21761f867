"""CLIP's tokenizer: lower-cased byte-level BPE with `</w>` word ends, between BOS and EOS.

A thin record around `transformers.CLIPTokenizer`, which is imported on first use since that takes a second. A
directory is read with this class alone; code that a tokenizer's directory may carry is never run.

Source: Radford et al. 2021, §2.4; Sennrich et al. 2016 for byte-pair encoding.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from tajax.models.files import read_json
from tajax.models.layout import TOKENIZER, TOKENIZER_PARTS, TOKENIZER_WHOLE, is_there

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

__all__ = ["BOS", "EOS", "ClipTokenizer", "load_tokenizer", "train_bpe"]

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
_PROBE = (
    "A Photo\tof  Cafe\u0301 No. 12: it's \u65e5\u672c!?"  # letter case, spaces, accents, numbers, what is no letter
)


@dataclasses.dataclass(frozen=True, eq=False)
class ClipTokenizer:
    """Text to rows of token ids of one length.

    Attributes:
        backend: The `transformers.CLIPTokenizer`.
        context_length: The length C of a row.
    """

    backend: CLIPTokenizer
    context_length: int

    def __post_init__(self) -> None:
        """Refuse a context too short for one token between BOS and EOS."""
        if self.context_length < 3:
            raise ValueError(f"context_length must be at least 3 (BOS, a token, EOS), got {self.context_length}.")

    @property
    def vocab_size(self) -> int:
        """Number of token ids, V."""
        return len(self.backend)

    @property
    def bos_token_id(self) -> int:
        """Id of the token that starts each text."""
        return self.backend.bos_token_id

    @property
    def eos_token_id(self) -> int:
        """Id of the token that ends each text, where the text tower pools."""
        return self.backend.eos_token_id

    def tokenize(self, texts: str | Sequence[str]) -> Int[np.ndarray, "B C"]:
        """Token ids, int32 `[B, C]`: BOS, the text cut to C − 2 tokens, EOS, padding.

        Args:
            texts: One text, or B of them.

        Raises:
            TypeError: something that is not a text; its position is named.
            ValueError: no text at all.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("tokenize needs at least one text, got an empty sequence.")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"tokenize needs texts, got {type(text).__name__} {text!r} at position {i}.")
        encoded = self.backend(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_attention_mask=False,
        )
        return np.asarray(encoded["input_ids"], np.int32)

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` with its configuration, and `vocab.json` with `merges.txt`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.backend.model_max_length = self.context_length
        try:
            self.backend.save_pretrained(directory)
        except Exception as error:  # the tokenizers library raises nothing more precise where a disk is full
            raise OSError(f"the tokenizer cannot be written to {directory}: {error}") from error
        model = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        vocab = json.dumps(model["vocab"], ensure_ascii=False)
        (directory / "vocab.json").write_text(vocab + "\n", encoding="utf-8")
        merges = (" ".join(m) if isinstance(m, list) else m for m in model["merges"])
        (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def load_tokenizer(directory: str | Path, *, context_length: int) -> ClipTokenizer:
    """The tokenizer saved in a directory as `tokenizer.json`, or as `vocab.json` with `merges.txt`.

    Args:
        directory: A local directory; nothing is fetched, and no code in it is run.
        context_length: The length of a row, `TextConfig.max_position_embeddings` of the model it serves.

    Raises:
        FileNotFoundError: neither form is there, or a file is a link to nothing.
        PermissionError: a file may not be read.
        ValueError: a damaged file, another kind of tokenizer, or merges that do not make the vocabulary.
    """
    directory = Path(directory)
    there = {name for name in TOKENIZER if is_there(directory / name)}
    if TOKENIZER_WHOLE not in there and not there.issuperset(TOKENIZER_PARTS):
        raise FileNotFoundError(
            f"{directory} holds no tokenizer: neither tokenizer.json nor vocab.json with merges.txt. "
            "Copy those of openai/clip-vit-base-patch32 there: OpenAI's and LAION's English models share "
            "them."
        )
    for name in sorted(name for name in there if name.endswith(".json")):
        read_json(directory / name)  # which names the file that is damaged; the library does not
    try:
        backend = _backend_class().from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of the tokenizers library, which has no type of its own for a damaged file
        raise ValueError(f"the tokenizer in {directory} cannot be read: {type(error).__name__}: {error}") from error
    _check_vocabulary(backend, directory)
    if TOKENIZER_WHOLE in there:
        _check_same(backend, directory / TOKENIZER_WHOLE)
    return ClipTokenizer(backend, context_length)


def _check_vocabulary(backend: CLIPTokenizer, directory: Path) -> None:
    """Raises `ValueError` unless each byte has its two tokens, within and at the end of a word, and all others a merge.

    `transformers` takes another kind of vocabulary, or merges that are cut off, without a word, and gives other ids.
    """
    model = json.loads(backend.backend_tokenizer.to_str())["model"]
    letters = {symbol + end for symbol in _byte_alphabet() for end in ("", "</w>")}
    merged = {"".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in model["merges"]}
    vocab = model["vocab"].keys()
    if missing := letters - vocab:
        raise ValueError(
            f"the tokenizer in {directory} is not CLIP's: its vocabulary of {len(vocab):,} has {len(missing)} of the "
            f"{len(letters)} byte tokens missing, such as {min(missing)!r}."
        )
    if unmade := vocab - letters - merged - set(backend.get_added_vocab()):
        raise ValueError(
            f"the tokenizer in {directory} is damaged: no merge makes {len(unmade):,} of the {len(vocab):,} tokens, "
            f"such as {min(unmade)!r}. Is merges.txt whole, and of this vocabulary?"
        )


def _check_same(backend: CLIPTokenizer, path: Path) -> None:
    """Raises `ValueError` if `tokenizer.json` splits or folds texts otherwise than CLIP, which is not read from it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    own = tokenizer.encode(_PROBE, add_special_tokens=False)
    ids = backend(_PROBE, add_special_tokens=False, verbose=False)["input_ids"]
    if own.ids != ids:
        raise ValueError(
            f"{path} is another kind of tokenizer than CLIP's: by itself it cuts {_PROBE!r} into {own.tokens}, CLIP's "
            f"with its vocabulary into {backend.convert_ids_to_tokens(ids)}."
        )


def train_bpe(texts: Iterable[str], *, vocab_size: int, context_length: int = 77) -> ClipTokenizer:
    """A byte-pair encoding learnt from texts, laid out as CLIP's own.

    The ids are, in order: the 256 bytes, the 256 bytes that end a word, one id a merge, BOS, EOS. Hence any
    text can be written, and EOS is the highest id, which OpenAI's rule for pooling ("the highest id of the
    row") needs.

    Args:
        texts: What to learn from.
        vocab_size: The most ids to use, 514 at least. Few texts may have fewer merges to give.
        context_length: The length of a tokenised row.

    Raises:
        ValueError: `vocab_size` leaves no room for the bytes and the two marks.

    Example:
        >>> tokenizer = train_bpe(["a red square", "a red circle"] * 9, vocab_size=520, context_length=6)
        >>> tokenizer.tokenize("a red circle").shape, tokenizer.eos_token_id == tokenizer.vocab_size - 1
        ((1, 6), True)
    """
    from tokenizers import Tokenizer, models, trainers

    alphabet = _byte_alphabet()
    symbols = [*alphabet, *(f"{symbol}</w>" for symbol in alphabet)]
    if vocab_size < len(symbols) + 2:
        raise ValueError(
            f"vocab_size must be at least {len(symbols) + 2} (256 bytes, 256 word ends, BOS, EOS), got {vocab_size}."
        )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    reference = _backend_class()().backend_tokenizer
    learner.normalizer, learner.pre_tokenizer = reference.normalizer, reference.pre_tokenizer
    # Equally frequent pairs are learnt in the order of their ids. Symbols that end a word would get theirs in the order
    # of a hash map, another in each run; as special tokens they get them before anything is read.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        special_tokens=symbols[len(alphabet) :],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]["merges"]
    vocab = {symbol: i for i, symbol in enumerate(symbols)}
    merges = []
    for merge in (m.split(" ") if isinstance(m, str) else m for m in learnt):
        token = "".join(merge)
        if len(vocab) == vocab_size - 2 and token not in vocab:
            break
        merges.append(tuple(merge))
        vocab.setdefault(token, len(vocab))
    vocab |= {BOS: len(vocab), EOS: len(vocab) + 1}
    return ClipTokenizer(_backend_class()(vocab=vocab, merges=merges), context_length)  # type: ignore[arg-type]  # pairs, too


@functools.cache
def _byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for bytes, in a fixed order."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _backend_class() -> type[CLIPTokenizer]:
    """`transformers.CLIPTokenizer`, without the advice to install PyTorch, which tajax has no use for."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer

    return CLIPTokenizer

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

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

__all__ = ["BOS", "EOS", "ClipTokenizer", "load_tokenizer", "train_bpe"]

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"


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
        FileNotFoundError: neither file is there.
        ValueError: a damaged file, or another kind of tokenizer.
    """
    directory = Path(directory)
    whole, parts = directory / "tokenizer.json", (directory / "vocab.json", directory / "merges.txt")
    if not whole.is_file() and not all(part.is_file() for part in parts):
        raise FileNotFoundError(
            f"{directory} holds no tokenizer: neither tokenizer.json nor vocab.json with merges.txt. "
            "Copy those of openai/clip-vit-base-patch32 there: OpenAI's and LAION's English models share "
            "them."
        )
    try:
        backend = _backend_class().from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of the tokenizers library, which has no type of its own for a damaged file
        raise ValueError(f"the tokenizer in {directory} cannot be read: {type(error).__name__}: {error}") from error
    return ClipTokenizer(backend, context_length)


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

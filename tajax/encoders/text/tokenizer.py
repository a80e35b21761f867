"""How a text becomes the tokens of a BERT: transformers' fast tokenizer, and what sentence-transformers does before it.

`transformers` is imported on first use, since that takes a second. Code that a tokenizer's directory may carry is never
run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from tajax.encoders.text.bert import Tokens
from tajax.models import files, layout
from tajax.types import Tokenization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["TextTokenizer", "has_tokenizer", "load_tokenizer", "padded"]

_WHOLE, _PARTS = layout.TOKENIZER_WHOLE, layout.WORD_PIECES
_PROBE = "A Photo\tof  Cafe\u0301 No. 12: it's \u65e5\u672c!?"  # letter case, spaces, accents, what is no letter
_MODEL_MAX = 10**9  # transformers writes 10**30 where no length is known


@dataclasses.dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer as values.

    Attributes:
        backend: Of transformers.
        max_length: Tokens that the encoder takes, special ones among them.
        prompt: What stands before each text.
        lower_case: Whether texts are lower-cased before the tokenizer's own normalisation.
    """

    backend: PreTrainedTokenizerFast
    max_length: int
    prompt: str = ""
    lower_case: bool = False

    def split(self, texts: Sequence[str]) -> list[Int[np.ndarray, " L"]]:
        """The ids of texts, int32, special tokens among them, of any length.

        Raises:
            TypeError: something that is not a text, or one text in place of several.
        """
        if isinstance(texts, str):
            raise TypeError(f"split needs a sequence of texts, got the single text {texts!r}.")
        texts = list(texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"split needs texts, got {type(text).__name__} {text!r} at position {i}.")
        if not texts:
            return []
        encoded = self.backend(
            [self.prompt + text for text in texts],
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # texts longer than the encoder takes are cut by whoever makes batches
        )
        return [np.asarray(ids, np.int32) for ids in encoded["input_ids"]]

    def tokenization(self) -> Tokenization:
        """What batches are made by."""
        return Tokenization(self.split, self.max_length, _ending(self.backend), self.facts())

    @property
    def pad_id(self) -> int:
        """What padding is filled with."""
        pad = self.backend.pad_token_id
        return 0 if pad is None else int(pad)

    def facts(self) -> dict[str, object]:
        """What ids depend on. The digest is of the tokenizer as `tokenizers` writes it, so a copy has the same."""
        return {
            "sha256": hashlib.sha256(_described(self.backend).encode()).hexdigest(),
            "max_length": self.max_length,
            "lower_case": self.lower_case,
            "prompt": self.prompt,
        }

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` with its configuration, and `vocab.txt` where it is of word pieces."""
        try:
            self.backend.save_pretrained(directory)
        except Exception as error:  # the tokenizers library raises nothing more precise where a disk is full
            raise OSError(f"the tokenizer cannot be written to {directory}: {error}") from error
        model = json.loads((directory / _WHOLE).read_text(encoding="utf-8"))["model"]
        if model.get("type") == "WordPiece" and sorted(model["vocab"].values()) == list(range(len(model["vocab"]))):
            words = sorted(model["vocab"], key=model["vocab"].__getitem__)
            (directory / _PARTS).write_text("".join(f"{word}\n" for word in words), encoding="utf-8")


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds the files of one."""
    return any(layout.is_there(directory / name) for name in (_WHOLE, _PARTS))


def load_tokenizer(
    directory: Path,
    *,
    vocab_size: int,
    positions: int,
    max_length: int | None = None,
    lower_case: bool = False,
    prompt: str = "",
) -> TextTokenizer:
    """The tokenizer saved in a directory as `tokenizer.json` or `vocab.txt`.

    Args:
        directory: A local directory; nothing is fetched, and no code in it is run.
        vocab_size: Rows of the token embedding.
        positions: Rows of the position embedding.
        max_length: Tokens that the encoder takes; None: what the tokenizer says, `positions` at most.
        lower_case: Lower-case texts first, as `do_lower_case` of `sentence_bert_config.json` has it.
        prompt: Goes before each text.

    Raises:
        FileNotFoundError: neither form is there.
        ValueError: a damaged file, a tokenizer with more ids than the embedding has rows, one whose files disagree, or
            a length that is more than `positions` or leaves no room for a token.
        TypeError: a length that is no number.
    """
    if not has_tokenizer(directory):
        raise FileNotFoundError(
            f"{directory} holds no tokenizer: neither {_WHOLE} nor {_PARTS}. Copy those of the model that the weights "
            "are of there."
        )
    for name in (_WHOLE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if layout.is_there(directory / name):
            files.read_json(directory / name)  # which names the file that is damaged; the library does not
    backend = _read(directory)
    highest = max(backend.get_vocab().values())
    if highest >= vocab_size:
        raise ValueError(
            f"the tokenizer in {directory} gives ids up to {highest}, but the token embedding has {vocab_size} rows. "
            "Take the tokenizer that belongs to these weights."
        )
    if layout.is_there(directory / _WHOLE):
        _check_same(backend, directory / _WHOLE)
    if lower_case:
        _lower(backend)
    if max_length is None:
        said: object = backend.model_max_length
        if isinstance(said, bool) or not isinstance(said, int | float):
            raise TypeError(f"{directory}: model_max_length of the tokenizer must be a number, got {said!r}.")
        max_length = int(min(said, positions)) if said < _MODEL_MAX else positions
    fewest = len(TextTokenizer(backend, 0, prompt).split(["a"])[0])
    if not fewest <= max_length <= positions:
        raise ValueError(
            f"{directory}: max_seq_length is {max_length}, but the encoder has {positions} positions, and a text of "
            f"one word takes {fewest} tokens."
        )
    backend.model_max_length = max_length
    return TextTokenizer(backend, max_length, prompt, lower_case)


def padded(tokenization: Tokenization, texts: Sequence[str], *, multiple: int = 16) -> Tokens:
    """Rows of texts, cut to the encoder's length and padded to a multiple of `multiple` columns, as NumPy arrays.

    Args:
        tokenization: Of the encoder.
        texts: M of them, at least one.
        multiple: So that texts of many lengths need few compiled programs.

    Returns:
        ids int32 and mask bool, both `[M, L]`.
    """
    most, ending = tokenization.max_length, tokenization.ending
    rows = [
        row if len(row) <= most else np.concatenate([row[: most - ending], row[len(row) - ending :]])
        for row in tokenization.split(texts)
    ]
    length = min(most, -(-max(map(len, rows)) // multiple) * multiple)
    ids = np.full((len(rows), length), 0, np.int32)
    mask = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return Tokens(ids, mask)  # type: ignore[arg-type]  # NumPy's, as batches on the host are


def _read(directory: Path) -> PreTrainedTokenizerFast:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # to install PyTorch, which tajax has no use for
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of the tokenizers library, which has no type of its own for a damaged file
        raise ValueError(f"the tokenizer in {directory} cannot be read: {type(error).__name__}: {error}") from error
    if not getattr(backend, "is_fast", False):
        raise ValueError(f"the tokenizer in {directory} is {type(backend).__name__}, none of the tokenizers library.")
    return backend  # type: ignore[return-value]  # which was just asked


def _check_same(backend: PreTrainedTokenizerFast, path: Path) -> None:
    """Raises `ValueError` if `tokenizer.json` splits or folds texts otherwise than what transformers made of all files.

    It takes the letter case and the accents from `tokenizer_config.json`, and earlier versions from `tokenizer.json`.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    own, ids = tokenizer.encode(_PROBE), backend(_PROBE, truncation=False, padding=False, verbose=False)["input_ids"]
    if own.ids != ids:
        raise ValueError(
            f"{path} and the files beside it disagree: by itself it makes {own.tokens} of {_PROBE!r}, with "
            f"tokenizer_config.json it is {backend.convert_ids_to_tokens(ids)}. Remove or mend the file that is wrong."
        )


def _lower(backend: PreTrainedTokenizerFast) -> None:
    """Lower-cases before the tokenizer's own normalisation, unless that does it already, as sentence-transformers."""
    from tokenizers.normalizers import Lowercase, Normalizer, Sequence

    own: Normalizer | None = backend.backend_tokenizer.normalizer
    described = json.loads(backend.backend_tokenizer.to_str())["normalizer"] or {}
    parts = described.get("normalizers", [described])
    if any(part.get("type") == "Lowercase" or part.get("lowercase") is True for part in parts):
        return
    backend.backend_tokenizer.normalizer = Sequence([Lowercase(), *([] if own is None else [own])])


def _described(backend: PreTrainedTokenizerFast) -> str:
    """All that ids depend on, without how rows were last cut and padded."""
    whole = json.loads(backend.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    return json.dumps(whole, sort_keys=True)


def _ending(backend: PreTrainedTokenizerFast) -> int:
    """How many special tokens stand behind each text."""
    whole, bare = (
        backend("a", add_special_tokens=special, truncation=False, padding=False, verbose=False)["input_ids"]
        for special in (True, False)
    )
    starts = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
    if len(starts) != 1:
        raise ValueError(f"the tokenizer makes {whole} of 'a', and {bare} without special tokens: which they are?")
    return len(whole) - len(bare) - starts[0]

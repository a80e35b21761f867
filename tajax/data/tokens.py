"""Texts as rows of tokens: made once, cut where they are too long, and padded to one of a few lengths."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int, Shaped

from tajax.data.sources import TextSource
from tajax.types import Tokenization

LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Lengths to which batches are padded, beside the longest that an encoder takes: a compilation each."""
PADDING = -1

# The tokens of each source that is still alive, uncut, by what makes them.
_split: weakref.WeakKeyDictionary[TextSource, list[tuple[Tokenization, Sequence[np.ndarray]]]] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Texts as ids of tokens, int32 [B, L], `PADDING` behind the last token of each; L is one of `LENGTHS`.

    The rows of a batch are as long as the longest text of the whole batch wants, whichever process makes them.

    Attributes:
        source: the texts.
        tokens: the ids of each, cut.
        max_length: of the encoder.
        by_length: a pass takes texts of similar length together, so that less is padded.
    """

    source: TextSource
    tokens: Sequence[Int[np.ndarray, " L"]] = field(repr=False)
    max_length: int
    by_length: bool
    copies: bool = True

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        return np.array([len(ids) for ids in self.tokens])

    @functools.cached_property
    def order(self) -> np.ndarray | None:
        """In which order a pass takes the texts."""
        return np.argsort(self._counts, kind="stable") if self.by_length else None

    @property
    def longest(self) -> int:
        """L of a batch that has the longest text in it."""
        return padded_length(int(self._counts.max(initial=1)), self.max_length)

    def rows(self, epoch: int, indices: np.ndarray, mine: slice) -> tuple[np.ndarray, np.ndarray]:
        """As in `Form`."""
        length = padded_length(int(self._counts[indices].max(initial=1)), self.max_length)
        ids = np.full((mine.stop - mine.start, length), PADDING, np.int32)
        label = np.zeros(len(ids), np.int32)
        for row, index in enumerate(indices[mine].tolist()):
            ids[row, : len(self.tokens[index])] = self.tokens[index]
        label[: len(indices[mine])] = self.source.labels[indices[mine]]
        return ids, label


def padded_length(count: int, max_length: int) -> int:
    """The shortest of `LENGTHS` that takes so many tokens, or the longest row that the encoder takes.

    Example:
        >>> [padded_length(count, 40) for count in (3, 17, 33)]
        [8, 24, 40]
    """
    return min(next(length for length in (*LENGTHS, max_length) if length >= count), max_length)


def token_rows(source: TextSource, tokenization: Tokenization, *, by_length: bool = False) -> TokenRows:
    """The rows of a source's texts, tokenised on first use."""
    ids = [cut(ids, tokenization) for ids in _tokens(source, tokenization)]
    return TokenRows(source, ids, tokenization.max_length, by_length)


def cut(ids: Int[np.ndarray, " L"], tokenization: Tokenization) -> Int[np.ndarray, " M"]:
    """The ids of a text that is too long without its last words; special tokens at its end stay.

    Example:
        >>> short = Tokenization(split=lambda texts: [], max_length=4, ending=1, facts={})
        >>> cut(np.array([101, 7, 8, 9, 102]), short)
        array([101,   7,   8, 102])
    """
    kept, ending = tokenization.max_length - tokenization.ending, tokenization.ending
    if len(ids) <= tokenization.max_length:
        return ids
    return np.concatenate([ids[:kept], ids[len(ids) - ending :]])


def count_cut(source: TextSource, tokenization: Tokenization) -> int:
    """How many texts are longer than the encoder takes."""
    return sum(len(ids) > tokenization.max_length for ids in _tokens(source, tokenization))


def join(*batches: Shaped[np.ndarray, "_ ..."]) -> Shaped[np.ndarray, "N ..."]:
    """Inputs of several batches as those of one; rows of tokens are padded to the longest of them.

    Example:
        >>> join(np.array([[1, 2]]), np.array([[3, 4, 5]]))
        array([[ 1,  2, -1],
               [ 3,  4,  5]])
    """
    if batches[0].ndim == 2:
        length = max(rows.shape[1] for rows in batches)
        batches = tuple(
            np.pad(rows, ((0, 0), (0, length - rows.shape[1])), constant_values=PADDING) for rows in batches
        )
    return np.concatenate(batches)


def _tokens(source: TextSource, tokenization: Tokenization) -> Sequence[np.ndarray]:
    known = _split.setdefault(source, [])
    for split_by, ids in known:
        if split_by.split is tokenization.split:
            return ids
    made = tokenization.split(source.texts)
    known.append((tokenization, made))
    return made

"""Scores of a linearised model as whole numbers, small enough for a page: predictions at any coefficients in a box.

At coefficients c class k of an image has the score z_k(c) = Σ_s c̃_s a_sk, c̃ = (1, c), with a = φ_s W from
`affine.affine_logits`; the norm that logits are divided by is the same for all classes and changes no prediction. Two
things make the scores small:

- a class that another one beats at every c of the box is left out, which changes nothing: k is beaten by j where
  (a_0k − a_0j) + Σ_t max(l (a_tk − a_tj), h (a_tk − a_tj)) < 0 for coefficients in [l, h];
- what is left is rounded to q = round((a_sk − m_s) / δ), 16-bit, with one unit δ for the image, and for each direction
  the middle m_s of its scores, which all classes share. Between two classes the error is at most δ (1 + ‖c‖₁).

So ẑ_k(c) = Σ_s c̃_s q_sk, in units of δ, needs neither δ nor m: its largest entry is the prediction. Source: ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int16, UInt16

from tajax import atomic, tensor_files

FORMAT = "tajax coded scores 1"
LARGEST = 2**15 - 1
"""The largest code; −LARGEST is the smallest."""
MOST_CLASSES = 2**16 - 1
BEATEN = -float(2**30)
"""In `dense`, the score at θ₀ of a class that is left out: below anything that codes come to."""
_SAMPLES = 64  # coefficients by which classes are ranked where not all that can win are kept


class CodedScores(NamedTuple):
    """The classes of N images that are kept, image after image, S in all."""

    codes: Int16[np.ndarray, "S T+1"]
    """q, of each class at θ₀ and along each of T vectors."""
    classes: UInt16[np.ndarray, " S"]
    """Which they are, ascending within an image."""
    counts: UInt16[np.ndarray, " N"]
    """How many an image has; none where a score is not finite, and then no prediction is right."""
    labels: UInt16[np.ndarray, " N"]
    """The classes of the images."""
    units: Float[np.ndarray, " N"]
    """δ of each image, in logits (times the norm of the features, where the head divides by it), float32."""
    complete: Bool[np.ndarray, " N"]
    """Whether every class that can win in the box is among those of the image."""


class About(NamedTuple):
    """What a file of codes is of.

    Attributes:
        task: whose images.
        directions: the tasks of the T vectors.
        bounds: l and h, of every coefficient.
        num_classes: K.
        changed: the share of predictions that the codes change, over random coefficients (`changed`).
    """

    task: str
    directions: tuple[str, ...]
    bounds: tuple[float, float]
    num_classes: int
    changed: float


def encode(
    scores: Float[np.ndarray, "N D K"], labels: Int[np.ndarray, " N"], *, bounds: tuple[float, float], most: int
) -> CodedScores:
    """The codes of some images.

    Args:
        scores: a at θ₀ and along T vectors, D = T + 1: `AffineLogits.scores` without padded classes.
        labels: in [0, K).
        bounds: l ≤ h, finite: the box of coefficients.
        most: how many classes an image may keep, at least 2. Of more that can win its label and those that come nearest
            to winning at some random coefficients of the box; `complete` is then False.

    Returns:
        The codes, and what is kept. An image takes K² (T+1) operations.

    Raises:
        ValueError: shapes that do not fit, labels out of range, too many classes, or bounds out of order.

    Example:
        >>> scores = np.array([[[2.0, 1.0, -9.0], [0.0, 2.0, 0.0]]])  # the third class never wins, the second beyond ½
        >>> coded = encode(scores, np.array([1]), bounds=(-1.0, 1.0), most=3)
        >>> coded.classes.tolist(), predictions(coded, np.array([[0.4], [0.6]])).tolist()
        ([0, 1], [[0], [1]])
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    _check(scores, labels, bounds, most)
    low, high = bounds
    samples = np.random.default_rng(0).uniform(low, high, (_SAMPLES, scores.shape[1] - 1))
    extended = np.concatenate([np.ones((_SAMPLES, 1)), samples], axis=1)
    codes, classes, units, complete = [], [], [], []
    for image, label in zip(scores, labels, strict=True):
        finite = bool(np.isfinite(image).all())
        kept = _can_win(image, bounds) if finite else np.zeros(0, np.int64)
        complete.append(len(kept) <= most)
        if len(kept) > most:
            kept = _nearest(extended @ image, kept, int(label), most)
        of_kept, unit = image[:, kept], 1.0
        if finite:
            of_kept = of_kept - (of_kept.max(axis=1, keepdims=True) + of_kept.min(axis=1, keepdims=True)) / 2
            unit = float(np.abs(of_kept).max()) / LARGEST or 1.0  # of a single class all are 0
        codes.append(np.rint(of_kept / unit).astype(np.int16).T)
        units.append(unit)
        classes.append(kept.astype(np.uint16))
    return CodedScores(
        codes=np.concatenate(codes),
        classes=np.concatenate(classes),
        counts=np.array(list(map(len, classes)), np.uint16),
        labels=labels.astype(np.uint16),
        units=np.array(units, np.float32),
        complete=np.array(complete),
    )


def predictions(coded: CodedScores, coefs: Float[np.ndarray, "G T"]) -> Int[np.ndarray, "G N"]:
    """The class with the largest ẑ at G choices of coefficients, of equal ones the first; −1 for an image without any.

    Sums go from θ₀ through the vectors in order, in float64: whoever adds the same way has the same bits.

    Raises:
        ValueError: `coefs` does not have a column for each vector.
    """
    coefs = np.asarray(coefs, np.float64)
    vectors = coded.codes.shape[1] - 1
    if coefs.ndim != 2 or coefs.shape[1] != vectors:
        raise ValueError(f"coefs has shape {coefs.shape}, want [G, {vectors}]: a number for each of {vectors} vectors")
    found = np.full((len(coefs), len(coded.counts)), -1)
    there = np.flatnonzero(coded.counts)
    if not len(there):
        return found
    counts = coded.counts[there].astype(np.int64)
    starts = np.cumsum(counts) - counts
    codes = coded.codes.astype(np.float64)
    for row, chosen in zip(found, coefs, strict=True):
        scores = codes[:, 0].copy()
        for along, coef in zip(codes[:, 1:].T, chosen, strict=True):
            scores += coef * along
        best = np.repeat(np.maximum.reduceat(scores, starts), counts)
        place = np.where(scores == best, np.arange(len(scores)), len(scores))
        row[there] = coded.classes[np.minimum.reduceat(place, starts)]
    return found


def correct(coded: CodedScores, coefs: Float[np.ndarray, "G T"]) -> Bool[np.ndarray, "G N"]:
    """Whether the prediction is the label, at each choice of coefficients for each image."""
    return predictions(coded, coefs) == coded.labels


def draws(bounds: tuple[float, float], vectors: int, count: int = 256) -> Float[np.ndarray, "G T"]:
    """Random coefficients for `changed`, the same every time: half of them in the box, half in its part above zero."""
    low, high = bounds
    unit = np.random.default_rng(1).uniform(size=(count, vectors))
    begin = np.where(np.arange(count) % 2, low, max(low, 0.0))[:, None]
    return begin + (high - begin) * unit


def changed(scores: Float[np.ndarray, "N T+1 K"], coded: CodedScores, coefs: Float[np.ndarray, "G T"]) -> float:
    """The share of images, over G choices of coefficients, whose prediction is another one with the codes.

    Args:
        scores: what the codes were made of.
        coded: of `encode`.
        coefs: for example of `draws`.
    """
    extended = np.concatenate([np.ones((len(coefs), 1)), coefs], axis=1)
    finite = np.isfinite(scores).all(axis=(1, 2))
    whole = [(extended @ image.astype(np.float64)).argmax(axis=1) for image in scores[finite]]
    if not whole:
        return 0.0
    there = predictions(coded, coefs)[:, finite]
    return float((there != np.stack(whole, axis=1)).sum() / (len(coefs) * len(scores)))


def dense(coded: CodedScores, num_classes: int) -> Float[np.ndarray, "N D K"]:
    """The codes as scores of all K classes along D = T + 1 directions, float32, in units of δ.

    A class that is left out has the score `BEATEN` at θ₀ and 0 along the vectors; the label of an image without any
    class has less, so that it is never predicted.
    """
    images = len(coded.counts)
    scores = np.zeros((images, coded.codes.shape[1], num_classes), np.float32)
    scores[:, 0] = BEATEN
    empty = np.flatnonzero(coded.counts == 0)
    scores[empty, 0, coded.labels[empty]] = 2 * BEATEN
    scores[np.repeat(np.arange(images), coded.counts), :, coded.classes] = coded.codes
    return scores


def write(path: str | Path, coded: CodedScores, about: About) -> None:
    """Writes a safetensors file, whole or not at all, with `About` in its metadata.

    Raises:
        OSError: it cannot be written.
    """
    metadata = {"format": FORMAT, "about": json.dumps(about._asdict(), ensure_ascii=False)}
    atomic.write(path, b"".join(tensor_files.parts(coded._asdict(), metadata)))


def read(path: str | Path) -> tuple[CodedScores, About]:
    """A file of `write`, read with suspicion: what its tensors and metadata say fits together.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no file of `write`. The message names it.
    """
    tensors, metadata = tensor_files.read(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} holds no coded scores: its format is {metadata.get('format')!r}, want {FORMAT!r}.")
    try:
        coded = CodedScores(**tensors)
        fields = json.loads(metadata["about"])
        about = About(
            str(fields["task"]),
            tuple(map(str, fields["directions"])),
            (float(fields["bounds"][0]), float(fields["bounds"][1])),
            int(fields["num_classes"]),
            float(fields["changed"]),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
    if wrong := _inconsistent(coded, about):
        raise ValueError(f"{path} is damaged: {wrong}.")
    return coded, about


_DTYPES = tuple(map(np.dtype, ("int16", "uint16", "uint16", "uint16", "float32", "bool")))  # of each field


def _inconsistent(coded: CodedScores, about: About) -> str:
    """What of the tensors contradicts the rest; empty if nothing does."""
    for name, tensor, dtype in zip(coded._fields, coded, _DTYPES, strict=True):
        if tensor.dtype != dtype or tensor.ndim != 1 + (name == "codes"):
            return f"{name} is {tensor.dtype}{list(tensor.shape)}"
    images, entries = len(coded.counts), int(coded.counts.sum(dtype=np.int64))
    if not images or len(coded.labels) != images or len(coded.units) != images or len(coded.complete) != images:
        return f"it has {images} images, {len(coded.labels)} labels, {len(coded.units)} units"
    if len(coded.codes) != entries or len(coded.classes) != entries:
        return f"{entries} classes are counted, but there are {len(coded.codes)} rows of codes"
    if coded.codes.shape[1] != 1 + len(about.directions):
        return f"{coded.codes.shape[1]} columns of codes, but {len(about.directions)} directions"
    if max(coded.labels.max(initial=0), coded.classes.max(initial=0)) >= about.num_classes:
        return f"a class is not below {about.num_classes}"
    low, high = about.bounds
    if not (np.isfinite(about.bounds).all() and low <= high and 0 <= about.changed <= 1):
        return f"bounds {about.bounds}, share of changes {about.changed}"
    return ""


def _check(scores: np.ndarray, labels: np.ndarray, bounds: Sequence[float], most: int) -> None:
    if scores.ndim != 3 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(f"scores {scores.shape} and labels {labels.shape}, want [N, T+1, K] and [N], N at least 1")
    classes = scores.shape[2]
    if classes > MOST_CLASSES or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} of {classes} classes; at most {MOST_CLASSES}")
    if not bounds[0] <= bounds[1] or not np.isfinite(bounds).all() or most < 2:
        raise ValueError(f"bounds is {bounds}, want two finite numbers in order; most is {most}, want 2 or more")
    if LARGEST * (1 + (scores.shape[1] - 1) * max(map(abs, bounds))) >= -BEATEN:  # of a class that is left out
        raise ValueError(f"bounds is {bounds}: sums of codes of {scores.shape[1] - 1} vectors go beyond what they hold")


def _can_win(image: Float[np.ndarray, "D K"], bounds: tuple[float, float]) -> np.ndarray:
    """The classes that no single other one beats everywhere in the box, ascending."""
    low, high = bounds
    lead = image[0, :, None] - image[0, None, :]  # of the class of the row over that of the column, at best
    for along in image[1:]:
        gap = along[:, None] - along[None, :]
        lead += np.maximum(low * gap, high * gap)
    return np.flatnonzero((lead >= 0).all(axis=1))


def _nearest(at: Float[np.ndarray, "G K"], kept: np.ndarray, label: int, most: int) -> np.ndarray:
    """Of the classes that can win the label and those that come nearest to it at some of G choices, ascending."""
    behind = (at.max(axis=1, keepdims=True) - at[:, kept]).min(axis=0)
    behind[kept == label] = -1.0
    return np.sort(kept[np.argsort(behind, kind="stable")[:most]])

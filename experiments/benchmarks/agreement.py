"""Do both sides predict the same class for every image at every coefficient, and if not, was it a tie?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tajax.affine import logits_at
from tajax.evaluate import affine_split, make_affine_step
from tajax.losses import head_logits
from tajax.task_vectors import apply_task_vector, combine
from tajax.types import ApplyFn, Batch, Head, Params

TIE = 1e-4  # gap between the two largest logits, relative to the largest in size, below which rounding may decide


def compare(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, *, counted: np.ndarray) -> dict:
    """Counts over all pairs of a coefficient and an image.

    Args:
        ours: logits [G, N, K].
        theirs: logits [G, N, K] of the reference.
        labels: [N].
        counted: right predictions [G] in the tally of the sweep that was timed.

    Returns:
        `pairs`; `differing`, those that are right on one side alone; `differing_without_tie`, those of them whose
        margin in the reference exceeds `TIE`; `predictions_that_change`, images whose class is not the same at all
        coefficients (were it 0, agreement would say little); `largest_gap` of logits, relative to the largest of the
        row; `counted_otherwise`, pairs by which the timed sweep's counts differ from those of the logits given here.
    """
    wrong = (ours.argmax(-1) == labels) != (theirs.argmax(-1) == labels)
    size = np.abs(theirs).max(-1)
    top = np.sort(theirs, axis=-1)
    margin = (top[..., -1] - top[..., -2]) / size
    return {
        "pairs": wrong.size,
        "differing": int(wrong.sum()),
        "differing_without_tie": int((wrong & (margin > TIE)).sum()),
        "predictions_that_change": int((theirs.argmax(-1) != theirs.argmax(-1)[:1]).any(axis=0).sum()),
        "largest_gap": float((np.abs(ours - theirs).max(-1) / size).max()),
        "counted_otherwise": int(np.abs((ours.argmax(-1) == labels).sum(-1) - np.asarray(counted)).sum()),
    }


def linear_logits(
    encode: ApplyFn,
    pretrained: Params,
    taus: Sequence[Params],
    coefs: np.ndarray,
    head: Head,
    batches: Iterable[Batch],
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [G, N, K] of tajax's linearised model at every row of coefficients, and the labels [N]."""
    split = affine_split(make_affine_step(encode), pretrained, taus, head, batches)
    return np.stack([logits_at(split.rows, coef) for coef in coefs]), split.labels


def nonlinear_logits(
    encode: ApplyFn,
    pretrained: Params,
    taus: Sequence[Params],
    coefs: np.ndarray,
    head: Head,
    batches: Iterable[Batch],
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [G, N, K] of the edited model itself, and the labels [N]: what a sweep sums, image by image."""

    @jax.jit
    def logits(pretrained, taus, coef, images):
        return head_logits(encode(apply_task_vector(pretrained, combine(taus, coef)), images), head)

    coefs = jnp.asarray(coefs, jnp.float32)
    rows = [
        np.stack([logits(pretrained, taus, coef, batch.inputs) for coef in coefs])[:, batch.mask] for batch in batches
    ]
    return np.concatenate(rows, axis=1), np.concatenate([batch.label[batch.mask] for batch in batches])

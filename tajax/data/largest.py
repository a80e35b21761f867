"""The shape of the largest batch that training sees, before it has seen any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from tajax.data.sources import TextSource
from tajax.data.tasks import Task
from tajax.data.tokens import PADDING, token_rows
from tajax.types import Batch, InputSpec, Tokenization


def largest_batch(
    tasks: Sequence[Task], split: str, *, batch_size: int, preprocessing: InputSpec, share: tuple[int, int] = (0, 1)
) -> Batch:
    """A batch of padding, as large as the largest that `load` makes of a split of any of some tasks.

    Args:
        tasks: at least one, of what the model takes.
        split: "train", "val" or "test".
        batch_size: B, of all processes together.
        preprocessing: what the model takes, `encoder.inputs`. Rows of texts are as long as the longest text wants.
        share: (i, n), the i-th of n equal parts of a batch.

    Returns:
        NumPy leaves of B/n rows, all of them with a mask of False.
    """
    rows = batch_size // share[1]
    inputs: Any
    if isinstance(preprocessing, Tokenization):
        sources = [cast(TextSource, task.split(split)) for task in tasks]
        length = max(token_rows(source, preprocessing).longest for source in sources)
        inputs = np.full((rows, length), PADDING, np.int32)
    else:
        inputs = np.zeros((rows, preprocessing.size, preprocessing.size, 3), np.uint8)
    label: Any = np.zeros(rows, np.int32)
    mask: Any = np.zeros(rows, bool)
    return Batch(inputs, label, mask)

"""What is recorded, shown elsewhere: TensorBoard's event files in the workdir, and Weights & Biases if it is asked for.

A tracker is called with each record after it has been written to `results.jsonl`. It keeps nothing that the records
do not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tajax.results import Record
from tajax.tracking import weights_and_biases
from tajax.tracking.points import Point, Translation
from tajax.tracking.tensorboard import TensorBoard
from tajax.tracking.weights_and_biases import WeightsAndBiases

__all__ = ["CONTENTS", "Point", "TensorBoard", "Tracker", "Translation", "WeightsAndBiases", "check", "trackers"]

CONTENTS = ("tensorboard", "wandb", weights_and_biases.KEPT)
"""What trackers leave in a workdir."""


class Tracker(Protocol):
    """Is called with each record of a run, and closed when it ends."""

    def __call__(self, record: Record) -> None:
        """Shows what it says."""

    def close(self) -> None:
        """Keeps what is left."""


def check(wandb: str | None) -> None:
    """Raises ValueError if a project of Weights & Biases is named and cannot be reached from here."""
    if wandb is not None:
        weights_and_biases.check(wandb)


def trackers(
    workdir: Path,
    records: Sequence[Record],
    *,
    tensorboard: bool,
    wandb: str | None,
    images: Mapping[str, int],
    config: Mapping[str, object],
) -> list[Tracker]:
    """The trackers of a run, knowing what was recorded so far.

    Args:
        workdir: of the run.
        records: all that it has.
        tensorboard: whether to keep event files in `workdir/tensorboard`.
        wandb: a project of Weights & Biases, or None.
        images: images of a step, by stage.
        config: fields by name.

    Raises:
        ValueError: from `check`.
        OSError: the disk is full.
    """
    found: list[Tracker] = []
    if tensorboard:
        text = json.dumps(config, indent=1, default=str)
        found.append(TensorBoard(workdir / "tensorboard", records, translate=Translation(images), config=text))
    if wandb is not None:
        found.append(WeightsAndBiases(wandb, workdir, records, translate=Translation(images), config=config))
    return found

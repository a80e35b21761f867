"""What a run on tasks is, once everything that it was given has been opened and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from tajax import data, processes, progress
from tajax.config import Regime
from tajax.encoders.encoder import Encoder
from tajax.parallel import Placement
from tajax.types import Batch, Mask, Params
from tajax.workflows.journal import Journal


@dataclass(frozen=True)
class Setup:
    """A pre-trained model, the tasks to edit it with, and where results go.

    Attributes:
        config: the validated config.
        workdir: directory of the run.
        encoder: the pre-trained model.
        tasks: the opened tasks.
        controls: the control task, which is not one of `tasks`, where the workflow takes one.
        regime: what is trained and what is linearised.
        mask: the leaves and layers of the encoder that are trained.
        placement: where arrays live, on the devices of all processes.
        journal: the record of the run.
        imported: the task vectors of `config.checkpoints`, by task; empty where none are named.
    """

    config: ConfigDict
    workdir: Path
    encoder: Encoder
    tasks: tuple[data.Task, ...]
    controls: tuple[data.Task, ...]
    regime: Regime
    mask: Mask
    placement: Placement
    journal: Journal
    imported: Mapping[str, Params]

    @property
    def pretrained(self) -> Params:
        """θ₀, the parameters of the pre-trained encoder."""
        return self.encoder.params

    def batches(self, task: data.Task, split: str, *, by_length: bool = True) -> Iterable[Batch]:
        """Every example of a split once, in padded batches; of several processes each has its rows.

        Images come in order; texts by their length, which pads less, or in order without `by_length`.
        """
        batches = data.load(
            task,
            split,
            batch_size=self.config.evaluate.batch_size,
            preprocessing=self.encoder.inputs,
            workers=self.config.data_workers,
            share=processes.share(),
            by_length=by_length,
        )
        return progress.counted(batches, self.config.evaluate.batch_size)

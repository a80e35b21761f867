"""What every task-arithmetic workflow starts from: the model, the tasks, their heads, and the record it keeps."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
from ml_collections import ConfigDict

from tajax import data, evaluate, metrics, processes, progress
from tajax.config import Regime
from tajax.encoders.encoder import Encoder
from tajax.parallel import Placement
from tajax.results import Record
from tajax.types import Batch, Head, Mask, Params
from tajax.workflows.journal import Journal

SPLITS = ("val", "test")


@dataclass(frozen=True)
class Experiment:
    """A pre-trained model, the tasks to edit it with, and where results go.

    Attributes:
        config: the validated config.
        workdir: directory of the run.
        encoder: the pre-trained model.
        tasks: the opened tasks.
        heads: a frozen head for each task name, all padded to the same number of classes.
        regime: what is trained and what is linearised.
        mask: the leaves and layers of the encoder that are trained.
        placement: where arrays live, on the devices of all processes.
        journal: the record of the run.
        imported: the task vectors of `config.checkpoints`, by task; None where there are none.
        controls: the control task, which is not one of `tasks`, where the workflow takes one.
    """

    config: ConfigDict
    workdir: Path
    encoder: Encoder
    tasks: tuple[data.Task, ...]
    heads: dict[str, Head]
    regime: Regime
    mask: Mask
    placement: Placement
    journal: Journal
    imported: dict[str, Params] | None = None
    controls: tuple[data.Task, ...] = ()

    @property
    def pretrained(self) -> Params:
        """θ₀, the parameters of the pre-trained encoder."""
        return self.encoder.params

    def batches(self, task: data.Task, split: str) -> Iterable[Batch]:
        """Every image of a split once, in order, in padded batches; of several processes each has its rows."""
        batches = data.load(
            task,
            split,
            batch_size=self.config.evaluate.batch_size,
            preprocessing=self.encoder.inputs,
            workers=self.config.data_workers,
            share=processes.share(),
        )
        return progress.counted(batches, self.config.evaluate.batch_size)

    def find(self, stage: str, **fields: object) -> list[Record]:
        """Records of this run and of a stage with these fields."""
        return self.journal.find(stage, **fields)

    def record(self, stage: str, **fields: object) -> None:
        """Appends a record to `results.jsonl`, with what says where it came from."""
        self.journal.record(stage, **fields)

    def measure(
        self,
        stage: str,
        measure: Callable[[data.Task, str], Mapping[str, float]],
        *,
        doubts: Callable[[data.Task, str, float], Mapping[str, object]] = lambda task, split, top1: {},
        more: Mapping[str, int] = MappingProxyType({}),
        note: str = "",
    ) -> None:
        """Records `measure(task, split)` under a stage, for every task and split that has no such record yet.

        Args:
            stage: of the records.
            measure: gives what is recorded, `top1` among it.
            doubts: more fields of a record, for the `top1` of a task and split.
            more: images that are looked at beside those of the split, by "task split".
            note: said of the stage when it is done, before the mean accuracy.
        """

        def named(pair: tuple[data.Task, str]) -> str:
            return f"{pair[0].name} {pair[1]}"

        def mean() -> str:
            reached = [record["top1"] for record in self.find(stage=stage, split="test")]
            return f"{note}mean test top1 {statistics.fmean(reached):.3f}"

        for (task, split), (key,) in self.journal.each(
            stage,
            itertools.product(self.tasks, SPLITS),
            lambda pair: {"task": pair[0].name, "split": pair[1]},
            units=lambda pair: len(pair[0].split(pair[1])) + more.get(named(pair), 0),
            name=named,
            note=mean,
        ):
            measured = measure(task, split)
            self.record(stage, **key, **measured, **doubts(task, split, measured["top1"]))
            progress.note({"top1": measured["top1"]})

    @functools.cached_property
    def features_step(self) -> Callable[[Params, Batch], jax.Array]:
        """`(parameters, batch of `Placement.shares`) -> features [B, E]`, compiled once for all tasks."""
        return self.placement.rows(lambda params, batch: self.encoder.apply(params, batch.inputs))

    @functools.cached_property
    def sweep_steps(self) -> dict[bool, evaluate.SweepStep]:
        """The steps of ordinary and of linearised evaluation, each compiled once for all stages."""
        return {
            linearized: evaluate.make_sweep_step(encode, linearized=linearized, placement=self.placement)
            for linearized, encode in ((False, self.encoder.apply), (True, self.encoder.apply_for_responses))
        }

    def evaluate(
        self, step: evaluate.SweepStep, task: data.Task, split: str, taus: tuple[Params, ...], coefs: Iterable
    ) -> list[dict[str, float]]:
        """`top1`, `loss` and `count` on a split at each row of coefficients."""
        constants = self.pretrained, taus, np.asarray(coefs), self.heads[task.name]
        tallies = evaluate.sweep(step, *constants, self.batches(task, split), placement=self.placement)
        return metrics.compute_each(tallies)

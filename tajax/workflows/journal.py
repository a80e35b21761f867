"""The records of a run, each with what says where it came from, and one for each process that added any.

A workflow records the numbers of an item, such as a task, when it has them, and asks before each item what is recorded
already: `Journal.each` is that loop, so that a run that goes on does what is left.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from ml_collections import ConfigDict

from tajax import data, interrupts, processes, progress, results, tracking
from tajax.config import flatten
from tajax.metrics import Means
from tajax.records import Accuracy, Run, Training, stage_of
from tajax.results import R, Record
from tajax.workflows.stages import stages
from tajax.workflows.workdir import at_end, kept_config

Item = TypeVar("Item")
Fields = ParamSpec("Fields")

SPLITS = ("val", "test")


@dataclass
class Journal:
    """Appends to the `results.jsonl` of a run.

    Before a process adds its first record it adds one of the stage `run`: versions, devices, revision, time of day.
    What follows in the file, up to the next of its kind, was made by that process. The file is read once, when that
    process begins. Of several processes the first one writes; all keep in memory what it writes, for they come to the
    same numbers.

    Attributes:
        path: of the file.
        origin: fields of every record, `config_hash` among them.
        facts: more fields of the `run` record.
        started: when the process began, seconds of `time.monotonic`.
        introduced: whether this process has added its record.
        trackers: are told of each record once it is in the file.
        records: those of the file, and since then what was added to it.
        known: of these, those of this run's config, by stage.
    """

    path: Path
    origin: Record
    facts: Record = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    introduced: bool = False
    trackers: list[tracking.Tracker] = field(default_factory=list)
    records: list[Record] = field(init=False)
    known: dict[str, list[Any]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """The records so far; raises `ValueError` if the file is damaged."""
        self.records = processes.broadcast_json(lambda: results.read(self.path))
        for record in results.find(self.records, config_hash=self.origin["config_hash"]):
            self.known.setdefault(str(record.get("stage")), []).append(record)

    def find(self, kind: type[R], /, **fields: object) -> list[R]:
        """Records of this run's config and of a type with these fields."""
        return results.find(self.known.get(stage_of(kind), ()), **fields)

    def missing(self, kind: type, key: Record) -> list[Record]:
        """The records of a type that are still to be made: their keys, of which a tuple in `key` has several."""
        values = itertools.product(*(value if isinstance(value, tuple) else (value,) for value in key.values()))
        keys = (dict(zip(key, each, strict=True)) for each in values)
        return [one for one in keys if not self.find(kind, **one)]

    def each(
        self,
        kind: type,
        items: Iterable[Item],
        key: Callable[[Item], Record],
        *,
        units: Callable[[Item], float] = lambda item: 1,
        name: Callable[[Item], str] = attrgetter("name"),
        note: Callable[[], str] = lambda: "",
    ) -> Iterator[tuple[Item, list[Record]]]:
        """A stage of the run: each item with the keys that have no record yet, which the caller makes.

            grid = (0.0, 0.5, 1.0)
            for task, missing in journal.each(Sweep, tasks, lambda task: {"task": task.name, "scaling_coef": grid}):
                top1 = measure(task)
                for one in missing:
                    journal.record(Sweep, **one, top1=top1[one["scaling_coef"]])

        Args:
            kind: of the records; the stage of the progress has their name.
            items: what is worked on, one after the other.
            key: of an item, the fields by which its record is known; a tuple has a record for each of its values.
            units: how much work an item is: images, for example.
            name: of an item, as it is shown.
            note: the key number of the stage, when all is recorded.
        """
        every = {name(item): (item, self.missing(kind, key(item))) for item in items}
        sizes = {named: units(item) for named, (item, _) in every.items()}
        left = [named for named, (_, missing) in every.items() if missing]
        with progress.stage(stage_of(kind), sizes, done=every.keys() - left) as running:
            for named in running.each(left, str):
                yield every[named]
            running.note(note())

    def record(self, kind: Callable[Fields, object], /, *_: Fields.args, **fields: Fields.kwargs) -> None:
        """Appends a record of a type; if the process has been asked to end, it ends instead, with nothing half done."""
        interrupts.check()
        if not self.introduced:
            self._append(stage_of(Run), {**self.facts, **results.provenance()})
            self.introduced = True
        self._append(stage_of(kind), fields)

    def track(self, config: ConfigDict) -> None:
        """From now on what is recorded is shown by TensorBoard and whatever else `config.track` names.

        Raises:
            ValueError: what `config.track.wandb` names cannot be reached.
        """
        if processes.is_first():
            self.trackers = tracking.trackers(
                self.path.parent,
                self.records,
                **config.track,
                images={stage.name: stage.images for stage in stages(config) if stage.images},
                config=flatten(kept_config(self.path.parent)),
            )
            for tracker in self.trackers:
                at_end(tracker.close)

    def _append(self, stage: str, fields: Mapping[str, object]) -> None:
        elapsed = {"elapsed_seconds": round(time.monotonic() - self.started, 1)}
        record = results.as_read({"stage": stage, **fields, **self.origin, **elapsed})
        if processes.is_first():
            results.append(self.path, record)
            for tracker in self.trackers:
                tracker(record)
        self.records.append(record)
        self.known.setdefault(stage, []).append(record)


def means_of(record: Accuracy) -> Means:
    """What evaluation gave when the record was made."""
    return {"top1": record["top1"], "loss": record["loss"], "count": record["count"]}


def measure_splits(
    journal: Journal,
    kind: type[Accuracy],
    tasks: Sequence[data.Task],
    measure: Callable[[data.Task, str], Mapping[str, Any]],
    *,
    doubts: Callable[[data.Task, str, float], Mapping[str, Any]] = lambda task, split, top1: {},
    more: Mapping[str, int] = MappingProxyType({}),
    note: str = "",
) -> None:
    """Records `measure(task, split)` as a record of a type, for every task and split that has no such record yet.

    Args:
        journal: of the run.
        kind: of the records.
        tasks: which are measured, on validation and test.
        measure: gives what is recorded, `top1` among it.
        doubts: more fields of a record, for the `top1` of a task and split.
        more: images that are looked at beside those of the split, by "task split".
        note: said of the stage when it is done, before the mean accuracy.
    """

    def named(pair: tuple[data.Task, str]) -> str:
        return f"{pair[0].name} {pair[1]}"

    def mean() -> str:
        reached = [record["top1"] for record in journal.find(kind, split="test")]
        return f"{note}mean test top1 {statistics.fmean(reached):.3f}"

    for (task, split), (key,) in journal.each(
        kind,
        itertools.product(tasks, SPLITS),
        lambda pair: {"task": pair[0].name, "split": pair[1]},
        units=lambda pair: len(pair[0].split(pair[1])) + more.get(named(pair), 0),
        name=named,
        note=mean,
    ):
        measured = measure(task, split)
        journal.record(kind, **key, **measured, **doubts(task, split, measured["top1"]))
        progress.note({"top1": measured["top1"]})


def training_log(
    journal: Journal, kind: type[Training], schedule: Callable[[int], Any], **key: object
) -> Callable[[int, Record], None]:
    """The `on_log` of a training: shows its means, and records them under `key` where that is not done yet.

    It is done where a process was killed after it, and before its next checkpoint.
    """
    recorded = {record["step"] for record in journal.find(kind, **key)}

    def on_log(done: int, means: Record) -> None:
        progress.update(done, means)
        if done not in recorded:
            journal.record(kind, **key, step=done, learning_rate=float(schedule(done)), **means)

    return on_log

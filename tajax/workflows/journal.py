"""The records of a run, each with what says where it came from, and one for each process that added any."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from tajax import interrupts, processes, results, tracking
from tajax.config import flatten
from tajax.results import Record
from tajax.workflows.stages import stages
from tajax.workflows.workdir import at_end, kept_config


@dataclass
class Journal:
    """Appends to the `results.jsonl` of a run.

    Before a process adds its first record it adds one of the stage `run`: versions, devices, revision, time of day.
    What follows in the file, up to the next of its kind, was made by that process. Of several processes the first one
    writes; the others keep in memory what it writes, for all of them come to the same numbers.

    Attributes:
        path: of the file.
        origin: fields of every record, `config_hash` among them.
        facts: more fields of the `run` record.
        started: when the process began, seconds of `time.monotonic`.
        introduced: whether this process has added its record.
        known: the records as the processes know them that do not read the file.
        trackers: are told of each record once it is in the file.
    """

    path: Path
    origin: Record
    facts: Record = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    introduced: bool = False
    known: list[Record] = field(default_factory=list)
    trackers: list[tracking.Tracker] = field(default_factory=list)

    def __post_init__(self) -> None:
        """The records so far, where another process reads and writes the file."""
        if processes.joined():
            self.known = processes.agree(lambda: results.read(self.path))

    def find(self, **fields: object) -> list[Record]:
        """Records of this run's config with these fields."""
        records = results.read(self.path) if processes.is_first() else self.known
        return results.find(records, config_hash=self.origin["config_hash"], **fields)

    def record(self, stage: str, **fields: object) -> None:
        """Appends a record; if the process has been asked to end, it ends instead, with nothing half done."""
        interrupts.check()
        if not self.introduced:
            self._append("run", {**self.facts, **results.provenance()})
            self.introduced = True
        self._append(stage, fields)

    def track(self, config: ConfigDict) -> None:
        """From now on what is recorded is shown by TensorBoard and whatever else `config.track` names.

        Raises:
            ValueError: what `config.track.wandb` names cannot be reached.
        """
        if processes.is_first():
            self.trackers = tracking.trackers(
                self.path.parent,
                results.read(self.path),
                **config.track,
                images={stage.name: stage.images for stage in stages(config) if stage.images},
                config=flatten(kept_config(self.path.parent)),
            )
            for tracker in self.trackers:
                at_end(tracker.close)

    def _append(self, stage: str, fields: Mapping[str, object]) -> None:
        elapsed = {"elapsed_seconds": round(time.monotonic() - self.started, 1)}
        record = {"stage": stage, **fields, **self.origin, **elapsed}
        if processes.is_first():
            results.append(self.path, record)
            for tracker in self.trackers:
                tracker(results.as_read(record))
        else:
            self.known.append(results.as_read(record))

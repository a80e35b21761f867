"""Event files for TensorBoard: `tensorboard --logdir WORKDIR/tensorboard`, also while the run goes on.

The files are a function of the records of the run, byte by byte, with one directory for each task, so that the curves
of all tasks share a chart. A process that goes on with a run first makes them what they were to be, and then adds to
them: no point is written twice and none is lost, whatever killed the process before it.

The protocol buffers and checksums come from tensorboardX, which asks for NumPy and Protobuf alone. The writer of
TensorBoard's own package works without TensorFlow as well, but brings a web server, gRPC and Markdown with it; and both
writers hand events to a thread, where an error of a full disk is lost, under a name that is new in each process.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tajax.results import Record
from tajax.tracking.points import Point, Translation, whose

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

FILE = "events.out.tfevents.tajax"  # TensorBoard reads every file with `tfevents` in its name
_CONFIG = "config"


class TensorBoard:
    """Keeps the event files of a run; called with each record.

    Args:
        directory: for the files.
        records: those of earlier processes.
        translate: from records to points; knows none yet.
        config: shown as text, beside the curves.

    Raises:
        OSError: the disk is full, or the directory cannot be written to.
    """

    def __init__(self, directory: Path, records: Iterable[Record], *, translate: Translation, config: str):
        self.directory, self.translate, self.config = directory, translate, config
        self.begun: set[str] = set()
        expected: dict[str, bytes] = {}
        for record in records:
            for run, events in self._events(record):
                expected[run] = expected.get(run, b"") + events
        for run, events in expected.items():
            _make(self.directory / run / FILE, events)

    def __call__(self, record: Record) -> None:
        """Adds what a record says."""
        for run, events in self._events(record):
            _append(self.directory / run / FILE, events)

    def close(self) -> None:
        """Nothing is left to be done."""

    def _events(self, record: Record) -> Iterator[tuple[str, bytes]]:
        points = self.translate(record)
        if record.get("stage") == "run" and _CONFIG not in self.begun:
            self.begun.add(_CONFIG)
            time = self.translate.clock_began
            yield _CONFIG, _header(time) + _text("config", self.config, time)
        if points:
            run, header = whose(record), b""
            if run not in self.begun:
                self.begun.add(run)
                header = _header(points[0].time)
            yield run, header + _scalars(points)


def _scalars(points: list[Point]) -> bytes:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=f"{point.stage}/{point.name}", simple_value=point.value) for point in points]
    return _framed(Event(wall_time=points[0].time, step=points[0].step, summary=Summary(value=values)))


def _header(time: float) -> bytes:
    from tensorboardX.proto.event_pb2 import Event

    return _framed(Event(wall_time=time, file_version="brain.Event:2"))


def _text(tag: str, text: str, time: float) -> bytes:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import text as summary

    return _framed(Event(wall_time=time, summary=summary(tag, f"```\n{text}\n```")))


def _framed(event: Event) -> bytes:
    """An event as a record of a TFRecord file."""
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString(deterministic=True)
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))


def _make(path: Path, events: bytes) -> None:
    """Makes the file hold these events, in place: a TensorBoard that reads it goes on reading."""
    found = path.read_bytes() if path.exists() else b""
    same = len(os.path.commonprefix((found, events)))
    if same < len(found):
        os.truncate(path, same)
    if same < len(events):
        _append(path, events[same:])


def _append(path: Path, events: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(events)
    except OSError as error:
        error.filename = error.filename or (os.fspath(path) if error.errno else None)
        raise

"""TensorBoard's event files and Weights & Biases: what they are shown is what the records say, once."""

import errno
import importlib.machinery
import json
import struct
import sys
import types
import typing
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from tajax import records as recorded
from tajax import results, tracking
from tajax.config import config_hash, default_config, flatten, validate
from tajax.records import Finetune, Sweep, ZeroShot
from tajax.tracking import TensorBoard, Translation, points
from tajax.workflows.journal import Journal

ORIGIN = {"regime": "attention", "model": "tiny", "seed": 3, "config_hash": "0d134eb23e5d"}


def records():
    """A run of two processes: the first was killed while it trained on `signs`."""

    def one(stage, elapsed, **fields):
        return {"stage": stage, **fields, **ORIGIN, "elapsed_seconds": elapsed}

    def steps(task, some, elapsed):
        for step in some:
            numbers = {"loss": 2.0 / step, "top1": 0.5, "grad_norm": 1.5, "learning_rate": 1e-3 / step}
            elapsed += 2.0
            yield one("finetune", elapsed, task=task, step=step, **numbers)

    yield one("run", 1.0, time="2026-05-01T12:00:00+00:00", versions={})
    yield one("zero_shot", 3.0, task="digits", split="test", top1=0.25, loss=1.5, count=100)
    yield from steps("digits", (50, 100, 150), 4.0)
    yield from steps("signs", (50,), 11.0)
    yield one("run", 1.0, time="2026-05-01T13:00:00+00:00", versions={})
    yield from steps("signs", (100, 150), 3.0)
    for alpha, top1 in ((-0.5, 0.1), (0.0, 0.25), (0.35, 0.75)):
        yield one("sweep", 20.0, task="digits", split="val", scaling_coef=alpha, top1=top1, loss=1.0, count=100)
    yield one("negation_sweep", 21.0, task="digits", measured_on="signs", split="val", scaling_coef=0.2, top1=0.5)
    yield one("disentanglement", 22.0, tasks=["digits", "signs"], distance="prediction", summary=0.125, relative=None)
    yield one("geometry", 23.0, module="all", norms=[1.0, 2.0])


@pytest.fixture
def begin(tmp_path):
    """`begin(records)`: the files of a process that finds these records."""

    def begin(found=(), directory=tmp_path / "tensorboard"):
        return TensorBoard(directory, found, translate=Translation({"finetune": 32}), config='{"seed": 3}')

    begin.directory = tmp_path / "tensorboard"
    return begin


def events(file):
    """Every event of a file, read by the format's description: length, its checksum, data, their checksum."""
    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        for part, at in ((data[:8], 8), (body, 12 + length)):
            checksum = crc32c(part)
            masked = (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF
            assert struct.unpack("<I", data[at : at + 4]) == (masked,)
        found.append(Event.FromString(body))
        data = data[16 + length :]
    return found


def curves(directory):
    """{(directory, tag): [(step, value), …]}."""
    found = {}
    for file in sorted(directory.glob("*/events.out.tfevents.*")):
        first, *others = events(file)
        assert first.file_version == "brain.Event:2"
        for event in others:
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    point = event.step, round(value.simple_value, 6)
                    found.setdefault((file.parent.name, value.tag), []).append(point)
    return found


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_curves_are_the_recorded_numbers(begin):
    tracker = begin()
    for record in records():
        tracker(record)
    found = curves(begin.directory)
    assert found["digits", "finetune/loss"] == [(50, 0.04), (100, 0.02), (150, round(2 / 150, 6))]
    assert found["signs", "finetune/learning_rate"] == [(50, 2e-5), (100, 1e-5), (150, 7e-6)]
    assert found["digits", "finetune/images_per_second"] == [(100, 800.0), (150, 800.0)]  # 50 × 32 images in 2 s
    assert found["signs", "finetune/images_per_second"] == [(150, 800.0)]  # not over the time that it was dead
    assert found["digits", "sweep/val_top1"] == [(-500, 0.1), (0, 0.25), (350, 0.75)]  # α in thousandths
    assert found["digits", "negation_sweep/val_control_top1"] == [(200, 0.5)]
    assert found["digits", "zero_shot/test_top1"] == [(0, 0.25)]
    assert found["digits_and_signs", "disentanglement/prediction_summary"] == [(0, 0.125)]
    assert {name for name, _ in found} == {"digits", "signs", "digits_and_signs"}  # the seed is no curve
    (_, text) = events(begin.directory / "config" / "events.out.tfevents.tajax")
    assert b'"seed": 3' in text.summary.value[0].tensor.string_val[0]
    times = [event.wall_time for event in events(begin.directory / "signs" / "events.out.tfevents.tajax")[1:]]
    assert [time - times[0] for time in times] == [0, 3600 - 8, 3600 - 6]  # by the clocks of both processes


def test_a_process_that_goes_on_leaves_the_files_of_one_that_was_not_killed(begin, tmp_path):
    """Killed after any record, with any number of bytes lost or a record that no other process was told of."""
    every = list(records())
    undisturbed = begin((), tmp_path / "undisturbed")
    for record in every:
        undisturbed(record)
    whole = contents(tmp_path / "undisturbed")
    for killed in range(len(every) + 1):
        directory = tmp_path / str(killed)
        first = begin((), directory)
        for record in every[:killed]:
            first(record)
        for number, file in enumerate(sorted(directory.rglob("events*"))):
            data = file.read_bytes()
            damaged = (data[:-7], data + b"torn", b"", data[:20] + b"other" + data[25:])[(number + killed) % 4]
            file.write_bytes(damaged)
        second = begin(every[:killed], directory)
        for record in every[killed:]:
            second(record)
        assert contents(directory) == whole
    begin(every, tmp_path / "undisturbed")
    assert contents(tmp_path / "undisturbed") == whole


def test_records_that_somebody_changed_write_nowhere_else(begin, tmp_path):
    tracker = begin([{"stage": "zero_shot", "task": "../../outside", "split": "test", "top1": "high", "loss": 1.0}])
    tracker({"stage": "sweep", "task": "../..", "scaling_coef": 0.5, "top1": 0.5})
    tracker({"stage": "sweep", "task": "long" * 100, "split": "\ud800", "scaling_coef": 10**400, "top1": 0.5})
    tracker({"stage": "finetune", "task": {"a": 1}, "step": float("inf"), "elapsed_seconds": "1", "loss": 10**30})
    for time in ("yesterday", "0001-01-01", 5, None):
        tracker({"stage": "run", "time": time})
    assert {path.parts[0] for path in map(Path, contents(tmp_path))} == {"tensorboard"}


def test_a_full_disk_is_named(begin):
    tracker = begin()
    place = begin.directory / "digits" / "events.out.tfevents.tajax"
    place.parent.mkdir(parents=True)
    place.symlink_to("/dev/full")
    with pytest.raises(OSError) as full:
        for record in records():
            tracker(record)
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(place))


def test_where_it_is_shown_is_no_part_of_what_is_computed():
    config, shown = default_config(), default_config()
    shown.track.tensorboard, shown.track.wandb = False, "somebody/task-vectors"
    validate(shown)
    assert config_hash(config) == config_hash(shown)
    shown.track.wandb = "a/b/c"
    with pytest.raises(ValueError, match=r"track.wandb is 'a/b/c', want PROJECT or ENTITY/PROJECT"):
        validate(shown)


class Recorder(types.ModuleType):
    """Stands in for `wandb`, and notes what it is asked for."""

    class Error(Exception):
        """Of any kind."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.asked, self.logged, self.defined, self.finished = [], [], {}, 0
        self.mode, self.logged_in = "online", True

    def setup(self):
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode=self.mode))

    def login(self, *, prompt):
        assert not prompt  # there is a display where the question would stand
        return self.logged_in

    def Settings(self, **settings):  # noqa: N802
        return settings

    def init(self, **options):
        if options["project"] == "forbidden":
            raise self.Error("permission denied")
        self.asked.append(options)
        return self

    def define_metric(self, name, *, step_metric=None, hidden=False):
        self.defined[name] = step_metric

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", recorder := Recorder())
    return recorder


def journal(workdir, **track):
    """A process that works on the run."""
    config = default_config()
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(config.to_json())
    for field, value in track.items():
        config.track[field] = value
    kept = Journal(workdir / "results.jsonl", ORIGIN)
    kept.track(config)
    return kept


def test_every_record_is_sent_to_weights_and_biases_once(tmp_path, wandb):
    workdir = tmp_path / "attn_tiny"
    kept = journal(workdir, wandb="lab/task-vectors")
    for step in (50, 100):
        kept.record(Finetune, task="digits", step=step, loss=1.0 / step)
    for tracker in kept.trackers:
        tracker.close()
    again = journal(workdir, wandb="lab/task-vectors")
    again.record(Sweep, task="digits", split="val", scaling_coef=0.35, top1=0.5)
    first, second = wandb.asked
    assert (first["entity"], first["project"], first["name"]) == ("lab", "task-vectors", "attn_tiny")
    assert first["id"] == second["id"] and first["resume"] == second["resume"] == "allow"
    assert first["config"]["finetune.weight_decay"] == 0.1
    assert wandb.finished == 1
    assert wandb.logged == [
        {"finetune/digits/step": 50, "finetune/digits/loss": 0.02},
        {"finetune/digits/step": 100, "finetune/digits/loss": 0.01},
        {"sweep/digits/step": 350, "sweep/digits/val_top1": 0.5},
    ]
    assert wandb.defined["finetune/digits/*"] == "finetune/digits/step"
    assert curves(workdir / "tensorboard")["digits", "sweep/val_top1"] == [(350, 0.5)]


def test_a_run_that_was_not_shown_before_is_shown_whole(tmp_path, wandb):
    kept = journal(tmp_path / "run", tensorboard=False)
    kept.record(ZeroShot, task="digits", split="test", top1=0.25)
    assert not (tmp_path / "run" / "tensorboard").exists()
    journal(tmp_path / "run", wandb="task-vectors")
    assert wandb.logged == [{"zero_shot/digits/step": 0, "zero_shot/digits/test_top1": 0.25}]
    assert curves(tmp_path / "run" / "tensorboard") == {("digits", "zero_shot/test_top1"): [(0, 0.25)]}
    other = journal(tmp_path / "run", wandb="another")
    assert len({asked["id"] for asked in wandb.asked}) == 2 and len(other.trackers) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("absent", r"is not installed: pip install 'tajax\[wandb\]'"),
        ("logged out", r"nobody is logged in. Log in \(wandb login\), keep it on this machine \(WANDB_MODE=offline\)"),
        ("refused", r"refuses \(permission denied\)"),
    ],
)
def test_what_keeps_it_from_weights_and_biases_is_said(tmp_path, wandb, monkeypatch, fault, message):
    wandb.logged_in = fault != "logged out"
    if fault == "absent":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        journal(tmp_path / "run", wandb="forbidden" if fault == "refused" else "task-vectors")
    wandb.mode = "offline"
    if fault == "logged out":
        tracking.check("task-vectors")  # nobody has to be


def test_a_run_shows_what_it_records(tmp_path):
    """Numbers reach TensorBoard as they stand in the file: those of NumPy, and long ones."""
    kept = journal(tmp_path / "run")
    kept.record(Finetune, task="digits", step=np.int64(10), loss=np.float32(1 / 3), top1=np.float64(2 / 3))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    again = tracking.trackers(
        tmp_path / "other",
        results.read(tmp_path / "run" / "results.jsonl"),
        tensorboard=True,
        wandb=None,
        images={"finetune": 128, "pretrain": 256},
        config=flatten(config),
    )
    assert len(again) == 1
    assert contents(tmp_path / "other") == {
        name: data for name, data in contents(tmp_path / "run").items() if name.startswith("tensorboard")
    }


def test_curves_are_made_of_fields_that_records_have():
    named = set().union(*(kind.__annotations__ for kind in vars(recorded).values() if typing.is_typeddict(kind)))
    shown = {*points._CURVES, *points._SCORES, *points._KINDS, *points._NOT_CURVES}
    assert shown <= named, shown - named

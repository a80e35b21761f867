"""Faults: one message, nothing lost or half-written, and the same command afterwards ends with the same bits."""

import functools
import os
import re
import shutil
import signal
import subprocess

import jax
import jax.numpy as jnp
import pytest
import tensorflow_datasets as tfds

from tajax import checkpoints, config, data, evaluate, finetune, metrics, models, vector_files
from tajax.data import builders
from tajax.models import files
from tajax.report import page
from tajax.workflows import faults, sweep
from tests.data.conftest import PipelineSample, encoded, picture
from tests.survival.conftest import assert_part, assert_same, measured
from tests.workflows.conftest import CONFIGS, TASKS, programs, run, world  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:.*fork", "ignore::pytest.PytestUnraisableExceptionWarning")
KIB, DISK = 1 << 10, 4 << 20  # a run takes one MiB, nine tenths of it for the report
GOES_ON = "the same command goes on"


@pytest.fixture(scope="module")
def every_program(programs):  # noqa: F811
    """The same few programs are compiled by every run of this file: once."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="module")
def work(run, world, every_program):  # noqa: F811
    """`work(workdir, …)`: a short run of the kind that does most, with one task."""
    task = str(world / f"{next(iter(TASKS))}.npz")
    fields = {"workflow": "task_addition", "finetune__checkpoint_every": 1, "tasks": (task,)}
    return lambda workdir, **more: run("attn", workdir, **fields | more)


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory):
    """What a run leaves that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert work(workdir).code == 0
    return workdir


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of `DISK` bytes."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a small disk, with the program `mount`")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", place], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def explained(done, code, *texts):
    """One message, which has these texts, and no traceback."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    for text in texts:
        assert text in done.err
    if code == 2:
        assert len(re.findall(r"^\w*Error: ", done.err, re.MULTILINE)) == 1, done.err


def assert_kept(workdir, whole):
    """What there is, is whole."""
    assert_part(workdir, whole)
    assert not [path for path in workdir.rglob("*") if re.search(r"[.-](tmp|partial|replaced)\b|\.owner", path.name)]


def assert_goes_on(work, workdir, whole, **fields):
    done = work(workdir, **fields)
    assert done.code == 0, done.err
    assert_same(workdir, whole)
    return done


ROOM = {  # KiB that are left: what finds no more room, and records that are kept
    0: ("run/config.json", 0),
    8: ("run/inputs.json", 0),
    12: ("run/results.jsonl", 0),
    44: ("/disk/run/", 3),  # the checkpoint, or what the run writes beside it: they are at it at once
    120: ("The last whole one is of step 1", 4),
    324: ("run/report.html", 12),
}


@pytest.mark.parametrize("left", ROOM)
def test_full_disk(left, work, whole, disk):
    place, kept = ROOM[left]
    ballast, workdir = disk / "ballast", disk / "run"
    ballast.write_bytes(bytes(DISK - 4 * KIB - left * KIB))
    done = work(workdir)
    explained(done, 2, place, "No space left on device", "Make room", GOES_ON)
    assert len(done.err) < 2000
    assert len(measured(workdir)) >= kept
    ballast.unlink()
    assert_kept(workdir, whole)
    assert_goes_on(work, workdir, whole)


def test_full_disk_under_the_merged_model(work, whole, disk):
    """With few checkpoints this is what takes most room before the report."""
    for left in (72, 112):  # its weights; its tokenizer, which a library in Rust writes
        workdir = disk / f"run{left}"
        (disk / "ballast").write_bytes(b"")
        used = sum(file.stat().st_blocks * 512 for file in disk.rglob("*"))
        (disk / "ballast").write_bytes(bytes(DISK - used - left * KIB))
        explained(work(workdir, finetune__checkpoint_every=1000), 2, "No space left on device", f"run{left}/merged")
        assert not (workdir / "merged").exists()
        assert_kept(workdir, whole)
        (disk / "ballast").unlink()
        assert_goes_on(work, workdir, whole, finetune__checkpoint_every=1000)


def test_full_disk_under_the_data(disk, every_program):
    (disk / "ballast").write_bytes(bytes(DISK - 60 * KIB))
    with pytest.raises(ValueError, match="tajax_signs cannot be prepared in .*No space left on device.*Make room"):
        data.open_task("signs", data_dir=disk)
    (disk / "ballast").unlink()
    assert not list(disk.rglob("*.array_record*")) and not list(disk.rglob("dataset_info.json"))


def test_disk_that_may_only_be_read(work, whole, disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    explained(work(disk / "run"), 2, f"Read-only file system: '{disk / 'run'}", "choose another --workdir")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert not list(disk.iterdir())
    assert_goes_on(work, disk / "run", whole)


def stopped_in_training(work, workdir, monkeypatch):
    """A run that was asked to end at its second step: checkpoints of steps 1 and 2."""
    with monkeypatch.context() as patch:
        strike(patch, finetune, "_means")
        assert work(workdir).code == 130
    kept = workdir / "checkpoints" / next(iter(TASKS))
    assert sorted(path.name for path in kept.iterdir()) == ["step_00000001", "step_00000002"]
    return kept


CHECKPOINTS = {  # what happens to them: what is said
    "truncated": "step_00000002 cannot be read: .* Going on from step 1",
    "deleted": "^(?!.*(cannot be read|anew))",
    "both truncated": "step_00000001 cannot be read: .* Going on anew, because no other is left",
}


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_checkpoint_is_damaged(damage, work, whole, workdir, monkeypatch):
    kept = stopped_in_training(work, workdir, monkeypatch)
    if damage == "deleted":
        shutil.rmtree(kept / "step_00000002")
    for step in {"truncated": (2,), "both truncated": (1, 2)}.get(damage, ()):
        for file in (kept / f"step_{step:08d}").rglob("d/*"):
            file.write_bytes(file.read_bytes()[:-1])
    done = assert_goes_on(work, workdir, whole)
    assert re.search(CHECKPOINTS[damage], done.err, re.DOTALL), done.err


def test_task_vector_is_damaged(work, whole, workdir):
    shutil.copytree(whole, workdir)
    path = workdir / "task_vectors" / f"{next(iter(TASKS))}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    explained(work(workdir), 2, f"{path} (", "truncated, damaged")
    path.unlink()
    assert_goes_on(work, workdir, whole)


@pytest.fixture(scope="module")
def pictures(work, tmp_path_factory):
    """A folder and a data set of TFDS, and what a run leaves that finds both in order."""
    home = tmp_path_factory.mktemp("pictures")
    tfds.display_progress_bar(False)
    PipelineSample(config="usual", data_dir=home).download_and_prepare(file_format="array_record")
    for number in range(40):
        path = home / "birds" / ("test" if number % 4 == 0 else "train") / ("owl", "wren")[number % 2] / f"{number}.png"
        if number % 8 != 4:  # wrens and owls in both
            path = path.with_name(f"{number}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number), "PNG" if path.suffix == ".png" else "JPEG"))
    fields = {"tasks": (str(home / "birds"), "pipeline_sample/usual"), "data_dir": home, "workflow": "single_task"}
    assert work(home / "run", **fields).code == 0
    return home, fields


def damaged_record(home):
    (file,) = home.rglob("*train.array_record*")
    return file, "pipeline_sample/usual/1.0.0:train[", "delete pipeline_sample/usual/1.0.0 in the data directory"


def broken_image(home):
    file = sorted((home / "birds" / "train" / "wren").iterdir())[-1]
    return file, str(file), "images of birds/val cannot be read"


@pytest.mark.parametrize("fault", [damaged_record, broken_image])
def test_data_is_damaged(fault, work, pictures, workdir):
    home, fields = pictures
    file, *texts = fault(home)
    content = file.read_bytes()
    try:
        middle = len(content) // 40 if fault is damaged_record else len(content) // 2
        file.write_bytes(content[:middle] + bytes(40) + content[middle + 40 :] if len(content) > 60_000 else b"\x89PNG")
        explained(work(workdir, **fields), 2, *texts)
    finally:
        file.write_bytes(content)
    assert_kept(workdir, home / "run")
    assert_goes_on(work, workdir, home / "run", **fields)


def test_loss_is_not_a_number(work, whole, workdir, monkeypatch):
    """As the hardware may do it once; the state that gave it is not kept."""
    on_host, calls = finetune._on_host, []

    def once(metrics):
        calls.append(metrics)
        values = on_host(metrics)
        return [{**value, "loss": float("nan")} for value in values] if len(calls) == 2 else values

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "_on_host", once)
        explained(work(workdir), 2, "NonFiniteLossError: the loss is nan at step 2 of task 'pets', learning rate 0.0")
    assert [path.name for path in (workdir / "checkpoints" / "pets").iterdir()] == ["step_00000001"]
    assert_kept(workdir, whole)
    assert_goes_on(work, workdir, whole)
    explained(work(workdir.parent / "steep", finetune__learning_rate=1e30), 2, "Lower config.finetune.learning_rate")


def insatiable(value):
    """The same number, from a program that needs 64 terabytes."""
    return value + 0 * jnp.sort(jnp.arange(1 << 44, dtype=jnp.float32))[0]


MEMORY = {  # where it runs out: what is said
    (finetune, "cross_entropy"): ("while fine-tuning (", "finetune.remat=layers"),
    (evaluate, "head_logits"): ("while evaluating (", "evaluate.batch_size below 8"),
}


@pytest.mark.parametrize("place", MEMORY, ids=lambda place: place[1])
def test_memory_of_the_device_runs_out(place, work, whole, workdir, monkeypatch):
    module, name = place
    function = getattr(module, name)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *a: insatiable(function(*a)))
        explained(
            work(workdir),
            2,
            "OutOfMemoryError",
            *MEMORY[place],
            "Out of memory allocating",
            "the same --workdir goes on",
        )
    assert_kept(workdir, whole)
    assert_goes_on(work, workdir, whole)


def test_memory_of_the_machine_runs_out(work, workdir):
    explained(work(workdir, evaluate__batch_size=1 << 50), 2, "OutOfMemoryError: memory ran out while evaluating")


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.\nmore",
            ("remat",),
        ),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 6291456 bytes.\nBufferAssignment", ("remat",)),
        ("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory", ("remat", "evaluate.batch_size")),
    ],
)
def test_what_accelerators_say_is_understood(said, fields):
    """Their words, as others met them: XLA on TPU and GPU, jax-ml/jax#13428."""
    with pytest.raises(faults.OutOfMemoryError) as error, faults.explained(config.default_config()):
        raise jax.errors.JaxRuntimeError(said)
    assert said.splitlines()[0].rstrip(".") in str(error.value) and "more" not in str(error.value).splitlines()[0]
    assert all(field in str(error.value) for field in fields)


def test_other_errors_of_the_device_stay_what_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), faults.explained(config.default_config()):
        raise jax.errors.JaxRuntimeError("INTERNAL: an unsupported operation")


def strike(patch, module, name, *, number=1, after=False):
    """Ctrl-C when a function is called for that time: before or after it has done its work."""
    function, calls = getattr(module, name), []

    @functools.wraps(function)
    def struck(*arguments, **options):
        calls.append(name)
        if len(calls) != number or not after:
            if len(calls) == number:
                signal.raise_signal(signal.SIGINT)
            return function(*arguments, **options)
        result = function(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return result

    patch.setattr(module, name, struck)


PHASES = {  # what is called then
    "loading the model": (models, "load", 1),
    "opening the data": (data, "open_tasks", 1),
    "making heads": (models, "zero_shot_head", 1),
    "compiling evaluation": (evaluate, "head_logits", 1),
    "evaluating": (metrics, "compute_each", 2),
    "compiling training": (finetune, "cross_entropy", 1),
    "training": (finetune, "_means", 2),
    "saving a checkpoint": (checkpoints, "_by_path", 2),
    "saving a task vector": (vector_files.safetensors.numpy, "save", 1),
    "sweeping": (sweep, "select_scaling_coef", 1),
    "saving the merged model": (files, "write_tensors", 1),
    "reporting": (page, "html", 1),
}


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c(phase, work, whole, workdir, monkeypatch):
    module, name, number = PHASES[phase]
    with monkeypatch.context() as patch:
        strike(patch, module, name, number=number, after=name == "write_tensors")
        done = work(workdir)
    explained(done, 130, "Interrupted; all that was done is kept. The same command goes on from there.")
    assert_kept(workdir, whole)
    assert_goes_on(work, workdir, whole)


def test_ctrl_c_while_data_is_prepared(run, workdir, tmp_path, monkeypatch, every_program):  # noqa: F811
    prepare, made = builders.datasets.prepare, tmp_path / "data"

    def begin(name, *, data_dir):
        strike(patch, tfds.core.download.DownloadManager, "__init__")
        return prepare(name, data_dir=data_dir)

    with monkeypatch.context() as patch:
        patch.setattr(builders.datasets, "prepare", begin)
        done = run("attn", workdir, tasks=("signs",), data_dir=made)
    explained(done, 130, GOES_ON.replace("the", "The"))
    assert not list(made.rglob("dataset_info.json"))
    assert len(data.open_task("signs", data_dir=made).split("test"))

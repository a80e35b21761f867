"""Processes that are really killed, and the comparison of what they leave with what an undisturbed one leaves."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file

from tajax import results, tracking
from tajax.config import flatten
from tests.workflows.conftest import CONFIGS, GRID, TASKS, programs, world  # noqa: F401

HERE = Path(__file__).parent
KILLED = -9
FIELDS = {
    "finetune.steps": 6,
    "finetune.batch_size": 8,
    "finetune.learning_rate": 0.01,
    "finetune.log_every": 4,
    "finetune.checkpoint_every": 1,
    "evaluate.batch_size": 8,
    "evaluate.scaling_coefs": GRID,
}


@contextlib.contextmanager
def serving():
    """What forks processes, one at a time."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", str(HERE / "server.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture(scope="session")
def server():
    """Forks processes; all of them share one cache of compiled programs."""
    with serving() as process:
        yield process


@pytest.fixture(scope="session")
def programs_on_disk(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def start(server, programs_on_disk, tmp_path):
    """`start(arguments, **prepare)`: a process; `end()` of what is returned waits for its exit code and messages."""

    def start(arguments, *, devices=1, **prepare):
        return begin(server, arguments, tmp_path / "messages.txt", programs_on_disk, devices, prepare)

    return start


def begin(server, arguments, log, cache, devices, prepare):
    """A process of the server, to be ended before the next one."""
    job = {
        "arguments": [str(argument) for argument in arguments],
        "environment": {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        },
        "log": str(log),
        "cache": str(cache),
        "prepare": prepare,
    }
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    pid = json.loads(server.stdout.readline())
    return SimpleNamespace(pid=pid, end=lambda: (json.loads(server.stdout.readline()), log.read_text()))


@pytest.fixture
def command(world):  # noqa: F811
    """`command(config, workdir, **fields)`: the command line of a run on the minute model and its two tasks."""

    def command(config, workdir, **fields):
        tasks = tuple(str(world / f"{name}.npz") for name in TASKS)
        given = FIELDS | {"model": world / "clip", "tasks": tasks}
        given |= {name.replace("__", "."): value for name, value in fields.items()}
        flags = [f"--config.{field}={value}" for field, value in given.items()]
        return [f"--config={CONFIGS / config}.py:tiny", f"--workdir={workdir}", *flags]

    command.one_task = (str(world / f"{next(iter(TASKS))}.npz"),)
    return command


def measured(workdir):
    """Every record in its order, without what says who measured it and when."""
    skipped = ("elapsed_seconds",)
    records = results.read(workdir / "results.jsonl")
    return [{k: v for k, v in r.items() if k not in skipped} for r in records if r["stage"] != "run"]


def tensors(workdir):
    """The bits of every tensor of a run: task vectors and models, not what is kept until a task is trained."""
    files = [path for path in sorted(workdir.rglob("*.safetensors")) if ".partial-" not in str(path)]
    files = [path for path in files if "checkpoints" not in path.parts]
    return {
        str(file.relative_to(workdir)): {name: leaf.tobytes() for name, leaf in load_file(file).items()}
        for file in files
    }


def assert_part(workdir, whole):
    """What a killed process leaves is complete as far as it goes."""
    found, expected = tensors(workdir), tensors(whole)
    assert found == {name: expected[name] for name in found}
    records = measured(workdir)
    assert records == measured(whole)[: len(records)]


def assert_same(workdir, whole):
    assert measured(workdir) == measured(whole)
    assert tensors(workdir) == tensors(whole)
    left = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if "checkpoints" not in path.parts}
    assert left == {str(path.relative_to(whole)) for path in whole.rglob("*") if "checkpoints" not in path.parts}
    assert_tracked(workdir)


def assert_tracked(workdir):
    """TensorBoard's files show every record once, as if one process had made them."""
    kept = {path: path.read_bytes() for path in (workdir / "tensorboard").rglob("events*")}
    config = json.loads((workdir / "config.json").read_text())
    images = {"finetune": config["finetune"]["batch_size"], "pretrain": config["pretrain"]["batch_size"]}
    records = results.read(workdir / "results.jsonl")
    with tempfile.TemporaryDirectory() as again:
        tracking.trackers(Path(again), records, tensorboard=True, wandb=None, images=images, config=flatten(config))
        assert kept == {workdir / p.relative_to(again): p.read_bytes() for p in Path(again).rglob("events*")} != {}


@pytest.fixture
def pretrain_command():
    """`pretrain_command(workdir)`: a pre-training of four steps of a minute model on a few scenes."""
    sizes = {"width": 8, "heads": 1, "layers": 1, "text_width": 8, "text_layers": 1, "text_heads": 1, "embed_dim": 8}
    sizes |= {"patch_size": 16, "vocab_size": 600, "context_length": 24, "batch_size": 4, "natural_fraction": 0.0}
    fields = sizes | {"steps": 4, "warmup_steps": 0, "scenes": "small", "checkpoint_every": 1, "log_every": 2}
    flags = [f"--config.pretrain.{name}={value}" for name, value in fields.items()]
    return lambda workdir: [f"--config={CONFIGS / 'pretrain.py'}", f"--workdir={workdir}", *flags]

"""The directory of a run: which process works in it, which config it belongs to, and what it holds."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import datetime
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import filelock
from ml_collections import ConfigDict

from tajax import atomic, parallel, processes, progress, report, text_files, tracking
from tajax.config import config_hash, counts, diff
from tajax.questions import QUESTIONS
from tajax.types import Params

CONFIG, LOCK, OWNER = "config.json", ".lock", ".owner.json"
CONTENTS: tuple[str, ...] = (CONFIG, "inputs.json", "results.jsonl", "report.md", "heads", "task_vectors", "adapters")
CONTENTS += ("checkpoints", "merged", "merged_open_clip", "model", "report.html", "examples", "curvature", "playground")
CONTENTS += tracking.CONTENTS

HEARTBEAT_SECONDS = 20.0  # seconds between those that the owner gives
SILENCE = 6 * HEARTBEAT_SECONDS  # after which an owner on another host is taken for dead


_AT_END: contextvars.ContextVar[contextlib.ExitStack] = contextvars.ContextVar("at_end")


class BusyDirectoryError(OSError):
    """Another process works in the directory; the message names it."""


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """The directory, made if need be, for this process alone, or for this run's alone, as long as the block lasts.

    One that was made here and in which nothing has been begun, because the run was refused, is removed again.

    The operating system holds the lock and drops it when the process ends, however it ends, so that none outlives a
    kill or a reboot. `.owner.json` beside it says who holds it, and is touched every now and then: this is what
    counts between hosts whose file system does not share locks. What a killed owner left half-written is removed.
    Reading a finished run, as `config.task_vectors` does, needs no lock.

    Raises:
        BusyDirectoryError: another process has it; pid, host, time and command are named, and what to do.
        OSError: the directory cannot be made or written to.
    """
    if not processes.is_first():
        processes.barrier()  # the first one has it
        yield
        return
    made = [place for place in (workdir, *workdir.parents) if not place.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir) as file:  # no result is computed that cannot be kept
        now = os.fstat(file.fileno()).st_mtime  # by the clock of the file system, as the times it is compared with
    lock, owner, done = filelock.FileLock(workdir / LOCK), workdir / OWNER, False
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise BusyDirectoryError(_busy(workdir, owner)) from error
    try:
        _check_earlier_owner(workdir, owner, now)
        for directory in (workdir, *(workdir / name for name in CONTENTS)):
            for name in atomic.clean(directory):
                print(f"{directory / name}: left half-written by a process that was killed; removed.", file=sys.stderr)
        atomic.write(owner, json.dumps(_about_this_process()) + "\n")
        stop = threading.Event()
        alive = threading.Thread(target=_show_life, args=(owner, stop), daemon=True, name="owner of the workdir")
        alive.start()
        try:
            processes.barrier()
            with contextlib.ExitStack() as ending:
                token = _AT_END.set(ending)
                ending.callback(_AT_END.reset, token)
                yield
            done = True
        finally:
            stop.set()
            alive.join()
            owner.unlink(missing_ok=True)
    finally:
        if made and not done and {entry.name for entry in workdir.iterdir()} <= {LOCK, CONFIG}:
            _remove(made)
        lock.release()


def _remove(made: Sequence[Path]) -> None:
    """Removes a directory of which `claim` was the last word, and those around it that are empty; inmost first."""
    for entry in made[0].iterdir():  # the lock is still held: who has opened it meanwhile is refused
        entry.unlink()
    with contextlib.suppress(OSError):
        for place in made:
            place.rmdir()


def vector_path(workdir: Path, task: str) -> Path:
    """Where a run keeps the task vector of a task."""
    return workdir / "task_vectors" / f"{task}.safetensors"


def adapter_path(workdir: Path, task: str) -> Path:
    """Where a run of low rank keeps the factors of a task, as PEFT has them."""
    return workdir / "adapters" / task


def at_end(close: Callable[[], object]) -> None:
    """Has this called when the directory is let go; when the process ends, if it is not held."""
    try:
        _AT_END.get().callback(close)
    except LookupError:
        atexit.register(close)


def _about_this_process() -> dict[str, object]:
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": platform.node(), "since": since, "command": shlex.join(sys.argv)}


def _show_life(owner: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(owner)


def _read_owner(owner: Path) -> dict[str, object]:
    unknown: dict[str, object] = dict.fromkeys(("pid", "host", "since", "command"), "unknown")
    try:
        known = json.loads(owner.read_text())
    except (OSError, ValueError):
        return unknown
    return unknown | known if isinstance(known, dict) else unknown


def _named(about: dict[str, object]) -> str:
    return f"process {about['pid']} on {about['host']} since {about['since']} ({about['command']})"


def _busy(workdir: Path, owner: Path) -> str:
    about = _read_owner(owner)
    end = f"end it (kill {about['pid']}), " if about["host"] == platform.node() else "end it there, "
    return f"{workdir} is in use by {_named(about)}. Wait for it, {end}or choose another --workdir."


def _check_earlier_owner(workdir: Path, owner: Path, now: float) -> None:
    """An owner without the lock is dead, except on another host that does not share it and gave a sign of life."""
    if not owner.exists():
        return
    about, silent = _read_owner(owner), now - owner.stat().st_mtime
    if about["host"] not in (platform.node(), "unknown") and silent < SILENCE:
        raise BusyDirectoryError(
            f"{_busy(workdir, owner)} Its last sign of life is {max(0, silent):.0f} s old; if it has ended all the "
            f"same, wait until that is {SILENCE:.0f} s, or delete {owner}."
        )
    print(f"{workdir}: {_named(about)} ended without finishing; going on in its place.", file=sys.stderr)


def kept_config(workdir: Path) -> dict[str, object]:
    """The config that a directory belongs to.

    Raises:
        ValueError: `config.json` in it holds none.
    """
    path = workdir / CONFIG
    try:
        config = json.loads(text_files.read(path))
        if not isinstance(config, dict):
            raise ValueError(f"it holds {config!r}, not an object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no config ({error}). Choose another --workdir, or pass --overwrite.") from error
    return config


def claim(config: ConfigDict, workdir: Path, *, overwrite: bool = False) -> None:
    """Makes the directory this config's own, or refuses because it is another's.

    A directory of the same config is kept as it is, so that finished work is found and skipped.

    Args:
        config: a validated config.
        workdir: an existing directory.
        overwrite: remove an earlier run's files (`CONTENTS`, nothing else) and start anew.

    Raises:
        FileExistsError: the directory holds a run of another config; the fields that differ are named.
        ValueError: `config.json` in it cannot be read; or the workflow runs in one process, and there are more.
    """
    if processes.joined() and not QUESTIONS[config.workflow].processes:
        raise ValueError(
            f"the workflow {config.workflow!r} runs in one process; all of its devices take part. Start it by itself, "
            "with --config.task_vectors=DIR where a run of many processes has trained what it looks at."
        )
    if not processes.is_first():
        return
    path = workdir / CONFIG
    if overwrite:
        for name in CONTENTS:
            entry = workdir / name
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
    if path.exists():
        earlier = kept_config(workdir)
        if config_hash(earlier) != config_hash(config):
            differing = [
                f"\n  {field}: {there!r} → {here!r}"
                for field, (there, here) in diff(earlier, config).items()
                if counts(field, config.workflow)
            ]
            raise FileExistsError(
                f"{workdir} holds a run of another config. What differs (there → here):{''.join(differing)}\n"
                "Choose another --workdir, or pass --overwrite to replace that run."
            )
        return
    if (workdir / "results.jsonl").exists():
        raise FileExistsError(
            f"{workdir} holds results without a config.json. Choose another --workdir, or --overwrite."
        )
    atomic.write(path, config.to_json(indent=1) + "\n")


def read_by_first(read: Callable[[], Params], like: Params) -> Params:
    """What `read` gives in the process that reads the directory, for all of them; `like` has its shapes and dtypes."""
    return parallel.from_first(read() if processes.is_first() else like)


def write_report(workdir: Path) -> None:
    """The end of a run: its report, by the process that writes; tables are printed, and where the page is."""
    progress.finish()
    if processes.is_first():
        report.write(workdir)
        print(f"Report: {workdir / 'report.html'}")

"""The record of a run: JSON lines, one object a line, appended and never rewritten.

Each record says what was measured and where it came from:

    {"stage": "single_task", "task": "digits", "split": "test", "top1": 0.97, "regime": "attention",
     "seed": 0, "config_hash": "0d134eb23e5d", ...}

Accuracies are fractions in [0, 1]. A run that is killed while it writes leaves at most one torn last line,
which reading passes over and the next `append` removes. Every record has the hash of the config that lies beside it in
`config.json`, the seed, and the seconds since its process began; versions, devices, revision and time of day stand in
the record of the stage `run` that precedes what that process measured.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np

import tajax
from tajax.records import stage_of
from tajax.types import JsonObject

Record: TypeAlias = JsonObject
R = TypeVar("R", bound=Mapping[str, Any])  # a type of `tajax.records`, or `Record`

REQUIRED = ("stage", "config_hash")  # a number without them cannot be traced to what made it
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


def append(path: str | Path, record: Mapping[str, object]) -> None:
    """Adds one record to the file, on disk when this returns.

    Args:
        path: the file; it is created if absent, its directory is not.
        record: JSON values; NumPy and JAX scalars and arrays become plain numbers and lists.

    Raises:
        ValueError: a number is NaN or infinite, or one of `REQUIRED` is missing.
        TypeError: a value or key that JSON cannot hold. In each case nothing is written.
    """
    missing = [field for field in REQUIRED if field not in record]
    if missing:
        raise ValueError(f"record for {path} has no {' and no '.join(map(repr, missing))}: {dict(record)!r}")
    line = json.dumps(_plain(record, "record"), allow_nan=False) + "\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        with contextlib.suppress(OSError):  # a file system without locks; the workdir's keeps others away there
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # what looks like a torn line may be another writer's
        os.ftruncate(descriptor, _whole_lines(descriptor))
        left = line.encode()
        while left:  # a disk that fills up takes a part, and says so at the next one
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError as error:
        error.filename = error.filename or (os.fspath(path) if error.errno else None)
        raise
    finally:
        os.close(descriptor)


def as_read(record: Mapping[str, object]) -> Record:
    """The record as `read` would give it back; raises as `append`."""
    return json.loads(json.dumps(_plain(record, "record"), allow_nan=False))


def read(path: str | Path) -> list[Record]:
    """All records of a file in order; none if there is no such file.

    Raises:
        ValueError: a line other than a torn last one is not a JSON object. The message names file and line.
    """
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    *lines, _torn = text.split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}): {line[:80]!r}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object: {line[:80]!r}")
        records.append(record)
    return records


@overload
def find(records: Iterable[Record], kind: type[R], /, **fields: object) -> list[R]: ...


@overload
def find(records: Iterable[R], /, **fields: object) -> list[R]: ...


def find(records: Iterable[Any], kind: type | None = None, /, **fields: object) -> list[Any]:
    """The records that have all these fields with these values.

    Args:
        records: of any stages, or of one.
        kind: the type in `tajax.records` of those that are looked for, which says their stage.
        **fields: values by name.

    Example:
        >>> find([{"task": "digits", "top1": 0.9}, {"task": "signs"}], task="digits")
        [{'task': 'digits', 'top1': 0.9}]
        >>> from tajax.records import Sweep
        >>> find([{"stage": "sweep", "top1": 0.9}, {"stage": "control", "top1": 0.8}], Sweep)
        [{'stage': 'sweep', 'top1': 0.9}]
    """
    wanted, absent = fields if kind is None else {"stage": stage_of(kind), **fields}, object()
    return [r for r in records if all(r.get(name, absent) == value for name, value in wanted.items())]


def by_config(records: Iterable[Record]) -> dict[object, list[Record]]:
    """The records of each config, by its hash, in order."""
    groups: dict[object, list[Record]] = {}
    for record in records:
        groups.setdefault(record["config_hash"], []).append(record)
    return groups


def seconds(records: Sequence[Record]) -> float:
    """Time over all processes that worked on a run: each starts its clock anew."""
    clocks = [float(clock) for r in records if isinstance(clock := r.get("elapsed_seconds"), int | float)]
    return sum(now for now, after in zip(clocks, [*clocks[1:], -1.0], strict=True) if after < now)


def _cores() -> int | None:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def provenance() -> Record:
    """What a number depends on: `origin`, and the devices.

    Returns:
        JSON values, to be merged into a record.
    """
    import jax  # not above: a report reads records and needs no devices

    return origin() | {"device_kind": jax.local_devices()[0].device_kind, "device_count": jax.device_count()}


def origin() -> Record:
    """Command, versions, machine and, in a git checkout of tajax, the revision; no device is touched.

    Returns:
        JSON values, to be merged into a record. Packages that are not installed have no version.
    """
    record: Record = {
        "command": _command(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"tajax": tajax.__version__, "python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "cpu_count": _cores(),
    }
    revision = _git_revision(Path(__file__).resolve().parents[1])
    return record | ({"git_revision": revision} if revision else {})


def _command() -> str:
    """As this process was called; a program of this checkout by its path there, wherever that lies."""
    program, root = Path(sys.argv[0]), Path(__file__).resolve().parents[1]
    if program.is_relative_to(root):
        program = program.relative_to(root)
    return shlex.join([str(program), *sys.argv[1:]])


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # some rooms need few of them
            found[name] = importlib.metadata.version(name)
    return found


def _whole_lines(descriptor: int) -> int:
    """Length of the file without a torn last line."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 4096)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _plain(value: object, where: str) -> object:
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; keys are strings.")
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "dtype"):  # NumPy and JAX, scalars and arrays
        return _plain(np.asarray(value).tolist(), where)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: not a result. Find where it comes from instead of recording it.")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold: {value!r}")


def _git_revision(directory: Path) -> str | None:
    """Commit of a checkout, with `+` if files in it have changed since; None outside one or without git."""
    if not (directory / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None

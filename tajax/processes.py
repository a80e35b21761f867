"""A run of several processes, on one host or many: how they find each other, agree, and end together.

All of them run the same program on the same inputs. What the run itself writes is read and written by the first
process alone, and the others do as it has found: they need not see its directory. When one of them ends, for whatever
reason, the others end too, within seconds if it could still say why, else when it has been silent for `patience`.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from absl import flags
from jax._src.distributed import global_state  # its store of keys has no public name; Orbax takes it from there, too

from tajax import interrupts

Value = TypeVar("Value")

ENDED_WITH_ANOTHER = 6  # exit code, and the number of SIGABRT: what JAX raises where it is the first to notice
_POLL = 0.5  # seconds between looks at what the others say
_GRACE = 5.0  # seconds for the first process to keep what it holds, if it does not wait for the one that stopped
_START = 3  # times `patience`, for all to come
_NOTES, _SHARED = "tajax/ended/", "tajax/agreed/"
_numbers = itertools.count()


def define_flags(values: flags.FlagValues) -> flags.FlagValues:
    """The set given, with the flags of `join` in it."""
    flags.DEFINE_bool(
        "distributed", False, "one of many processes that a TPU pod, SLURM or Open MPI has started", flag_values=values
    )
    flags.DEFINE_string("coordinator", None, "address of process 0 where nothing tells", flag_values=values)
    flags.DEFINE_integer("processes", None, "how many there are; with --coordinator", flag_values=values)
    flags.DEFINE_integer("process", None, "which of them this is, from 0; with --coordinator", flag_values=values)
    flags.DEFINE_integer(
        "patience", 100, "of silence after which a process counts as dead; to start, three times as many",
        lower_bound=1, flag_values=values,
    )  # fmt: skip
    return values


def join(values: flags.FlagValues) -> None:
    """Makes this process one of those that the flags describe, and waits for the others; alone by default.

    To be called before JAX is used. From then on `leave` has to have the last word.

    Raises:
        ValueError: flags that say too little, or nothing that JAX can find the other processes by.
        OSError: the others did not come.
    """
    explicit: dict[str, Any] = {name: values[name].value for name in ("coordinator", "processes", "process")}
    missing = [f"--{name}" for name, value in explicit.items() if value is None]
    if len(missing) == len(explicit) and not values.distributed:
        return
    if missing and len(missing) < len(explicit):
        raise ValueError(f"{' and '.join(missing)} missing: --coordinator, --processes and --process go together.")
    coordinator, count, index = explicit.values()
    if not missing and not 0 <= index < count:
        raise ValueError(f"--process={index} is none of the {count} processes; choose 0 to {count - 1}.")
    if not missing and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"--coordinator={coordinator} has no port; write HOST:PORT.")
    where, patience = coordinator or "those that the cluster names", _START * values.patience
    print(f"Waiting for the other processes ({where}), {patience} s at most.", file=sys.stderr, flush=True)
    _end_quietly_where_jax_aborts()
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=patience,
            heartbeat_timeout_seconds=values.patience,
            shutdown_timeout_seconds=24 * 3600,  # for the first to write what is left; its death is noticed earlier
        )
    except ValueError as error:  # of JAX, which has found no cluster
        raise ValueError(
            f"no TPU pod, SLURM or Open MPI that tells of other processes ({error}). Give --coordinator=HOST:PORT "
            "--processes=N --process=I, or leave --distributed out."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise OSError(f"the {count or 'other'} processes did not come together: {error}") from error
    threading.Thread(target=_watch, daemon=True, name="other processes").start()


def joined() -> bool:
    """Whether there are other processes."""
    return global_state.client is not None and global_state.num_processes > 1


def is_first() -> bool:
    """Whether this process reads and writes what the run keeps: one does."""
    return global_state.process_id == 0


def share() -> tuple[int, int]:
    """(i, n): this process is the i-th of n, and so are its rows of each batch."""
    return global_state.process_id, global_state.num_processes


def broadcast_json(find: Callable[[], Value]) -> Value:
    """What `find` gives in the first process, for all: a JSON value.

    To be called by all processes alike, as everything that makes them wait for each other. Alone it is a call.
    """
    if not joined():
        return find()
    key = f"{_SHARED}{next(_numbers)}"
    if is_first():
        _client().key_value_set(key, json.dumps(found := find()))
        return found
    return json.loads(_wait_for(key))


def gather_json(find: Callable[[], Value]) -> list[Value]:
    """What `find` gives in each process, in their order, for all: JSON values. To be called by all alike."""
    if not joined():
        return [find()]
    place = f"{_SHARED}{next(_numbers)}/"
    index, count = share()
    _client().key_value_set(f"{place}{index}", json.dumps(find()))
    return [json.loads(_wait_for(f"{place}{other}")) for other in range(count)]


def barrier() -> None:
    """Returns when every process has called it."""
    if joined():
        place = f"{_SHARED}{next(_numbers)}/"
        index, count = share()
        _client().key_value_set(f"{place}{index}", "")
        for other in range(count):
            _wait_for(f"{place}{other}")


def check_same(**facts: object) -> None:
    """Raises ValueError if this process differs from the first in one of these JSON values, by name."""
    first = broadcast_json(lambda: facts)
    for name, value in json.loads(json.dumps(facts)).items():
        if value != first[name]:
            raise ValueError(
                f"process {global_state.process_id} has the {name} {value!r}, and process 0 has {first[name]!r}. "
                "Start all of them with the same command on the same inputs."
            )


@contextlib.contextmanager
def leaving_together() -> Iterator[None]:
    """For a block that all processes leave alike when they are asked to end: none ends before the first has done."""
    try:
        yield
    except interrupts.Interrupted:
        barrier()
        raise


def leave(code: int, reason: str) -> int:
    """The exit code of this process, `code` if it is alone; else the process ends here, and tells the others first.

    Args:
        code: 0 to wait for the others to finish as well.
        reason: what happened, in a line.
    """
    if not joined():
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 0:
        try:
            jax.distributed.shutdown()  # when all are here
        except jax.errors.JaxRuntimeError as error:
            print(f"This process is done; another has ended before its time: {error}", file=sys.stderr, flush=True)
            os._exit(ENDED_WITH_ANOTHER)
        return code
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first process has gone already
        note = json.dumps({"code": code, "reason": reason})
        _client().key_value_set(f"{_NOTES}{global_state.process_id}", note)
        time.sleep(6 * _POLL if is_first() else 0)  # the note goes with the first process: time to read it
    os._exit(code)  # JAX would wait for the others, and they for this one


def lost(error: Exception) -> int:
    """As `leave`, with an error that no input explains: of a step that another process has not taken, or a defect.

    Raises:
        Exception: the one given, where there are no other processes.
    """
    if not joined():
        raise error
    if not isinstance(error, jax.errors.JaxRuntimeError):
        traceback.print_exception(error)
        return leave(1, f"{type(error).__name__}: {error}")
    time.sleep(3 * _POLL)  # in this time `_watch` ends the process, if it knows more
    if interrupts.requested():
        return leave(interrupts.EXIT_CODES[signal.SIGTERM], "stopped with another process")
    print(f"Another process of this run has ended or cannot be reached: {error}", file=sys.stderr)
    return leave(ENDED_WITH_ANOTHER, "another process has ended")


def _watch() -> None:
    """Ends this process when another has said that it ends."""
    own = str(global_state.process_id)
    while (client := global_state.client) is not None:
        try:
            notes = dict(client.key_value_dir_get(_NOTES))
        except jax.errors.JaxRuntimeError:
            return  # the first process has gone: JAX ends this one
        for key, note in notes.items():
            if (other := key.removeprefix(_NOTES)) != own:
                _end_with(other, **json.loads(note))
        time.sleep(_POLL)


def _end_with(other: str, code: int, reason: str) -> None:
    if code in interrupts.EXIT_CODES.values():
        if not interrupts.requested():
            print(f"process {other} was asked to end ({reason}); so does this one.", file=sys.stderr, flush=True)
        interrupts.ask()
        patient_until = time.monotonic() + _GRACE
        while is_first() and interrupts.is_deferred() and time.monotonic() < patient_until:
            time.sleep(_POLL)
        time.sleep(2 * _POLL)  # for the main thread, unless it waits for a result that will never come
        os._exit(code)
    print(f"process {other} has ended with code {code}: {reason}\nThis one cannot go on alone.", file=sys.stderr)
    sys.stderr.flush()
    os._exit(ENDED_WITH_ANOTHER)


def _client() -> Any:
    """JAX's store of keys, which there is once the processes have joined; JAX gives it no type."""
    return global_state.client


def _wait_for(key: str) -> str:
    """The value of a key that another process sets; signals are heeded meanwhile."""
    pause = 0.001
    while True:
        try:
            return _client().key_value_try_get(key)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
        time.sleep(pause := min(2 * pause, 0.1))


def _end_quietly_where_jax_aborts() -> None:
    """Gives a process that JAX aborts, after its message about the one that is lost, `ENDED_WITH_ANOTHER` as code.

    JAX's runtime notices lost processes in a thread of its own and aborts; in 0.10 no Python function can be called
    there. The handler is `_exit` of the C library itself, and its argument the signal's number.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.signal(ctypes.c_int(signal.SIGABRT), ctypes.cast(library._exit, ctypes.c_void_p))

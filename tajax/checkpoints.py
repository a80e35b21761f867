"""Train states on disk, to go on from: the only file that imports Orbax.

A train state is whatever pytree the loop carries; it is restored against one of the same structure, so a file
that does not fit is an error and never a silent cast. Random numbers and the order of the data are functions of the
seed and the step (`tajax.data.pipeline`), so the step stands for both.

A checkpoint is written beside its place and renamed when it is whole. One that was damaged later is passed over for
the one before it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tajax.trees import check_same_names
from tajax.types import JsonObject

State = TypeVar("State")

_STEP = re.compile(r"step_(\d{8})")
_TENSORSTORE = re.compile(r" \[tensorstore_spec=.*\]", re.DOTALL)  # two thousand characters that nobody reads
_LONGEST = 400
_UNREADABLE = (OSError, ValueError, KeyError, AttributeError, TypeError)  # of Orbax, for files cut off or gone


class Checkpoint(NamedTuple, Generic[State]):
    """A train state and the notes that were saved with it, JSON values by name."""

    state: State
    notes: JsonObject


class DamagedCheckpointError(ValueError):
    """A checkpoint that cannot be read, cut off or with files missing."""


class Writer:
    """Writes the checkpoints of one run while the run goes on; a context that ends when all is on disk.

    Args:
        directory: of the run's checkpoints; made with the first one. What a killed process left half-written in it
            is removed.
        config_hash: of the run; a checkpoint of another one is refused by `restore`.
        keep: how many checkpoints stay, the latest ones; None keeps all.

    Example:
        >>> import tempfile
        >>> directory = tempfile.mkdtemp()
        >>> with Writer(directory, config_hash="0d134eb23e5d") as writer:
        ...     _ = writer.save({"w": jnp.ones(2)}, step=3)
        >>> restore_latest(directory, {"w": jnp.zeros(2)}).state
        {'w': Array([1., 1.], dtype=float32)}
    """

    def __init__(self, directory: str | Path, *, config_hash: str, keep: int | None = 2):
        self.directory, self.config_hash, self.keep = Path(directory).resolve(), config_hash, keep
        self._checkpointer = _alone()
        self._writing: int | None = None
        for leftover in self.directory.glob("*orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover)

    def save(self, state: State, *, step: int, notes: Mapping[str, object] | None = None) -> Path:
        """Begins to write `directory/step_XXXXXXXX` and returns as soon as the state may change.

        The state is copied to the host first, where it takes its size in memory until it is written. A checkpoint
        that is still being written is waited for. Earlier ones beyond `keep`, and later ones, which a run can only
        have come back from because they are damaged, are removed when the new one is whole.

        Args:
            state: any pytree of arrays.
            step: steps taken.
            notes: JSON values to keep with it.

        Returns:
            The directory that will be there.

        Raises:
            OSError: this one or the one before it cannot be written.
        """
        self.wait()
        self.directory.mkdir(parents=True, exist_ok=True)
        on_host = {name: np.array(leaf) for name, leaf in _by_path(state).items()}  # steps donate what they are given
        about = {"config_hash": self.config_hash, "notes": json.loads(json.dumps(notes or {}))}
        try:
            with _one_error_of_many(_path(self.directory, step)):
                self._checkpointer.save(_path(self.directory, step), on_host, force=True, custom_metadata=about)
        except (OSError, ValueError) as error:
            raise self._not_written(step, error) from error
        self._writing = step
        return _path(self.directory, step)

    def wait(self) -> None:
        """Returns when the last checkpoint is whole and those it replaces are gone; raises as `save`."""
        step, self._writing = self._writing, None
        if step is None:
            return
        try:
            with _one_error_of_many(_path(self.directory, step)):
                self._checkpointer.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_written(step, error) from error
        steps = _steps(self.directory)
        earlier, later = [s for s in steps if s <= step], [s for s in steps if s > step]
        for old in (earlier[: -self.keep] if self.keep is not None else []) + later:
            shutil.rmtree(_path(self.directory, old))

    def __enter__(self) -> Writer:
        """Nothing is opened; see `__exit__`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what is being written. If the block failed, its error counts and not that of the writing."""
        try:
            self.wait()
        except OSError as second:
            if error is None:
                raise
            print(second, file=sys.stderr)
        finally:
            self._checkpointer.close()

    def _not_written(self, step: int, error: Exception) -> OSError:
        for unfinished in self.directory.glob("*orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)  # it takes the room that the next one needs
        left = [s for s in _steps(self.directory) if s != step]
        kept = f"The last whole one is of step {left[-1]}." if left else "There is none before it."
        return OSError(
            f"checkpoint {_path(self.directory, step)} cannot be written: {_brief(error)}. {kept} "
            "Make room or give another --workdir; the same command goes on from there."
        )


def latest(directory: str | Path) -> int | None:
    """The number of steps of the latest checkpoint, None if there is none."""
    steps = _steps(Path(directory))
    return steps[-1] if steps else None


def restore(directory: str | Path, like: State, *, step: int, config_hash: str | None = None) -> Checkpoint[State]:
    """The train state after `step` steps, bit for bit, and its notes.

    Args:
        directory: as given to `Writer`.
        like: a state of the same structure; its values are not used.
        step: which checkpoint.
        config_hash: of the config that must have made it; None takes any.

    Returns:
        A state with the structure, shapes, dtypes and placement of `like`.

    Raises:
        FileNotFoundError: there is no such checkpoint; those that exist are named.
        DamagedCheckpointError: it cannot be read.
        ValueError: it belongs to another config, or has other leaves, shapes or dtypes; the first difference is
            named.
    """
    directory = Path(directory).resolve()
    path = _path(directory, step)
    if not path.is_dir():
        found = ", ".join(map(str, _steps(directory))) or "none"
        raise FileNotFoundError(f"no checkpoint of step {step} in {directory}. Steps there: {found}.")
    target = {name: _abstract(leaf) for name, leaf in _by_path(like).items()}
    with _alone() as checkpointer:
        with _reading(path):
            metadata = checkpointer.metadata(path)
            stored = metadata.item_metadata.tree
            made_by, notes = metadata.custom_metadata["config_hash"], metadata.custom_metadata["notes"]
        if config_hash not in (None, made_by):
            raise ValueError(
                f"checkpoint {path} was made by the config {made_by}, and this is {config_hash}: going on from it "
                "would mix two runs. Choose another --workdir, or pass --overwrite to start anew."
            )
        _check_leaves(path, stored, target)
        with _reading(path):
            leaves = checkpointer.restore(path, target)
    state = jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in target])
    return Checkpoint(state, notes)


def restore_latest(directory: str | Path, like: State, *, config_hash: str | None = None) -> Checkpoint[State]:
    """The latest checkpoint of a directory that can be read; `like` itself, without notes, if there is none.

    Each one that is damaged is named on stderr and passed over. Errors otherwise as in `restore`.
    """
    steps = _steps(Path(directory))
    for step, before in zip(reversed(steps), [*reversed(steps[:-1]), None], strict=False):
        try:
            return restore(directory, like, step=step, config_hash=config_hash)
        except DamagedCheckpointError as error:
            instead = "anew, because no other is left" if before is None else f"from step {before}"
            print(f"{error} Going on {instead}.", file=sys.stderr)
    return Checkpoint(like, {})


def _alone() -> ocp.StandardCheckpointer:
    """For one process, whatever others there are: Orbax does not wait for them."""
    index = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what Orbax raises of a damaged checkpoint into one `DamagedCheckpointError`."""
    with _one_error_of_many(path):
        try:
            yield
        except Exception as error:
            if not isinstance(error, _UNREADABLE) and type(error) is not Exception:  # an array's errors have no type
                raise
            raise DamagedCheckpointError(f"checkpoint {path} cannot be read: {_brief(error)}. Delete it.") from error


@contextlib.contextmanager
def _one_error_of_many(path: Path) -> Iterator[None]:
    """If the block fails, asyncio will say nothing of the tasks that failed beside the one whose error is raised.

    Orbax reads and writes the leaves of a checkpoint side by side and raises the first error. asyncio would print each
    other one with its traceback whenever the task happens to be collected: amid a later run's output, and in Python
    3.11 amid `ast.parse`, which then fails.
    """

    def of_another(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "was never retrieved" not in said or str(path) not in said

    logging.getLogger("asyncio").addFilter(of_another)
    yield
    logging.getLogger("asyncio").removeFilter(of_another)


def _brief(error: BaseException) -> str:
    """Its end: of a chain of files, the last says what the system said."""
    if isinstance(error, KeyError | AttributeError | TypeError):  # of Orbax's or our own code that misses a part
        return "what it says of itself is incomplete"
    said = _TENSORSTORE.sub("", str(error.__cause__ if type(error) is Exception and error.__cause__ else error))
    return said if len(said) <= _LONGEST else f"… {said[-_LONGEST:]}"


def _path(directory: Path, step: int) -> Path:
    return directory / f"step_{step:08d}"


def _steps(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(match[1]) for entry in directory.iterdir() if (match := _STEP.fullmatch(entry.name)))


def _by_path(state: object) -> dict[str, object]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/") or "state": leaf for path, leaf in pairs}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)


def _check_leaves(path: Path, stored: Mapping, target: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    check_same_names(f"checkpoint {path}", target, stored, "the state to restore")
    for name, leaf in target.items():
        there = stored[name]
        if tuple(there.shape) != leaf.shape or np.dtype(there.dtype) != leaf.dtype:
            raise ValueError(
                f"checkpoint {path}: {name} is {there.dtype}{list(there.shape)}, "
                f"the state to restore has {leaf.dtype}{list(leaf.shape)}"
            )

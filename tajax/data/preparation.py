"""One process at a time prepares a data set; the others wait for it and find it prepared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock
import tensorflow_datasets as tfds

from tajax import progress


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether a builder's data are there. `builder.is_prepared` logs a warning for each that is not."""
    return Path(builder.data_dir, "dataset_info.json").is_file()


@contextlib.contextmanager
def alone(builder: tfds.core.DatasetBuilder) -> Iterator[bool]:
    """The turn to prepare a data set, waited for while another process of this machine prepares it.

    TFDS writes into a temporary directory and renames it at the end, so that of two processes the second one fails.
    Runs that start together on a new machine are such processes. The operating system drops the lock, `.NAME.lock`
    in the data directory, with the process that holds it.

    Yields:
        Whether the data still have to be prepared: another process may have done it meanwhile.

    Raises:
        OSError: the data directory cannot be made or written to.
    """
    root = next(parent.parent for parent in Path(builder.data_dir).parents if parent.name == builder.name)
    root.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(root / f".{builder.name}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        progress.say(f"Waiting for another process that prepares {builder.name} in {root}")
        lock.acquire()
    try:
        yield not is_prepared(builder)
    finally:
        lock.release()

"""Errors that are nobody's defect: which ones end in one message, and what to do about memory and disks.

A loss that is not finite, a damaged file, an image that does not decode are explained where they are found. A device
without memory and a disk without room can show up anywhere: their errors pass through `explained` and leave it with
the fields of the config that help.
"""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
from collections.abc import Iterator
from types import TracebackType

from ml_collections import ConfigDict

from tajax.config import OPERATIONAL, flatten

EXPLAINED = (ValueError, TypeError, OSError, FloatingPointError, MemoryError)
"""Bad input and bad luck: a message and exit code 2. Whatever else is raised is a defect and keeps its traceback."""

_NO_MEMORY = re.compile("RESOURCE_EXHAUSTED|out.of.memory", re.IGNORECASE)
# XLA on a CPU:     "RESOURCE_EXHAUSTED: Out of memory allocating 35184372088832 bytes."
# on a GPU:         "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 6291456 bytes." (jax-ml/jax#13428)
# compiling, a TPU: "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. …"
_REMAT, _PARTS, _BATCH = "finetune.remat", "finetune.accumulation_steps", "finetune.batch_size"
_FIELDS = {  # field: how to set it, and what that does
    _REMAT: ("=True", "computes activations twice instead of keeping them"),
    _PARTS: (" above {}", "computes a batch in as many parts"),
    _BATCH: (" below {}", "takes fewer images a step"),
    "evaluate.batch_size": (" below {}", "takes fewer images at a time, for the same results"),
    "ntk.batch_size": (" below {}", "computes smaller blocks of the kernel"),
    "pretrain.batch_size": (" below {}", "takes fewer pairs a step"),
}
_WHERE = {  # innermost module of a traceback: what was done there, and the fields that it reads
    "tajax.finetune": ("fine-tuning", (_REMAT, _PARTS, _BATCH)),
    "tajax.evaluate": ("evaluating", ("evaluate.batch_size",)),
    "tajax.workflows.predictions": ("evaluating", ("evaluate.batch_size",)),
    "tajax.workflows.heads": ("fitting heads", ("evaluate.batch_size",)),
    "tajax.ntk.kernel": ("computing a kernel", ("ntk.batch_size",)),
    "tajax.workflows.ntk": ("computing a kernel", ("ntk.batch_size",)),
    "tajax.workflows.pretrain": ("pre-training", ("pretrain.batch_size",)),
}
_ANYWHERE = "running", (_REMAT, _PARTS, _BATCH, "evaluate.batch_size")
_DISK = {
    errno.ENOSPC: "Make room, or choose another --workdir",
    errno.EDQUOT: "Make room within your quota, or choose another --workdir",
    errno.EROFS: "Make it writable, or choose another --workdir",
}


class OutOfMemoryError(MemoryError):
    """The memory of a device or of the machine does not do; the message names the fields of the config that help."""


@contextlib.contextmanager
def explained(config: ConfigDict) -> Iterator[None]:
    """Errors of memory and disks leave the block with what to do about them.

    Args:
        config: of the run, whose values are shown.

    Raises:
        OutOfMemoryError: in place of JAX's, of its compiler or of a program, and of Python's `MemoryError`.
        OSError: in place of one about a disk that is full or may only be read.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # JaxRuntimeError is a RuntimeError
        if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
            raise
        raise OutOfMemoryError(_which_field(error, config)) from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        kept = "What was recorded before is kept, and the same command goes on from there."
        raise OSError(f"{error}. {_DISK[error.errno]}. {kept}") from error


def _which_field(error: Exception, config: ConfigDict) -> str:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
    doing, fields = next(
        (_WHERE[name] for name in reversed(_modules(error.__traceback__)) if name in _WHERE),
        _WHERE["tajax.workflows.pretrain"] if config.workflow == "pretrain" else _ANYWHERE,
    )
    values, ways = flatten(config), []
    for field in fields:
        how, effect = _FIELDS[field]
        if values[field] is not True:
            ways.append(f"\n  --config.{field}{how.format(values[field])} {effect}")
    same = [field for field in fields if field in OPERATIONAL]
    left = (
        f"What was done is kept; after a change of {' or '.join(same)} alone the same --workdir goes on."
        if same
        else "Another value is another run: choose another --workdir for it."
    )
    return f"memory ran out while {doing} ({said}). What helps:{''.join(ways)}\n{left}"


def _modules(trace: TracebackType | None) -> list[str]:
    """The modules on the way to an error, outermost first."""
    return [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(trace)]

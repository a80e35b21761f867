"""Errors that are nobody's defect: which ones end in one message, and what to do about memory and disks.

A loss that is not finite, a damaged file, an image that does not decode are explained where they are found. A device
without memory and a disk without room can show up anywhere: their errors pass through `explained` and leave it with
the fields of the config that help.
"""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Iterator
from types import TracebackType

from ml_collections import ConfigDict

from tajax import device_memory
from tajax.config import OPERATIONAL, flatten
from tajax.workflows.workflow import Memory, named

EXPLAINED = (ValueError, TypeError, OSError, FloatingPointError, MemoryError)
"""Bad input and bad luck: a message and exit code 2. Whatever else is raised is a defect and keeps its traceback."""

_FINETUNE = {
    "finetune.remat": ("=layers", "computes activations twice instead of keeping them"),
    "finetune.accumulation_steps": (" above {}", "computes a batch in as many parts"),
    "finetune.batch_size": (" below {}", "takes fewer images a step"),
}
_EVALUATE = {"evaluate.batch_size": (" below {}", "takes fewer images at a time, for the same results")}
_WHERE = {  # innermost module of a traceback; of a workflow's own module, its record tells
    "tajax.finetune": Memory("fine-tuning", _FINETUNE),
    "tajax.evaluate": Memory("evaluating", _EVALUATE),
    "tajax.workflows.predictions": Memory("evaluating", _EVALUATE),
    "tajax.workflows.heads": Memory("fitting heads", _EVALUATE),
}
_ANYWHERE = Memory("running", _FINETUNE | _EVALUATE)
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
        if isinstance(error, RuntimeError) and not device_memory.is_exhausted(error):
            raise
        raise OutOfMemoryError(_which_field(error, config)) from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        kept = "What was recorded before is kept, and the same command goes on from there."
        raise OSError(f"{error}. {_DISK[error.errno]}. {kept}") from error


def _which_field(error: Exception, config: ConfigDict) -> str:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
    own = named(config.workflow).memory
    where = _WHERE | ({f"tajax.workflows.{config.workflow}": own} if own else {})
    found = (where[name] for name in reversed(_modules(error.__traceback__)) if name in where)
    doing, fields = next(found, own or _ANYWHERE)
    values, ways = flatten(config), []
    for field, (how, effect) in fields.items():
        if how != f"={values[field]}":
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

"""What a run needs to know of a workflow: the record `WORKFLOW` that stands in the module of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from tajax.progress import Stage


class Memory(NamedTuple):
    """What was done where memory ran out; by field of the config, how to set it ({}: its value) and what that does."""

    doing: str
    ways: Mapping[str, tuple[str, str]]


class Workflow(NamedTuple):
    """A program. What rooms below must know of it stands in its row of `tajax.questions`.

    Attributes:
        run: `(config, workdir, *, overwrite=False)`.
        stages: what it does with a config, in order; one bears its name, and has the last of its numbers.
        memory: what helps where its own code runs out of memory, beside fine-tuning and evaluation.
    """

    run: Callable[..., None]
    stages: Callable[[ConfigDict], tuple[Stage, ...]]
    memory: Memory | None = None


def named(name: str) -> Workflow:
    """The workflow of that name; imported late, so that a typo costs little."""
    found: Workflow = importlib.import_module(f"tajax.workflows.{name}").WORKFLOW
    return found

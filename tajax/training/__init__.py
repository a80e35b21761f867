"""What regimes do besides minimising the loss of their own task: a module each, which the regime's row names.

A method may add a penalty, train other coordinates than masked parameters, or take the gradient elsewhere. Whatever it
needs of the tasks it is given in a `Context`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tajax.data import Task
from tajax.encoders.encoder import Encoder
from tajax.finetune import Penalty, Perturb
from tajax.parametrization import Parametrization
from tajax.types import Batch, Head, Mask, Params, Trained

__all__ = ["Context", "Options", "TrainingMethod", "training_method"]

Options = Mapping[str, Any]
"""The options of a regime, by the name of the field in `config.finetune`."""


class Context(NamedTuple):
    """What a method may know of the run and of the task that is trained."""

    encoder: Encoder
    """The pre-trained encoder."""
    task: Task
    """The one that is trained."""
    others: Sequence[Task]
    """The other tasks of the run; the control is never among them."""
    head: Head
    """Of the task."""
    mask: Mask
    """What is trained."""
    options: Options
    batch_size: int
    """Of an optimiser step."""
    seed: int
    kept: Path
    """A directory for what is needed until the task is trained, and a resumed run reads again. It may not exist yet."""
    workdir: Path
    """Of the run: what all of its tasks share may be kept there, beside the results."""
    share: tuple[int, int]
    """Which of how many processes this is: the part of the rows of each batch that it has to make."""
    workers: int
    """Processes that decode images."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingMethod:
    """What a module of a method has under the name `METHOD`.

    Attributes:
        penalty: from the options to what is added to the loss; a run multiplies it by its strength.
        data: from the context to `Penalized.data`: arrays, the same at every step.
        stream: from the context and the number of the first step to one batch a step, `Penalized.others`: with several
            processes this one's rows. Batch k is a function of the context and k alone, so that a run can go on.
        parametrization: what is trained; None: the parameters that the mask names.
        per_task: whether each task has another parametrization, so that each is compiled for.
        perturb: from the options to where the gradient of a step is taken; None: where training stands.
        check: raises ValueError for an encoder, mask or options that it cannot train, before anything is written.
        count: how many numbers are trained, of θ₀, the mask and the options; None: those of the mask.
        entries: from how many numbers the mask names, and the options, to how many of them are trained, single entries
            of leaves whose others are frozen, so that a vector's file is sparse; None: all.
        export: writes what a task ended with to a new directory, in a format of others, beside its vector: the context,
            the last of what was trained, and where to. In the first process alone, and again where a run was stopped
            before the vector was there.
    """

    penalty: Callable[[Options], Penalty] | None = None
    data: Callable[[Context], Any] = lambda context: None
    stream: Callable[[Context, int], Iterator[Batch]] | None = None
    parametrization: Callable[[Context], Parametrization] | None = None
    per_task: bool = False
    perturb: Callable[[Options], Perturb] | None = None
    check: Callable[[Encoder, Mask, Options], None] | None = None
    count: Callable[[Params, Mask, Options], int] | None = None
    entries: Callable[[int, Options], int] | None = None
    export: Callable[[Context, Trained, Path], None] | None = None


def training_method(module: str) -> TrainingMethod:
    """That of a module, imported when a run asks for it; of no name, one that does nothing."""
    if not module:
        return TrainingMethod()
    found: TrainingMethod = importlib.import_module(module).METHOD
    return found

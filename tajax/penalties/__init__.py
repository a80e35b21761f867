"""Penalties of regimes that train for more than their own task: a module each, which the regime's row names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tajax.data import Task
from tajax.encoders.encoder import Encoder
from tajax.finetune import Penalty


class Regularization(NamedTuple):
    """What a module of a penalty has under the name `PENALTY`."""

    penalty: Penalty
    """`(trained, seen) -> scalar`, which a run multiplies by `config.finetune.penalty_strength`."""
    data: Callable[[Encoder, Sequence[Task], Task], Any] = lambda encoder, tasks, task: None
    """From the encoder, all tasks and the one that is trained to `Penalized.data`: arrays, the same at every step."""


def regularization(module: str) -> Regularization | None:
    """That of a module, imported when a run asks for it; None for no name."""
    if not module:
        return None
    found: Regularization = importlib.import_module(module).PENALTY
    return found


__all__ = ["Regularization", "regularization"]

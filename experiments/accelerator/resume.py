"""A training that is killed and goes on, against one that nothing happened to: the same bits, or how far apart.

Each training is a process of its own; this one touches no device, which some let one process alone have.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tajax.types import JsonObject

KILLED_AT = 5
"""The step after which it is killed: a checkpoint lies one step back, so that a step is taken anew."""

LIMIT = 1e-3
"""What losses of the two may differ by, relatively. Not all kernels of a GPU add in the same order each time."""


class Told(NamedTuple):
    """What a training printed: where it began, and the loss of each step it took."""

    began: int
    losses: Mapping[int, float]


def measure(sizes: str, known: Mapping[str, Any]) -> Iterator[JsonObject]:
    """One row: whether the states after the last step are equal to the bit, and the largest differences.

    Raises:
        RuntimeError: a training ended by itself.
        ArithmeticError: the losses differ, or it did not go on from its checkpoint.
    """
    with tempfile.TemporaryDirectory() as directory:
        whole = _to_the_end(directory, "whole", sizes)
        killed = _killed(directory, "broken", sizes)
        resumed = _to_the_end(directory, "broken", sizes)
        first, second = (_leaves(Path(directory, f"{name}.npz")) for name in ("whole", "broken"))
    losses = [abs(resumed.losses[step] / whole.losses[step] - 1) for step in resumed.losses]
    yield {
        "regime": "attention",
        "killed_after": max(killed.losses),
        "resumed_from": resumed.began,
        "steps": max(whole.losses),
        "bits_equal": all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True)),
        "largest_difference": max(float(np.max(np.abs(a - b), initial=0)) for a, b in zip(first, second, strict=True)),
        "loss_difference": max(losses),
    }
    if not 0 < resumed.began < KILLED_AT:
        raise ArithmeticError(f"it went on from step {resumed.began}, which no checkpoint is of")
    if max(losses) > LIMIT:
        raise ArithmeticError(f"losses after resuming differ by {max(losses):.2g} of themselves")


def _command(directory: str, name: str, sizes: str, *more: str) -> Sequence[str]:
    return (sys.executable, "-m", "experiments.accelerator.resumed_training", directory, name, "--sizes", sizes, *more)


def _to_the_end(directory: str, name: str, sizes: str) -> Told:
    ended = subprocess.run(_command(directory, name, sizes), stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"the training {name!r} ended with code {ended.returncode}; what it said stands above")
    return _told(ended.stdout.splitlines())


def _killed(directory: str, name: str, sizes: str) -> Told:
    """It is killed, by SIGKILL, once it says that it waits."""
    lines = []
    with subprocess.Popen(
        _command(directory, name, sizes, "--wait-at", str(KILLED_AT)), stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            lines.append(line)
            if "waits" in line:
                running.kill()
                return _told(lines)
    raise RuntimeError(f"the training {name!r} ended before it could be killed; what it said stands above")


def _told(lines: Sequence[str]) -> Told:
    facts = [json.loads(line) for line in lines if line.startswith("{")]
    return Told(facts[0]["began"], {fact["step"]: fact["loss"] for fact in facts if "loss" in fact})


def _leaves(path: Path) -> list[np.ndarray]:
    with np.load(path) as stored:
        return [stored[name] for name in stored.files]

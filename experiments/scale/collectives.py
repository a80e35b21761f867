"""What the devices of a compiled program tell each other: kinds, numbers and bytes, from its text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from experiments.scale import hlo

__all__ = ["Collective", "collectives", "shape_bytes"]

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_BITS = {"pred": 8, "token": 0, "opaque": 0}


class Collective(NamedTuple):
    """All communication of one kind in a program.

    Attributes:
        kind: Of `KINDS`.
        number: Of instructions in the program. One that reduces several arrays at once counts once.
        executions: How many of them a run executes, those in loops as often as these turn; None: that is unknown.
        bytes: Of what is communicated by all of these executions together; None likewise. Each counts the whole arrays:
            what is reduced, or what has been gathered, and not what a device sends, which depends on the algorithm.
    """

    kind: str
    number: int
    executions: int | None
    bytes: int | None


def collectives(text: str) -> tuple[Collective, ...]:
    """The collectives of a program, as `jax.stages.Compiled.as_text` gives it, in the order of `KINDS`.

    Those that begin and end apart (`all-reduce-start`, `all-reduce-done`) count once.

    Raises:
        ValueError: the text is not understood.
    """
    found: dict[str, list[tuple[str, int | None, int]]] = {kind: [] for kind in KINDS}
    program = hlo.parse(text)
    lines = {name: line for computation in program.computations.values() for name, line in computation.items()}
    for line, times in program.executed():
        kind = line.operation.removesuffix("-done")
        if kind in found:
            begun = lines[line.operands[0]] if line.operation != kind else line  # which names the groups
            size = shape_bytes(line.shape) * (_group(begun.attributes) if kind == "reduce-scatter" else 1)
            found[kind].append((line.name, times, size))
    return tuple(_together(kind, seen) for kind, seen in found.items() if seen)


def _together(kind: str, seen: Sequence[tuple[str, int | None, int]]) -> Collective:
    known = all(times is not None for _, times, _ in seen)
    executions = sum(times for _, times, _ in seen) if known else None
    size = sum(times * size for _, times, size in seen) if known else None
    return Collective(kind, len({name for name, _, _ in seen}), executions, size)


def shape_bytes(shape: str) -> int:
    """Bytes of a shape as programs have it, without the padding of its layout.

    Example:
        >>> shape_bytes("(f32[2,3]{1,0:T(8,128)}, bf16[4]{0}, s32[])")
        36
    """
    plain = re.sub(r"\{[^}]*\}", "", shape)
    total = 0
    for kind, sizes in _SHAPE.findall(plain):
        bits = _BITS.get(kind) if kind in _BITS else int(re.search(r"\d+", kind)[0])
        total += math.prod(map(int, filter(None, sizes.split(",")))) * bits // 8
    return total


def _group(attributes: str) -> int:
    """How many devices take part in each group of a collective."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(counted[1])
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", axes[2]))
    raise ValueError(f"no replica_groups are understood in {attributes[:200]}")

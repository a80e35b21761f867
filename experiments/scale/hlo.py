"""The text of a compiled program, as far as counting what it executes needs it: computations, calls, and loops."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = ["Instruction", "Program", "parse"]

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_OPERATION = re.compile(r"([\w\-]+)\(")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SAME = frozenset({"copy", "bitcast", "copy-done", "copy-start", "convert", "reshape"})


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    shape: str
    """As the text has it; of several results in parentheses."""
    operation: str
    operands: tuple[str, ...]
    """Their names; of a constant or parameter what stands in the parentheses."""
    attributes: str
    """What follows."""
    root: bool


class Program(NamedTuple):
    """All computations of a program by name."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str

    def executed(self) -> Iterator[tuple[Instruction, int | None]]:
        """Every instruction, and how often a run executes it: None where it stands in a loop of unknown length.

        Each branch of a condition counts as if it were taken.
        """
        yield from self._executed(self.entry, 1)

    def _executed(self, name: str, times: int | None) -> Iterator[tuple[Instruction, int | None]]:
        for line in self.computations[name].values():
            yield line, times
            if line.operation.endswith(("-update", "-done")):
                continue  # they name the computation that was started
            each = times
            if line.operation == "while":
                trips = self.trips(name, line)
                each = None if trips is None or times is None else trips * times
            for called in _called(line.attributes):
                if called in self.computations:
                    yield from self._executed(called, each)

    def trips(self, computation: str, loop: Instruction) -> int | None:
        """How often a loop runs: what XLA says of it, else what its counter tells. None where neither does."""
        if told := _TRIPS.search(loop.attributes):
            return int(told[1])
        condition, body = (
            self.computations[re.search(rf"\b{part}=%?([\w.\-]+)", loop.attributes)[1]]
            for part in ("condition", "body")
        )
        test = _source(condition, _root(condition))
        if test.operation != "compare" or "direction=LT" not in test.attributes:
            return None
        begun = self.computations[computation]
        given = _source(begun, begun[loop.operands[0]])
        counter, limit = (_source(condition, condition[name]) for name in test.operands)
        index = _element(counter)
        if index is None or given.operation != "tuple":
            return None
        step = _added(body, index)
        start = _constant(_source(begun, begun[given.operands[index]]))
        end = _constant(limit)
        if end is None and (carried := _element(limit)) is not None and _unchanged(body, carried):
            end = _constant(_source(begun, begun[given.operands[carried]]))
        if start is None or end is None or not step or step < 1:
            return None
        return max(-(-(end - start) // step), 0)


def parse(text: str) -> Program:
    """A program as `jax.stages.Compiled.as_text` gives it.

    Raises:
        ValueError: it has no entry, or a line of it is not understood.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry = inside = None
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if head := _HEAD.match(line):
            inside = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            inside = None
        elif inside is not None and (found := _LINE.match(line)):
            instruction = _instruction(found["name"], found["rest"], line.lstrip().startswith("ROOT "))
            inside[instruction.name] = instruction
    if entry is None:
        raise ValueError(f"no program: {text[:80]!r}")
    return Program(computations, entry)


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    operation = _OPERATION.match(rest, end + 1)
    if operation is None:
        raise ValueError(f"no operation in the line {name} = {rest[:200]}")
    close = _closing(rest, operation.end() - 1)
    inner = rest[operation.end() : close]
    named = tuple(re.findall(r"%([\w.\-]+)", inner))
    return Instruction(name, rest[:end], operation[1], named or (inner,), rest[close + 1 :], root)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis closes that opens at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"a parenthesis is not closed: {text[start : start + 80]!r}")


def _called(attributes: str) -> list[str]:
    names = _CALLED.findall(attributes)
    for inside in _BRANCHES.findall(attributes):
        names += [name.strip().lstrip("%") for name in inside.split(",")]
    return names


def _root(computation: Mapping[str, Instruction]) -> Instruction:
    return next(line for line in computation.values() if line.root)


def _source(computation: Mapping[str, Instruction], line: Instruction) -> Instruction:
    """What a value is a copy of."""
    while line.operation in _SAME and line.operands[0] in computation:
        line = computation[line.operands[0]]
    return line


def _constant(line: Instruction) -> int | None:
    return int(line.operands[0]) if line.operation == "constant" and line.operands[0].lstrip("-").isdigit() else None


def _element(line: Instruction) -> int | None:
    """Which element of the values that a loop carries it is."""
    index = re.search(r"\bindex=(\d+)", line.attributes)
    return int(index[1]) if line.operation == "get-tuple-element" and index else None


def _carried(body: Mapping[str, Instruction], index: int) -> Instruction | None:
    root = _source(body, _root(body))
    return _source(body, body[root.operands[index]]) if root.operation == "tuple" else None


def _unchanged(body: Mapping[str, Instruction], index: int) -> bool:
    line = _carried(body, index)
    return line is not None and _element(line) == index


def _added(body: Mapping[str, Instruction], index: int) -> int | None:
    """The constant that a turn adds to an element."""
    line = _carried(body, index)
    if line is None or line.operation != "add":
        return None
    parts = [_source(body, body[name]) for name in line.operands]
    steps = [_constant(part) for part in parts if _element(part) != index]
    return steps[0] if len(steps) == 1 else None

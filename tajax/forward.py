"""Forward mode along several tangents at once: what the primal needs is computed once, and loops carry the tangents.

With x_{l+1} = F(θ_l, x_l), a step of a loop gives dx_{l+1,t} = ∂_θF τ_{l,t} + ∂_xF dx_{l,t} for every t beside
x_{l+1}. `jax.linearize` runs a loop for x alone, keeps the residuals of all its steps, and runs it again for each
tangent; `jax.vmap` of `jax.jvp` wants the tangents stacked, a second copy of all of them. Here a step keeps its own
residuals until the last tangent has passed it, and reads its layer of each τ_t where that lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core as jex

from tajax.operations import operate

__all__ = ["push_all"]

Tree = TypeVar("Tree")

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr"}
"""Operations that are gone into, by where their program is: a checkpoint means nothing in forward mode."""


def push_all(fn: Callable[[Tree], Any], primals: Tree, tangents: Sequence[Tree]) -> tuple[Any, list[Any]]:
    """The outputs of a function and their derivatives along T tangents, f(θ) and [J τ₁, …, J τ_T].

    A function that has no loop (`jax.lax.scan` and what is made of it) is linearised as a whole. Others are gone
    through operation by operation, and each is linearised once; a loop needs temporary memory for one of its steps and
    for T + 1 times what it carries.

    Args:
        fn: f, of one tree of arrays that are floating point.
        primals: θ.
        tangents: the τ_t, trees like `primals` with its dtypes, at least one.

    Returns:
        f(θ), and a tree like it for each tangent.

    Example:
        >>> powers = lambda x: jax.lax.scan(lambda y, _: (x * y, None), x, None, length=2)[0]
        >>> value, pushed = push_all(powers, jnp.array(2.0), [jnp.array(1.0), jnp.array(-1.0)])
        >>> float(value), list(map(float, pushed))
        (8.0, [12.0, -12.0])
    """
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(primals)
    leaves, rows = jax.tree.leaves(primals), list(map(jax.tree.leaves, tangents))
    if _has_loop(closed.jaxpr):
        given = [_Value(leaf, column) for leaf, column in zip(leaves, zip(*rows, strict=True), strict=True)]
        found = [_moving(_whole(value), len(tangents)) for value in _run(closed.jaxpr, closed.consts, given)]
        outputs = [value.primal for value in found]
        pushed = list(zip(*(value.tangents for value in found), strict=True))
    else:
        outputs, push = jax.linearize(jex.jaxpr_as_fun(closed), *leaves)
        pushed = [push(*row) for row in rows]
    structure = jax.tree.structure(shapes)
    return jax.tree.unflatten(structure, outputs), [jax.tree.unflatten(structure, row) for row in pushed]


@partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["start", "end"])
@dataclasses.dataclass(frozen=True)
class _Cut:
    """Rows of an array that lies somewhere as a whole: a loop reads them there, one by one."""

    array: Array
    start: int
    end: int

    def row(self, number: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(self.array, number + self.start, keepdims=False)

    def copied(self) -> Array:
        return jax.lax.slice_in_dim(self.array, self.start, self.end)


@partial(jax.tree_util.register_dataclass, data_fields=["primal", "tangents"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _Value:
    """A value of the program and what it moves by along each tangent; None where that is zero for all."""

    primal: Any
    tangents: tuple[Any, ...] | None = None

    @property
    def is_cut(self) -> bool:
        return isinstance(self.primal, _Cut)

    def map(self, fn: Callable[[Any], Any]) -> _Value:
        return _Value(fn(self.primal), self.tangents and tuple(map(fn, self.tangents)))


def _whole(value: _Value) -> _Value:
    return value.map(_Cut.copied) if value.is_cut else value


def _moving(value: _Value, count: int) -> _Value:
    return value if value.tangents else _Value(value.primal, (jnp.zeros_like(value.primal),) * count)


def _run(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[_Value]) -> list[_Value]:
    """The outputs of a program."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*map(_Value, consts), *inputs), strict=True))

    def read(var: Any) -> _Value:
        return _Value(var.val) if isinstance(var, jex.Literal) else known[var]

    for eqn in jaxpr.eqns:
        known.update(zip(eqn.outvars, _equation(eqn, [read(var) for var in eqn.invars]), strict=True))
    return [read(var) for var in jaxpr.outvars]


def _equation(eqn: Any, values: list[_Value]) -> list[_Value]:
    """The outputs of one operation."""
    name = eqn.primitive.name
    if name == "split" and eqn.params["axis"] == 0 and not values[0].is_cut:
        return _split(values[0], eqn.params["sizes"])
    if name == "scan":
        return _loop(eqn.params, values)
    values = list(map(_whole, values))
    if name in _CALLS:
        return _run(*_inner(eqn), values)
    primals, moved = [value.primal for value in values], [n for n, value in enumerate(values) if value.tangents]
    if not moved or name == "stop_gradient":
        return list(map(_Value, operate(eqn, primals)))

    def of_moved(*arrays: Array) -> tuple[list[Array], list[Any]]:
        changed = dict(zip(moved, arrays, strict=True))
        outputs = operate(eqn, [changed.get(n, primal) for n, primal in enumerate(primals)])
        return [output for output in outputs if _can_move(output)], outputs

    _, push, outputs = jax.linearize(of_moved, *(primals[n] for n in moved), has_aux=True)
    pushed = zip(*(push(*row) for row in zip(*(values[n].tangents for n in moved), strict=True)), strict=True)
    return [_Value(output, next(pushed) if _can_move(output) else None) for output in outputs]


def _split(value: _Value, sizes: Sequence[int]) -> list[_Value]:
    """The parts along the leading axis, nothing copied."""
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [value.map(partial(_Cut, start=end - size, end=end)) for size, end in zip(sizes, ends, strict=True)]


def _loop(params: Any, values: list[_Value]) -> list[_Value]:
    """What a `scan` carries at its end, and what its steps give."""
    body, length, kept = params["jaxpr"], params["length"], params["num_carry"]
    first, second = params["num_consts"], params["num_consts"] + kept
    consts, start, rows = list(map(_whole, values[:first])), list(map(_whole, values[first:second])), values[second:]
    count = next((len(value.tangents) for value in values if value.tangents), 0)
    moves = _carried(body.jaxpr, [value.tangents is not None for value in values], first, second)

    def step(carry: list[_Value], given: tuple[Array, list[_Value]]) -> tuple[list[_Value], list[_Value]]:
        number, parts = given[0], iter(given[1])
        slices = [value.map(lambda cut: cut.row(number)) if value.is_cut else next(parts) for value in rows]
        found = list(map(_whole, _run(body.jaxpr, body.consts, [*consts, *carry, *slices])))
        return matched(found[:kept]), found[kept:]

    def matched(carry: list[_Value]) -> list[_Value]:
        return [_moving(value, count) if move else value for value, move in zip(carry, moves, strict=True)]

    given = jnp.arange(length), [value for value in rows if not value.is_cut]
    # Not unrolled, whatever was asked for: XLA would keep what all steps have computed beside each other.
    end, each = jax.lax.scan(step, matched(start), given, length=length, reverse=params["reverse"])
    return [*end, *each]


def _carried(body: Any, moves: list[bool], first: int, second: int) -> list[bool]:
    """Which of what a loop carries, inputs `first` to `second` of its body, moves in some step of it."""
    while True:
        known = dict(zip(body.invars, moves, strict=True))
        for eqn in body.eqns:
            moved = any(known.get(var, False) for var in eqn.invars if not isinstance(var, jex.Literal))
            known |= {
                var: moved and eqn.primitive.name != "stop_gradient" and _can_move(var.aval) for var in eqn.outvars
            }
        after = [not isinstance(var, jex.Literal) and known.get(var, False) for var in body.outvars[: second - first]]
        both = [a or b for a, b in zip(after, moves[first:second], strict=True)]
        if both == moves[first:second]:
            return both
        moves = [*moves[:first], *both, *moves[second:]]


def _can_move(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.inexact)


def _inner(eqn: Any) -> tuple[Any, Sequence[Any]]:
    """The program of a call, and its constants."""
    inner = eqn.params[_CALLS[eqn.primitive.name]]
    return (inner.jaxpr, inner.consts) if isinstance(inner, jex.ClosedJaxpr) else (inner, ())


def _has_loop(jaxpr: Any) -> bool:
    names = ((eqn, eqn.primitive.name) for eqn in jaxpr.eqns)
    return any(name == "scan" or (name in _CALLS and _has_loop(_inner(eqn)[0])) for eqn, name in names)

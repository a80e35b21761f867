"""What each parameter of a model does, read off the program that JAX makes of it, whatever family the model is of.

The program (a jaxpr) is gone through operation by operation, loops over layers one step after the other. Of each value
it is known whether it depends on the inputs, and if not, on which leaves, and which entries of a leaf it holds where
it is a rearrangement of them. Where such entries meet data in a product over an axis, they are a dense layer's matrix.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jaxtyping import Array, PyTree

from tajax import trees
from tajax.operations import operate
from tajax.types import ApplyFn, Params

ADDITIVE = frozenset({"add", "concatenate", "gather", "select_n", "dynamic_update_slice", "pad", "sub"})
"""Operations in which a leaf is added to tokens, or stands among them: each of its rows acts on its own."""
_SAME = frozenset({"convert_element_type", "copy", "copy_p", "reduce_precision", "sharding_constraint"})
_CALLS = {
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_lin": "jaxpr",
}


class Block(NamedTuple):
    """K·M consecutive entries of a leaf that are the matrix of a dense layer, [K, M] in rows."""

    path: str
    number: int
    """Which of the blocks that the leaf is made of: of a leaf that stacks layers, the layer."""
    inputs: int
    outputs: int


class Seen(NamedTuple):
    """What a program does with each leaf, by path."""

    blocks: tuple[Block, ...]
    """In the order of the program; a block that is used twice stands there twice."""
    biases: tuple[tuple[Block, str, int], ...]
    """What is added to the outputs of a block: the path and the number of consecutive entries of another leaf."""
    others: Mapping[str, frozenset[str]]
    """The operations in which a leaf meets data in any other way."""


Tap = Callable[[Block, Array, Array], Array]
"""`(block, inputs [R, K], outputs [R, M]) -> outputs`, called at each dense layer with the rows of one call."""


@dataclasses.dataclass(frozen=True)
class _Value:
    """A value of the program, and where it is from."""

    array: Any
    data: bool = False
    """Whether it depends on the inputs."""
    leaves: frozenset[str] = frozenset()
    """The leaves on which it depends, if not on the inputs."""
    view: np.ndarray | None = None
    """Its entries as a view of a buffer as long as its only leaf; None if they are no rearrangement."""
    output_of: Block | None = None
    """The dense layer that it is the output of, nothing else having read it."""


def run(apply: ApplyFn, params: Params, inputs: PyTree[Array], tap: Tap | None = None) -> tuple[Array, Seen]:
    """What a model makes of its inputs, and what its parameters did there; for use under any transformation of JAX.

    Args:
        apply: `(params, inputs) -> outputs`, pure.
        params: its parameters.
        inputs: what it takes after them.
        tap: gives the outputs of each dense layer in place of what they are.

    Returns:
        The outputs, with the operations of `apply` on the parameters and inputs given, and what was seen.
    """
    flat, structure = trees.flatten_paths(params), jax.tree.structure(params)
    leaves, tree = jax.tree.flatten(inputs)

    def program(weights: Sequence[Array], rest: Sequence[Array]) -> Array:
        return apply(jax.tree.unflatten(structure, weights), jax.tree.unflatten(tree, rest))

    closed = jax.make_jaxpr(program)(list(flat.values()), leaves)
    walk = _Walk(tap or (lambda block, inputs, outputs: outputs))
    values = [walk.leaf(path, leaf) for path, leaf in flat.items()] + [_Value(leaf, data=True) for leaf in leaves]
    (out,) = walk.jaxpr(closed.jaxpr, [_Value(c) for c in closed.consts], values)
    others = {path: frozenset(names) for path, names in walk.others.items()}
    return out.array, Seen(tuple(walk.blocks), tuple(walk.biases), others)


class Matrices(NamedTuple):
    """A leaf that is the matrix of a dense layer in each of its layers, [L, K, M] in rows."""

    layers: int
    inputs: int
    outputs: int


def matrices(seen: Seen, params: Params) -> dict[str, Matrices]:
    """The leaves that are matrices of dense layers and nothing else, each used once: by path, in the program's order.

    Args:
        seen: from `run`.
        params: the parameters that it was given; leaves may be `jax.ShapeDtypeStruct`.

    Example:
        >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
        >>> _, seen = run(lambda p, x: x @ p["w"] + p["b"][None], params, jnp.ones((4, 3)))
        >>> matrices(seen, params)
        {'w': Matrices(layers=1, inputs=3, outputs=2)}
    """
    sizes = {path: math.prod(np.shape(leaf)) for path, leaf in trees.flatten_paths(params).items()}
    found: dict[str, Matrices] = {}
    for path in dict.fromkeys(block.path for block in seen.blocks):
        blocks = [block for block in seen.blocks if block.path == path]
        one = Matrices(len(blocks), blocks[0].inputs, blocks[0].outputs)
        whole = sorted(block.number for block in blocks) == list(range(one.layers))
        alike = all(block[2:] == one[1:] for block in blocks)
        if whole and alike and math.prod(one) == sizes[path] and not seen.others[path]:
            found[path] = one
    return found


class _Walk:
    """One way through a program."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self.blocks: list[Block] = []
        self.biases: list[tuple[Block, str, int]] = []
        self.others: dict[str, set[str]] = {}
        self.buffers: dict[str, np.ndarray] = {}

    def leaf(self, path: str, leaf: Any) -> _Value:
        """A leaf, all of it; of its buffer only addresses count, so that no memory is ever touched."""
        self.buffers[path] = np.empty(math.prod(np.shape(leaf)), np.uint8)
        self.others[path] = set()
        return _Value(leaf, leaves=frozenset({path}), view=self.buffers[path].reshape(np.shape(leaf)))

    def jaxpr(self, jaxpr: Any, consts: Sequence[_Value], inputs: Sequence[_Value]) -> list[_Value]:
        """The outputs of a program."""
        given = [dataclasses.replace(value, output_of=None) for value in (*consts, *inputs)]  # may be read twice here
        known: dict[Any, _Value] = dict(zip((*jaxpr.constvars, *jaxpr.invars), given, strict=True))
        readers: dict[Any, int] = {}
        for var in (v for eqn in jaxpr.eqns for v in eqn.invars):
            if not isinstance(var, jex.Literal):
                readers[var] = readers.get(var, 0) + 1
        for var in jaxpr.outvars:
            if not isinstance(var, jex.Literal):
                readers[var] = readers.get(var, 0) + 2  # and whoever reads it out there

        def read(var: Any) -> _Value:
            return _Value(var.val) if isinstance(var, jex.Literal) else known[var]

        for eqn in jaxpr.eqns:
            outputs = self.equation(eqn, [read(var) for var in eqn.invars])
            for var, value in zip(eqn.outvars, outputs, strict=True):
                alone = readers.get(var, 0) == 1
                known[var] = value if alone else dataclasses.replace(value, output_of=None)
        return [read(var) for var in jaxpr.outvars]

    def equation(self, eqn: Any, values: list[_Value]) -> list[_Value]:
        """The outputs of one operation."""
        name = eqn.primitive.name
        if any(value.leaves for value in values):
            if name in _CALLS and _CALLS[name] in eqn.params:
                inner = eqn.params[_CALLS[name]]
                closed = isinstance(inner, jex.ClosedJaxpr)
                consts = [_Value(c) for c in inner.consts] if closed else []
                return self.jaxpr(inner.jaxpr if closed else inner, consts, values)
            if name == "scan":
                return self.scan(eqn, values)
        arrays = operate(eqn, [value.array for value in values])
        if not any(value.data for value in values):
            leaves = frozenset[str]().union(*(value.leaves for value in values))
            views = self.rearranged(eqn, values) or [None] * len(arrays)
            return [_Value(array, leaves=leaves, view=view) for array, view in zip(arrays, views, strict=True)]
        if not any(value.leaves for value in values):
            block = values[0].output_of if name in (*_SAME, "reshape") and len(values) == 1 else None
            if block and (name in _SAME or arrays[0].shape[-1] == block.outputs):
                return [_Value(arrays[0], data=True, output_of=block)]
            return [_Value(array, data=True) for array in arrays]
        if name == "dot_general" and (found := self.product(eqn, values, arrays[0])):
            return [found]
        if name == "add" and self.is_bias(values):
            return [_Value(arrays[0], data=True)]
        for value in values:
            for path in value.leaves:
                self.others[path].add(name)
        return [_Value(array, data=True) for array in arrays]

    def scan(self, eqn: Any, values: list[_Value]) -> list[_Value]:
        """A loop, one step after the other: each layer of a stack is a layer of its own."""
        params = eqn.params
        first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
        consts, carry, stacked = values[:first], values[first:second], values[second:]
        body, length = params["jaxpr"], params["length"]
        steps: list[list[_Value]] = [[] for _ in range(length)]
        for number in reversed(range(length)) if params["reverse"] else range(length):
            slices = [
                dataclasses.replace(
                    value, array=value.array[number], view=None if value.view is None else value.view[number]
                )
                for value in stacked
            ]
            outputs = self.jaxpr(body.jaxpr, [_Value(c) for c in body.consts], [*consts, *carry, *slices])
            carry, steps[number] = outputs[: len(carry)], outputs[len(carry) :]
        each = [
            _Value(
                jnp.stack([one.array for one in column]),
                data=any(one.data for one in column),
                leaves=frozenset[str]().union(*(one.leaves for one in column)),
            )
            for column in zip(*steps, strict=True)
        ]
        if not each:  # a loop of no steps, or without outputs but the carry
            each = [_Value(jnp.zeros(var.aval.shape, var.aval.dtype)) for var in eqn.outvars[len(carry) :]]
        return [*(dataclasses.replace(value, output_of=None) for value in carry), *each]

    def rearranged(self, eqn: Any, values: list[_Value]) -> list[np.ndarray | None] | None:
        """Views of the outputs of an operation that only moves entries; None of any other."""
        name, params = eqn.primitive.name, eqn.params
        view = next((value.view for value in values if value.leaves), None)
        if view is None or len([value for value in values if value.leaves]) > 1:
            return None
        shape = eqn.outvars[0].aval.shape
        if name in _SAME:
            return [view]
        if name == "squeeze" or (name == "reshape" and params["dimensions"] is None):
            again = view.reshape(shape)
            return [again if view.size == 0 or np.shares_memory(again, view) else None]
        if name == "transpose":
            return [view.transpose(params["permutation"])]
        if name == "broadcast_in_dim":
            sizes = [1] * len(shape)
            for axis, size in zip(params["broadcast_dimensions"], view.shape, strict=True):
                sizes[axis] = size
            return [np.broadcast_to(view.reshape(sizes), shape)]
        if name == "slice":
            steps = params["strides"] or (1,) * view.ndim
            ends = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
            return [view[tuple(slice(*one) for one in ends)]]
        if name == "split":
            ends = np.cumsum(params["sizes"])[:-1].tolist()
            return list(np.split(view, ends, axis=params["axis"]))
        return None

    def consecutive(self, value: _Value, view: np.ndarray) -> tuple[str, int] | None:
        """The path and the number of the block that a view holds in order; None if it does not."""
        (path,) = value.leaves
        buffer = self.buffers[path]
        if not (view.size and view.flags.c_contiguous) or buffer.size % view.size:
            return None
        number, rest = divmod(_address(view) - _address(buffer), view.size)
        return None if rest else (path, number)

    def product(self, eqn: Any, values: list[_Value], array: Array) -> _Value | None:
        """The output of a dense layer; None if the product is none."""
        (contracted, batched), sides = eqn.params["dimension_numbers"], values[:2]
        if any(map(len, batched)) or sides[0].data == sides[1].data:
            return None
        which = 0 if sides[1].data else 1  # the side of the matrix
        matrix, data = sides[which], sides[1 - which]
        if matrix.view is None or len(matrix.leaves) != 1:
            return None
        over = tuple(contracted[which])
        kept = tuple(axis for axis in range(matrix.view.ndim) if axis not in over)
        turned = matrix.view.transpose(*over, *kept)
        k, m = (math.prod(matrix.view.shape[axis] for axis in axes) for axes in (over, kept))
        place = self.consecutive(matrix, turned)
        if place is None:
            return None
        block = Block(*place, k, m)
        x = jnp.moveaxis(data.array, contracted[1 - which], range(-len(over), 0)).reshape(-1, k)
        rows = array if which else jnp.moveaxis(array, range(len(kept)), range(-len(kept), 0))
        tapped = self.tap(block, x, rows.reshape(-1, m)).reshape(rows.shape)
        self.blocks.append(block)
        out = tapped if which else jnp.moveaxis(tapped, range(-len(kept), 0), range(len(kept)))
        return _Value(out, data=True, output_of=block if which and len(kept) == 1 else None)

    def is_bias(self, values: list[_Value]) -> bool:
        """Whether a sum adds a vector to the outputs of a dense layer, the same to each row; it is then noted."""
        rows, bias = sorted(values, key=lambda value: not value.data)
        block, view = rows.output_of, bias.view
        if block is None or view is None or len(bias.leaves) != 1 or view.ndim == 0 or view.shape[-1] != block.outputs:
            return False
        if any(stride for stride, size in zip(view.strides[:-1], view.shape[:-1], strict=True) if size > 1):
            return False
        vector = view[(0,) * (view.ndim - 1)]
        place = self.consecutive(bias, vector)
        if place is not None:
            self.biases.append((block, *place))
        return place is not None


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])

"""What stands for the curvature of each leaf: Kronecker factors, a full matrix, or rows; or the leaf is refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from tajax import trees
from tajax.tracing import ADDITIVE, Seen, matrices
from tajax.types import Params

LARGEST_GRAM = 2048
"""Numbers of a leaf, or of a layer of one that stacks them, up to which all their products are kept."""


class Dense(NamedTuple):
    """A leaf that is the matrix of a dense layer in each of its layers, [L, K, M] in rows, and what is added."""

    kernel: str
    bias: str | None
    layers: int
    inputs: int
    outputs: int

    @property
    def name(self) -> str:
        """The paths of its leaves."""
        return self.kernel if self.bias is None else f"{self.kernel}{JOINT}{self.bias}"


JOINT = " + "
"""Between the paths of a kernel and its bias, which have one pair of factors."""


class Roles(NamedTuple):
    """How each trained leaf is taken; the leaves that are not trained are in none."""

    dense: tuple[Dense, ...]
    rows: Mapping[str, tuple[int, int, int]]
    """Tables [L, V, D] of vectors that are added to tokens, such as positions: by path, their shape."""
    gram: Mapping[str, tuple[int, int]]
    """All others, which are small: by path, layers and numbers of a layer [L, n]."""


def roles(seen: Seen, params: Params, trained: Collection[str], *, stacked: str | None) -> Roles:
    """How the curvature of each trained leaf is kept.

    A leaf that is the matrix of one dense layer, or of one a layer, each used once, has Kronecker factors, its bias
    with it. Any other leaf has the full second moment of its gradients if it has at most `LARGEST_GRAM` numbers a
    layer: scales and biases of norms, class tokens. A larger table whose rows are added to tokens or stand among them
    is taken row by row. Nothing else is known.

    Args:
        seen: from `tajax.tracing.run`.
        params: leaves may be `jax.ShapeDtypeStruct`.
        trained: paths of the leaves that are trained.
        stacked: the node below which leaves stack layers along their leading axis; None if there is none.

    Raises:
        ValueError: a trained leaf is none of these; its path, shape and operations are named.
    """
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in trees.flatten_paths(params).items()}
    known, multiplied = _dense(seen, params, shapes), {block.path for block in seen.blocks}
    dense = tuple(one for one in known.values() if one.kernel in trained or one.bias in trained)
    biases = {one.bias for one in dense if one.bias}
    rows: dict[str, tuple[int, int, int]] = {}
    gram: dict[str, tuple[int, int]] = {}
    for path in shapes:
        if path not in trained or path in known or path in biases:
            continue
        layered = stacked is not None and stacked in path.split("/")
        layers, shape = (shapes[path][0], shapes[path][1:]) if layered else (1, shapes[path])
        if math.prod(shape) <= LARGEST_GRAM:
            gram[path] = (layers, math.prod(shape))
        elif len(shape) == 2 and shape[1] <= LARGEST_GRAM and path not in multiplied and seen.others[path] <= ADDITIVE:
            rows[path] = (layers, *shape)
        else:
            raise ValueError(
                f"no curvature is known for the leaf {path!r} of shape {shapes[path]}, which the model uses by "
                f"{', '.join(sorted(seen.others[path])) or 'one product more than once, or in parts'}: known are dense "
                f"layers, tables whose rows are added to tokens, and leaves of at most {LARGEST_GRAM} numbers a layer. "
                "Leave it out of what is trained, such as by --config.trainable=attention."
            )
    return Roles(dense, rows, gram)


def _dense(seen: Seen, params: Params, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Dense]:
    """The leaves that are matrices of dense layers and nothing else, by path, each with its bias."""
    found: dict[str, Dense] = {}
    for path, (layers, k, m) in matrices(seen, params).items():
        pairs = {(block.number, bias, number) for block, bias, number in seen.biases if block.path == path}
        candidates = {bias for _, bias, _ in pairs}
        bias = candidates.pop() if len(candidates) == 1 else None
        alone = bias is not None and not seen.others[bias]
        if alone and {(n, n) for n in range(layers)} == {(n, number) for n, _, number in pairs}:
            mine = sum(1 for _, other, _ in seen.biases if other == bias) == layers
            bias = bias if mine and layers * m == math.prod(shapes[bias or ""]) else None
        else:
            bias = None
        found[path] = Dense(path, bias, layers, k, m)
    return found

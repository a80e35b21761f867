"""A method and its oracle on the same trees of small integers: what the contract tests, and tables of them, hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.typing import DTypeLike

from tajax import trees
from tajax.merging import METHODS
from tajax.types import Params
from tests.merging.oracles import ORACLES, SHAPES

N = sum(int(np.prod(shape)) for shape in SHAPES.values())


def draws(key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """θ₀ [N] and three task vectors [3, N] of small integers: their sums are exact in any order."""
    drawn = np.asarray(jax.random.randint(key, (4, N), -9, 10), np.float64)
    return drawn[0], drawn[1:]


def tree_of(vector: np.ndarray, dtype: DTypeLike = np.float32) -> Params:
    """The numbers of a vector as a tree of the paths and shapes of the oracles."""
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])[:-1]
    parts = np.split(np.asarray(vector, dtype), ends)
    return trees.unflatten_paths({p: part.reshape(s) for (p, s), part in zip(SHAPES.items(), parts, strict=True)})


def vector_of(tree: Params) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def float64_of(tree: Params) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf, np.float64) for path, leaf in trees.flatten_paths(tree).items()}


def fitted(name: str, like: Params, order: Sequence[int] | None = None) -> Mapping[str, object]:
    """What a method that needs data found for trees like this one, the tasks in their order or in another."""
    found = ORACLES[name].fitted(trees.flatten_paths(like), ORACLES[name].tasks)
    return found if order is None else jax.tree.map(lambda leaf: leaf[np.array(order)], found)


def vectors_for(name: str, taus: np.ndarray) -> np.ndarray:
    """As many task vectors [N] as the method is tried with, in its unit."""
    return ORACLES[name].unit * taus[: ORACLES[name].tasks]


def both(
    name: str, theta: np.ndarray, taus: np.ndarray, merge: Callable[..., Params] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By path the leaves that a method makes of these vectors [N] and [T, N], and those of its oracle, in float64.

    Args:
        name: of the method.
        theta: θ₀, in the precision in which it is merged.
        taus: the task vectors, likewise.
        merge: `(pretrained, taus, **found) -> params`; without one the method itself, with the options of its case.
    """
    case = ORACLES[name]
    pretrained, vectors = tree_of(theta, theta.dtype), [tree_of(tau, taus.dtype) for tau in taus]
    want = case.oracle(float64_of(pretrained), [float64_of(tau) for tau in vectors])
    if merge is None:
        merged = METHODS[name](pretrained, vectors, **case.options, **fitted(name, pretrained))
    else:
        merged = merge(pretrained, vectors, **fitted(name, pretrained))
    assert jax.tree.structure(merged) == jax.tree.structure(pretrained)
    return {path: (leaf, want[path]) for path, leaf in trees.flatten_paths(merged).items()}

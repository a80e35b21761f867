"""The weight matrices of task vectors, or all their tensors, one by one: of stacked layers each its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.rules import STACKED
from tajax.types import Params, Tree

FUSED = ("query", "key", "value")
"""Siblings that some libraries keep in one matrix, side by side in its outputs."""

TEXT_PROJECTION = "text[/_]projection(/kernel)?"
"""The last matrix of a CLIP's text tower, which the code of several papers averages as it does vectors."""

_TABLE = re.compile(r"(?:.*[/_])?embeddings?(?:/embedding|/kernel|/weight)?")


def is_matrix(path: str, leaf: ArrayLike, *, stacked: str | None = STACKED) -> bool:
    """Whether a leaf is the kernel of a linear map, [in, out], or stacks one for each layer, [L, in, out].

    Tables of embeddings are none, though they have two axes: a row of theirs is a vector of its own. Nor are kernels of
    convolutions, which have more axes.

    Example:
        >>> [is_matrix(path, np.ones((2, 3))) for path in ("mlp/kernel", "blocks/ln_1/scale", "position_embedding")]
        [True, False, False]
    """
    shape = np.shape(leaf)[int(in_layers(path, stacked)) :]
    return len(shape) == 2 and min(shape) > 1 and not _TABLE.fullmatch(path)


def map_matrices(
    matrix: Callable[[Array], Array],
    other: Callable[[Array], Array],
    taus: Sequence[Params],
    *,
    stacked: str | None = STACKED,
    fused: bool = False,
    exclude: str = "",
) -> Params:
    """One tree of T: `matrix([T, in, out]) -> [in, out]` of every matrix, `other([T, ...]) -> [...]` of all else.

    Args:
        matrix: is mapped over the layers of a leaf that stacks them, one after the other (`jax.lax.map`): it sees one
            layer's matrices, and what it needs beside them is there for one layer at a time. Products in it are of
            full precision on every device.
        other: sees vectors, scalars, embeddings and kernels of convolutions, with the axis of layers where they have
            one. Not what is empty, which stays as it is.
        taus: T task vectors, trees of the same paths and shapes.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.
        fused: whether query, key and value of one module are one matrix [in, 3 out], as open_clip and the papers' code
            keep them, and not three, as Hugging Face and we do. Spectra are other ones then.
        exclude: a regular expression; matrices whose whole path it matches, or all of the path that follows a slash,
            are for `other`. Nothing by default.

    Returns:
        A tree like the first vector, in float32 or wider.

    Raises:
        ValueError: there are no vectors, the trees differ, or `exclude` is not a valid regular expression.

    Example:
        >>> taus = [{"kernel": jnp.eye(2), "bias": jnp.ones(2)}, {"kernel": 3 * jnp.eye(2), "bias": jnp.ones(2)}]
        >>> map_matrices(lambda m: jnp.max(m, axis=0), lambda b: jnp.sum(b, axis=0), taus)
        {'bias': Array([2., 2.], dtype=float32), 'kernel': Array([[3., 0.],
               [0., 3.]], dtype=float32)}
    """
    trees.check_taus(taus)
    excluded, of_layers = _pattern(exclude), each_layer(matrix)
    flats = [trees.flatten_paths(tau) for tau in taus]
    merged: dict[str, Array] = {}
    for group in groups(list(flats[0]), fused):
        leaves = [stack([flat[path] for flat in flats]) for path in group]
        path, axis = group[0], int(in_layers(group[0], stacked))
        if leaves[0].size == 0:
            merged[path] = leaves[0][0]
        elif all(is_matrix(p, flats[0][p], stacked=stacked) and not excluded.fullmatch(p) for p in group):
            ends = np.cumsum([leaf.shape[-1] for leaf in leaves])[:-1].tolist()
            with jax.default_matmul_precision("highest"):
                stacks = jnp.concatenate(leaves, axis=-1)
                mapped = of_layers(stacks) if axis else matrix(stacks)
            parts = jnp.split(mapped, ends, axis=-1)
            merged.update(zip(group, parts, strict=True))
        else:
            merged.update((p, other(leaf)) for p, leaf in zip(group, leaves, strict=True))
    return jax.tree.unflatten(jax.tree.structure(taus[0]), [merged[path] for path in flats[0]])


def map_tensors(tensor: Callable[[Array], Array], taus: Sequence[Params], *, stacked: str | None = STACKED) -> Params:
    """One tree of T: `tensor([T, ...]) -> [...]` of every tensor, where layers are stacked of each layer's.

    Args:
        tensor: is mapped over the layers of a leaf that stacks them (`jax.vmap`). It does not see what is empty, which
            stays as it is.
        taus: T task vectors, trees of the same paths and shapes.
        stacked: the node below which leaves have the layers along their leading axis, None if there is none.

    Returns:
        A tree like the first vector, in float32 or wider.

    Example:
        >>> taus = [{"blocks": {"scale": jnp.array([[3.0, 0.0], [0.0, 2.0]])}, "scale": jnp.array([5.0, 0.0])}]
        >>> map_tensors(lambda leaf: leaf[0] / jnp.max(leaf), taus)  # each layer by its own maximum
        {'blocks': {'scale': Array([[1., 0.],
               [0., 1.]], dtype=float32)}, 'scale': Array([1., 0.], dtype=float32)}
    """
    trees.check_taus(taus)
    flats = [trees.flatten_paths(tau) for tau in taus]
    merged, whole = [], jax.jit(tensor)  # leaves of one shape, and calls with one `tensor`, share a program
    for path in flats[0]:
        leaves = stack([flat[path] for flat in flats])
        mapped = jax.vmap(whole, in_axes=1) if in_layers(path, stacked) else whole
        merged.append(mapped(leaves) if leaves.size else leaves[0])
    return jax.tree.unflatten(jax.tree.structure(taus[0]), merged)


def stack(leaves: Sequence[ArrayLike]) -> Array:
    """One leaf of T vectors as [T, ...], in float32 or wider."""
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    return jnp.stack([array.astype(jnp.result_type(jnp.float32, *arrays)) for array in arrays])


def each_layer(matrix: Callable[[Array], Tree]) -> Callable[[Array], Tree]:
    """`matrix` of [T, ...] as a function of [T, L, ...], which sees one layer after the other.

    Example:
        >>> each_layer(lambda layer: layer[0] - layer[1])(jnp.array([[[3.0], [5.0]], [[1.0], [2.0]]])).tolist()
        [[2.0], [3.0]]
    """

    @jax.jit  # leaves of one shape share a program
    def of_stack(stacks: Array) -> Tree:
        def of_layer(layer: Array) -> Tree:
            return matrix(jax.lax.dynamic_index_in_dim(stacks, layer, axis=1, keepdims=False))

        return jax.lax.map(of_layer, jnp.arange(stacks.shape[1]))

    return of_stack


def _pattern(exclude: str) -> re.Pattern[str]:
    try:
        return re.compile(f"(?:.*/)?(?:{exclude})" if exclude else "(?!)")
    except re.error as error:
        raise ValueError(f"exclude is {exclude!r}, which is not a valid regular expression: {error}") from error


def in_layers(path: str, stacked: str | None) -> bool:
    """Whether a leaf lies below the node that stacks layers."""
    return stacked is not None and stacked in path.split("/")


def groups(paths: Sequence[str], fused: bool) -> list[tuple[str, ...]]:
    """Paths one by one; with `fused` query, key and value of a module together, if all three are there."""
    if not fused:
        return [(path,) for path in paths]
    found: dict[str, tuple[str, ...]] = {}
    for path in paths:
        parts = path.split("/")
        names = [at for at, part in enumerate(parts) if part in FUSED]
        siblings = (
            tuple("/".join([*parts[: names[-1]], name, *parts[names[-1] + 1 :]]) for name in FUSED) if names else ()
        )
        group = siblings if siblings and set(siblings) <= set(paths) else (path,)
        found.setdefault(group[0], group)
    return list(found.values())

"""Single entries of leaves that are trained, while the others keep every bit: how they are chosen, kept and moved."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jax import Array

from tajax import trees
from tajax.parametrization import Parametrization
from tajax.types import Mask, Params, Trained

__all__ = ["entries", "packed", "smallest", "unpacked"]


def smallest(scores: Mapping[str, np.ndarray], count: int, among: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The `count` entries with the smallest scores, over all leaves together.

    Of equal scores those of earlier leaves, and within a leaf those that lie earlier in memory, come first.

    Args:
        scores: of each leaf an array of numbers, NaN nowhere.
        count: how many, from 1 to as many as there are in `among`.
        among: of each leaf a bool array of its shape: the entries that may be chosen.

    Returns:
        Of each leaf a bool array, True in exactly `count` places in all.

    Raises:
        ValueError: a score among them is NaN, or there are not so many entries.

    Example:
        >>> everywhere = {"a": np.ones(2, bool), "b": np.ones(2, bool)}
        >>> smallest({"a": np.array([3.0, 1.0]), "b": np.array([1.0, 0.0])}, 2, everywhere)
        {'a': array([False,  True]), 'b': array([False,  True])}
    """
    values = np.concatenate([scores[path][chosen] for path, chosen in among.items()])
    if np.isnan(values).any():
        raise ValueError(f"{np.isnan(values).sum()} of {len(values)} scores are not a number, so they have no order")
    if not 1 <= count <= len(values):
        raise ValueError(f"{count} entries are to be chosen among {len(values)}")
    limit = np.partition(values, count - 1)[count - 1]
    ties = count - int(np.sum(values < limit))
    found = {}
    for path, chosen in among.items():
        kept = np.array(chosen & (scores[path] < limit))  # of a scalar leaf no number, but an array to set
        equal = np.flatnonzero(chosen & (scores[path] == limit))[:ties]
        kept.reshape(-1)[equal] = True
        ties -= len(equal)
        found[path] = kept
    return found


def packed(chosen: np.ndarray) -> np.ndarray:
    """A bool array as bits, uint8 [⌈size / 8⌉], in the order of memory; what fills the last byte is 0."""
    return np.packbits(chosen.reshape(-1))


def unpacked(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The bool array of a shape that `packed` made bits of.

    Raises:
        ValueError: the bits are not uint8, not as many as the shape wants, or say something beyond its end.

    Example:
        >>> unpacked(packed(np.array([[True, False, True]])), (1, 3))
        array([[ True, False,  True]])
    """
    size = int(np.prod(shape))
    if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
        raise ValueError(f"bits of {size} entries are uint8 [{-(-size // 8)}], not {bits.dtype} {list(bits.shape)}")
    whole = np.unpackbits(bits)
    if whole[size:].any():
        raise ValueError(f"bits of {size} entries have one set behind the last entry")
    return whole[:size].astype(bool).reshape(shape)


def entries(mask: Mask | None, chosen: Mapping[str, np.ndarray]) -> Parametrization:
    """Chosen entries of what a mask trains: of each leaf a vector, whose gradients and moments are all there are.

    The places are constants of whatever is compiled with them, 4 bytes an entry.

    Args:
        mask: as of `tajax.parametrization.masked`.
        chosen: of each trained leaf a bool array of its shape, of a leaf that is trained in some layers of that of
            those layers. Leaves without a chosen entry are frozen.

    Returns:
        A parametrization: `init` gives [k] for each leaf with k > 0 entries, in the order of memory and the dtype of
        the leaf, by path. Entries that are not chosen come from θ₀ bit for bit.

    Raises:
        ValueError: nothing is chosen, or a leaf has more than 2³¹ − 1 entries; from its functions, that an array has
            not the shape of its leaf, or the leaf is not trained.

    Example:
        >>> import jax.numpy as jnp
        >>> parts = entries(None, {"w": np.array([[False, True], [True, False]])})
        >>> parts.init({"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])})
        {'w': Array([2., 3.], dtype=float32)}
        >>> parts.restore({"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}, {"w": jnp.array([-2.0, -3.0])})
        {'w': Array([[ 1., -2.],
                     [-3.,  4.]], dtype=float32)}
    """
    places = {path: np.flatnonzero(where) for path, where in chosen.items() if where.any()}
    if not places:
        raise ValueError("no entry of any leaf is chosen, so nothing is trained")
    for path in places:
        if chosen[path].size > np.iinfo(np.int32).max:
            raise ValueError(f"{path!r} has {chosen[path].size} entries, more than single ones are told apart in")
    places = {path: where.astype(np.int32) for path, where in places.items()}

    def trained_part(pretrained: Params) -> tuple[Trained, Trained]:
        whole, _ = trees.split(pretrained, mask)
        for path in places:
            if path not in whole or whole[path].shape != chosen_shapes[path]:
                found = f"has shape {whole[path].shape}" if path in whole else "is not trained"
                raise ValueError(f"entries of {path!r} are chosen in shape {chosen_shapes[path]}, but it {found}")
        return whole, {path: whole[path].reshape(-1) for path in places}

    def init(pretrained: Params) -> Trained:
        return {path: leaf[places[path]] for path, leaf in trained_part(pretrained)[1].items()}

    def restore(pretrained: Params, trained: Trained) -> Params:
        whole, flat = trained_part(pretrained)

        def moved(path: str) -> Array:
            setting = flat[path].at[places[path]]
            return setting.set(trained[path], unique_indices=True, indices_are_sorted=True).reshape(whole[path].shape)

        return trees.split(pretrained, mask)[1](whole | {path: moved(path) for path in places})

    chosen_shapes = {path: chosen[path].shape for path in places}
    return Parametrization(init, restore)

"""What is done to task vectors before any method merges them: trimmed, thinned, rescaled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.merging.method import Method
from tajax.merging.methods.ties import keep_largest
from tajax.options import Option
from tajax.task_vectors import norm
from tajax.types import Params


@dataclass(frozen=True, eq=False)
class Preparation:
    """A row of `PREPARATIONS`. It is called as its function is, `(taus, *, …) -> taus`.

    Attributes:
        prepare: the function: T task vectors to T others, in float32 or wider.
        alone: what it does to one of them, `(tau, *, key of that vector if it draws, what is shared, **options) ->
            tau`, for vectors that do not fit into memory together.
        options: by keyword, what configs may choose; not `key`.
        random: whether it draws; it then takes a PRNG `key`.
        shared: what it must know of all vectors before, by keyword, found in one pass over them; None if nothing.
    """

    prepare: Callable[..., list[Params]]
    alone: Callable[..., Params]
    options: Mapping[str, Option] = field(default_factory=dict)
    random: bool = False
    shared: Callable[[Iterable[Params]], Mapping[str, Any]] | None = None

    # Any, as in MergeFn.
    def __call__(self, taus: Sequence[Params], **options: Any) -> list[Params]:
        """The prepared vectors: trees like `taus`."""
        return self.prepare(taus, **options)


def trim(taus: Sequence[Params], *, density: float = 0.2) -> list[Params]:
    """The entries of each vector of largest magnitude over all its leaves, and zeros elsewhere, as in TIES.

    Args:
        taus: T task vectors.
        density: share of the entries to keep, in (0, 1]. A Python number, known when compiling.

    Raises:
        ValueError: `density` is out of range, or there are no vectors, or they differ.

    Source:
        Yadav et al. 2023, "TIES-Merging", §4.

    Example:
        >>> trim([{"w": jnp.array([1.0, -5.0, 3.0, 0.0])}], density=0.5)
        [{'w': Array([ 0., -5.,  3.,  0.], dtype=float32)}]
    """
    trees.check_taus(taus)
    return [keep_largest(tau, density) for tau in taus]


def drop(taus: Sequence[Params], *, key: Array, drop_rate: float = 0.5) -> list[Params]:
    """Entries dropped at random, the others scaled up, as in DARE: τ̃_t = τ_t ⊙ m / (1 − p) with m ~ Bernoulli(1 − p).

    Args:
        taus: T task vectors. Each is thinned by its own draw.
        key: PRNG key; the same key gives the same vectors.
        drop_rate: p in [0, 1), the share of entries dropped. A Python number, known when compiling.

    Raises:
        ValueError: `drop_rate` is out of range, or there are no vectors, or they differ.

    Source:
        Yu et al. 2024, "Language Models are Super Mario", §3.

    Example:
        >>> drop([{"w": jnp.ones(6)}], key=jax.random.key(0))
        [{'w': Array([2., 0., 2., 0., 2., 2.], dtype=float32)}]
    """
    trees.check_taus(taus)
    return [thin(k, tau, drop_rate) for k, tau in zip(_keys(key, taus), taus, strict=True)]


def rescale(taus: Sequence[Params]) -> list[Params]:
    """All vectors made as long as they are on average, τ_t · (1/T) Σ_u ‖τ_u‖ / ‖τ_t‖, so that none outweighs another.

    A vector that is zero stays so, and counts in the mean.

    Args:
        taus: T task vectors.

    Raises:
        ValueError: there are no vectors, or they differ.

    Example:
        >>> rescale([{"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([0.0, -1.0])}])
        [{'w': Array([2., 0.], dtype=float32)}, {'w': Array([ 0., -2.], dtype=float32)}]
    """
    trees.check_taus(taus)
    shared = mean_length(taus)
    return [lengthened(tau, **shared) for tau in taus]


def mean_length(taus: Iterable[Params]) -> dict[str, Array]:
    """What `lengthened` takes, (1/T) Σ_t ‖τ_t‖; the vectors are gone through once.

    Example:
        >>> mean_length([{"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.0, -1.0])}])
        {'length': Array(3., dtype=float32)}
    """
    lengths = [_norm(tau) for tau in taus]
    return {"length": sum(lengths[1:], start=lengths[0]) / len(lengths)}


def lengthened(tau: Params, *, length: ArrayLike) -> Params:
    """One vector made so long, τ · length / ‖τ‖; zero stays zero.

    Example:
        >>> lengthened({"w": jnp.array([3.0, 4.0])}, length=10.0)
        {'w': Array([6., 8.], dtype=float32)}
    """
    own = _norm(tau)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) * (length / jnp.where(own > 0, own, 1)), tau)


_norm = jax.jit(norm)  # one pass, without an array of squares


def thin(key: Array, tau: Params, drop_rate: float) -> Params:
    """One vector with entries dropped at random and the others scaled up: what `drop` does to each.

    Raises:
        ValueError: `drop_rate` is not in [0, 1).
    """
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate is the share of entries to drop, in [0, 1); got {drop_rate}")
    leaves, structure = jax.tree.flatten(tau)

    def thinned(key: Array, leaf: ArrayLike) -> Array:
        keep = jax.random.bernoulli(key, 1 - drop_rate, jnp.shape(leaf))
        return jnp.where(keep, leaf / (1 - drop_rate), 0)

    return jax.tree.unflatten(structure, list(map(thinned, _keys(key, leaves), leaves)))


def _keys(key: Array, items: Sequence[object]) -> list[Array]:
    return list(jax.random.split(key, len(items)))


PREPARATIONS: Mapping[str, Preparation] = {
    "drop": Preparation(
        drop,
        alone=lambda tau, *, key, drop_rate=0.5: thin(key, tau, drop_rate),
        options={
            "drop_rate": Option(0.5, "share of entries dropped at random", lambda v: 0 <= v < 1, "a share below 1"),
        },
        random=True,
    ),
    "rescale": Preparation(rescale, alone=lengthened, shared=mean_length),
    "trim": Preparation(
        trim,
        alone=lambda tau, *, density=0.2: keep_largest(tau, density),
        options={
            "density": Option(
                0.2, "share of entries, the largest, that stay", lambda v: 0 < v <= 1, "a share above 0, at most 1"
            ),
        },
    ),
}
"""Every preparation by the name that configs use, none of them that of a method."""


def compose(preparation: Preparation, method: Method, **options: Any) -> Method:  # Any: those of the preparation
    """The method that merges prepared vectors: another row, with the options of `method`.

    Prepared vectors are the same for every θ₀ and λ, so that a method that is affine stays so. They are prepared as
    wholes: the composed method never goes leaf by leaf. What a method finds out from data (`Method.fit`) it finds out
    about the vectors as they were.

    Args:
        preparation: of `PREPARATIONS`, or another.
        method: of `METHODS`, another, or a composed one: the outermost preparation is applied first.
        **options: of the preparation, its defaults otherwise.

    Returns:
        A method. If it draws it takes one `key`, of which preparation and method have a half each if both do.

    Raises:
        ValueError: the preparation has no option of that name. Values are checked when it is called.

    Example:
        >>> from tajax.merging import METHODS
        >>> trimmed = compose(PREPARATIONS["trim"], METHODS["task_arithmetic"], density=0.5)
        >>> trimmed({"w": jnp.zeros(2)}, [{"w": jnp.array([4.0, 1.0])}], scaling_coef=0.5)
        {'w': Array([2., 0.], dtype=float32)}
    """
    for keyword in options:
        if keyword not in preparation.options:
            has = ", ".join(preparation.options) or "none"
            raise ValueError(f"the preparation has no option {keyword!r}. It has: {has}")

    random = preparation.random or method.random

    def merge(pretrained: Params, taus: Sequence[Params], *, key: Array | None = None, **given: Any) -> Params:
        trees.check_taus(taus, pretrained)
        if key is None and random:
            raise TypeError("this method draws: give it a PRNG key")
        first = second = key
        if key is not None and preparation.random and method.random:
            first, second = jax.random.split(key)
        prepared = preparation(taus, **options, **({"key": first} if preparation.random else {}))
        return method(pretrained, prepared, **given, **({"key": second} if method.random else {}))

    return dataclasses.replace(method, merge=merge, random=random, by_leaf=False, alone=None)

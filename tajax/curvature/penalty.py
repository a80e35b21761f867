"""How far a change of the parameters moves the features of a task, from its factors alone: no example is looked at."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tajax.curvature.factors import Factors, Kronecker
from tajax.curvature.roles import JOINT
from tajax.types import Trained

__all__ = ["WEIGHTINGS", "energies", "per_task", "reweighted", "selected", "summed", "total"]


def energies(factors: Factors, tau: Trained) -> dict[str, Float[Array, ""]]:
    """Of each leaf, or kernel with its bias, about E‖Jτ‖²: tr(B ΔWᵀ A ΔW), or the exact τᵀ(E ggᵀ)τ.

    Args:
        factors: of a task; `tajax.curvature.factors` says what is exact.
        tau: τ by path, whole leaves; what is not in it has not moved.

    Returns:
        Scalars, none negative but for rounding, by the names that the factors have. Two products with the size of each
        leaf, and none for their gradients, so that they may be differentiated once, in τ, and not again.

    Raises:
        ValueError: a leaf of τ has no factor.
    """
    covered = {path for name in (*factors.kronecker, *factors.gram) for path in name.split(JOINT)}
    if missing := [path for path in tau if path not in covered]:
        raise ValueError(f"the factors know nothing of {missing[0]!r} ({len(missing)} such leaves)")
    found: dict[str, Array] = {}
    for name, factor in factors.kronecker.items():
        if any(path in tau for path in name.split(JOINT)):
            found[name] = _of_kronecker(factor, name, tau)
    for path, gram in factors.gram.items():
        if path in tau:
            moved = tau[path].reshape(gram.shape[:2])
            found[path] = _quadratic(moved, jnp.einsum("lnm,lm->ln", gram.astype(moved.dtype), moved))
    return found


def _of_kronecker(factor: Kronecker, name: str, tau: Trained) -> Array:
    kernel, _, bias = name.partition(JOINT)
    a, b = factor.inputs, factor.outputs
    layers, width = b.shape[:2]
    rows = a.shape[1] - bool(bias)
    like = next(tau[path] for path in (kernel, bias) if path in tau)
    moved = tau[kernel].reshape(layers, rows, width) if kernel in tau else jnp.zeros((layers, rows, width), like.dtype)
    if bias:
        last = tau[bias].reshape(layers, 1, width) if bias in tau else jnp.zeros((layers, 1, width), like.dtype)
        moved = jnp.concatenate([moved, last], axis=1)
    a, b = a.astype(moved.dtype), b.astype(moved.dtype)
    return _quadratic(moved, (a[..., None] * moved if a.ndim == 2 else a @ moved) @ b)


def _quadratic(tau: Array, image: Array) -> Array:
    """⟨τ, Mτ⟩ of a symmetric M, from τ and Mτ, with the gradient 2Mτ, for which nothing goes back through M."""
    once = jnp.sum(tau * jax.lax.stop_gradient(image))
    return 2 * once - jax.lax.stop_gradient(once)


def selected(factors: Factors, trained: Collection[str]) -> Factors:
    """The factors that concern any of the leaves.

    Raises:
        ValueError: a leaf has none; it is named.
    """
    concerned = functools.partial(_concerns, frozenset(trained))
    kept = factors._replace(
        kronecker={name: factor for name, factor in factors.kronecker.items() if concerned(name)},
        gram={name: factor for name, factor in factors.gram.items() if concerned(name)},
    )
    covered = {path for name in (*kept.kronecker, *kept.gram) for path in name.split(JOINT)}
    if missing := sorted(set(trained) - covered):
        raise ValueError(f"there is no factor for the leaf {missing[0]!r} ({len(missing)} such leaves)")
    return kept


def _concerns(trained: frozenset[str], name: str) -> bool:
    return not trained.isdisjoint(name.split(JOINT))


def reweighted(factors: Factors, weighting: str) -> Factors:
    """Factors whose energies are parts of E‖f(θ₀)‖², as the response to a change of a feature of length 1.

    Args:
        factors: of a task.
        weighting: `response`: as they are, the energies of `tajax.curvature.factors` (3). `paper`: as TAK has them, B a
            mean over tokens instead of a sum, leaves with a full matrix times `PAPER_GRAM`, and the output projection
            times `PAPER_PROJECTION`.

    Raises:
        ValueError: another weighting.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}; choose one of {', '.join(WEIGHTINGS)}")
    paper, unit = weighting == "paper", 1 / factors.feature_square

    def scale(name: str, tokens: Array) -> Array:
        part = PAPER_PROJECTION if name.split(JOINT)[0].split("/")[-2:] == PROJECTION else 1.0
        return (unit * part / jnp.maximum(tokens, 1) if paper else unit * jnp.ones_like(tokens))[:, None, None]

    kronecker = {
        name: factor._replace(outputs=factor.outputs * scale(name, factor.tokens))
        for name, factor in factors.kronecker.items()
    }
    gram = {path: matrix * unit * (PAPER_GRAM if paper else 1.0) for path, matrix in factors.gram.items()}
    return factors._replace(kronecker=kronecker, gram=gram, feature_square=jnp.ones_like(factors.feature_square))


WEIGHTINGS = ("paper", "response")
PAPER_GRAM = 10.0
PAPER_PROJECTION = 0.01
PROJECTION = ["projection", "kernel"]
"""The last two nodes of the output projection's path, in the towers that have one."""


def per_task(tasks: Iterable[Factors]) -> Factors:
    """The factors of several tasks behind each other on a leading axis T, for energies that are summed: exact sums.

    Raises:
        ValueError: there are none, or they are of different leaves.
    """
    several = _alike(tasks)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)


def summed(tasks: Iterable[Factors]) -> Factors:
    """One pair of factors for all tasks, on a leading axis 1, so that memory does not grow with them (TAK).

    A = Σ_s (n_s / Σn) A_s and B = Σ_s B_s, n_s the examples of a task: exact where all A_s are equal, or, with as many
    examples each, all B_s; full matrices are summed, which is exact. Tasks are taken one after the other.

    Raises:
        ValueError: as `per_task`.
    """
    total: Factors | None = None
    for one in tasks:
        weighed = one._replace(
            kronecker={
                name: factor._replace(inputs=factor.inputs * one.examples, tokens=factor.tokens * one.examples)
                for name, factor in one.kronecker.items()
            },
            feature_square=one.feature_square * one.examples,
        )
        total = weighed if total is None else jax.tree.map(jnp.add, *_alike([total, weighed]))
    (whole,) = _alike([] if total is None else [total])
    means = {
        name: factor._replace(inputs=factor.inputs / whole.examples, tokens=factor.tokens / whole.examples)
        for name, factor in whole.kronecker.items()
    }
    mean = whole._replace(kronecker=means, feature_square=whole.feature_square / whole.examples)
    return jax.tree.map(lambda leaf: leaf[None], mean)


def total(factors: Factors, tau: Trained) -> Float[Array, ""]:
    """Σ over tasks and leaves of `energies`, of what `per_task` or `summed` gives."""
    each = jax.vmap(energies, (0, None))(factors, tau)
    return sum((jnp.sum(energy) for energy in each.values()), start=jnp.zeros(()))


def _alike(tasks: Iterable[Factors]) -> list[Factors]:
    several = list(tasks)
    if not several:
        raise ValueError("there are no factors to put together; a single task has no others")
    if len({jax.tree.structure(one) for one in several}) > 1:
        raise ValueError("the factors of the tasks are of different leaves; make all of them in one run")
    return several

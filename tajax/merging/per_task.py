"""Compression in place of merging: a shared vector, and of each task a mask and a scale, which give its own model.

One must know whose example one sees, so these are no rows of `METHODS`: a run measures one model on all tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from tajax import trees
from tajax.merging.methods.consensus import check_threshold, wanted
from tajax.task_vectors import apply_task_vector, combine
from tajax.types import Params


class PerTask(NamedTuple):
    """T models in little more than the memory of two: θ₀ + s_t m_t ⊙ τ. A pytree, which goes through `jax.jit`."""

    pretrained: Params
    """θ₀."""
    shared: Params
    """τ, a tree like θ₀, float32 or wider."""
    masks: list[Params]
    """m_t of each task, trees like θ₀ of bool: a byte an entry, of which `jax.numpy.packbits` makes a bit."""
    scales: Float[Array, " T"]
    """s_t."""

    def params(self, task: int) -> Params:
        """The model of one task, a tree with the dtypes of θ₀.

        Args:
            task: its number, in the order of the vectors. A Python number, known when compiling.

        Raises:
            ValueError: there is no such task.
        """
        if not 0 <= task < len(self.masks):
            raise ValueError(f"task is {task}, want its number, from 0 to {len(self.masks) - 1}")
        own = trees.map_leaves(lambda leaf, mask: jnp.where(mask, leaf, 0), self.shared, self.masks[task])
        return apply_task_vector(self.pretrained, own, self.scales[task])


def emr(pretrained: Params, taus: Sequence[Params]) -> PerTask:
    """EMR-Merging: an elected vector, and of each task where it agrees in sign, and how long it was. Nothing to choose.

    τ = γ ⊙ max{abs(τ_t) : sign τ_t = γ} with γ = sign(Σ_t τ_t) is as large, entry by entry, as any task that agrees;
    m_t = 1(τ_t ⊙ τ > 0), and s_t = Σ abs(τ_t) / Σ abs(m_t ⊙ τ) gives a task its mean magnitude back.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.

    Returns:
        What gives the model of each task. A task that agrees nowhere has the model θ₀.

    Raises:
        ValueError: there are no vectors, or one differs from `pretrained` in a path or shape.

    Source:
        Huang et al. 2024, "EMR-Merging: Tuning-Free High-Performance Model Merging", §3.2. Sums are over all entries;
        the authors' code adds up the means of tensors.

    Example:
        >>> merged = emr({"w": jnp.zeros(2)}, [{"w": jnp.array([4.0, -1.0])}, {"w": jnp.array([2.0, 3.0])}])
        >>> merged.shared, [merged.params(task)["w"].tolist() for task in range(2)]
        ({'w': Array([4., 3.], dtype=float32)}, [[5.0, 0.0], [2.857142925262451, 2.142857074737549]])
    """
    trees.check_taus(taus, pretrained)

    def elected(total: Array, *entries: ArrayLike) -> Array:
        sign = jnp.sign(total)
        return sign * jnp.max(jnp.stack([jnp.maximum(sign * jnp.asarray(entry), 0) for entry in entries]), axis=0)

    shared = trees.map_leaves(elected, combine(taus), *taus)
    masks = [trees.map_leaves(lambda all_, own: jnp.sign(all_) * jnp.asarray(own) > 0, shared, tau) for tau in taus]

    def scale(tau: Params, mask: Params) -> Array:
        left = _mass(trees.map_leaves(lambda leaf, kept: jnp.where(kept, leaf, 0), shared, mask))
        return jnp.where(left > 0, _mass(tau) / jnp.where(left > 0, left, 1), 0)

    scales = jnp.stack([scale(tau, mask) for tau, mask in zip(taus, masks, strict=True)])
    return PerTask(pretrained, shared, masks, scales)


def tall_masks(pretrained: Params, taus: Sequence[Params], *, threshold: float | Sequence[float] = 0.4) -> PerTask:
    """TALL masks: the sum of the task vectors, and where each task wants it.

    τ = Σ_t τ_t, and m_t = 1(abs(τ_t) > ϑ_t abs(τ − τ_t)): an entry is a task's where the sum is nearer to its own than
    zero is, with ϑ_t in place of 1. All scales are 1. `consensus` makes one model of these masks.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        threshold: ϑ above 0, one for all tasks or one for each: the larger, the fewer entries. The paper chooses it for
            each task of 0.2, 0.3, …, 0.6, by accuracy on validation data.

    Returns:
        What gives the model of each task.

    Raises:
        ValueError: a threshold is not above 0 or there are not as many as vectors, there are no vectors, or one differs
            from `pretrained` in a path or shape.

    Source:
        Wang et al. 2024, "Localizing Task Information for Improved Model Merging and Compression", §4.

    Example:
        >>> merged = tall_masks({"w": jnp.zeros(2)}, [{"w": jnp.array([4.0, -1.0])}, {"w": jnp.array([1.0, 3.0])}])
        >>> [merged.params(task)["w"].tolist() for task in range(2)]
        [[5.0, 0.0], [0.0, 2.0]]
    """
    trees.check_taus(taus, pretrained)
    each = list(threshold) if isinstance(threshold, Sequence) else [threshold] * len(taus)
    if len(each) != len(taus):
        raise ValueError(
            f"{len(taus)} task vectors need {len(taus)} thresholds, one each, or one for all; got {threshold}"
        )
    for one in each:
        check_threshold(one)
    shared = combine(taus)
    masks = [wanted(tau, shared, one) for tau, one in zip(taus, each, strict=True)]
    return PerTask(pretrained, shared, masks, jnp.ones(len(taus)))


def _mass(tau: Params) -> Array:
    return sum((jnp.sum(jnp.abs(jnp.asarray(leaf))) for leaf in jax.tree.leaves(tau)), start=jnp.zeros(()))

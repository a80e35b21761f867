"""Localize-and-Stitch with data: of each task vector the few entries that the task needs, learned from labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tajax import trees
from tajax.linearization import around
from tajax.losses import cross_entropy, head_logits
from tajax.merging.method import check_data
from tajax.merging.methods.localize_and_stitch import stitch
from tajax.merging.methods.ties import keep_largest
from tajax.merging.order import count_entries, kth_largest
from tajax.task_vectors import apply_task_vector
from tajax.types import ApplyFn, Batch, Head, Params, Trained


def localize_few_shot(pretrained: Params, taus: Sequence[Params], *, masks: Params) -> Params:
    """θ₀ + Σ_t m_t ⊙ τ_t / Σ_t m_t, where m_t marks the entries of τ_t by which task t's loss stays low on examples.

    Of several marks on an entry the mean is taken; θ₀ stays where none is marked, or those that are have moved nothing.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        masks: m from `fit_localize_few_shot`, a tree like `pretrained` whose leaves have the tasks along a
            leading axis: bool, or numbers of which zero stands for False.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: there are no vectors, one differs from `pretrained`, or a leaf of `masks` does not have the shape of
            the leaf behind an axis of T.

    Source:
        He et al. 2024, "Localize-and-Stitch: Efficient Model Merging via Sparse Task Arithmetic", §3.

    Example:
        >>> taus = [{"w": jnp.array([4.0, 2.0, 5.0])}, {"w": jnp.array([2.0, -1.0, 7.0])}]
        >>> masks = {"w": jnp.array([[True, True, False], [True, False, False]])}
        >>> localize_few_shot({"w": jnp.zeros(3)}, taus, masks=masks)
        {'w': Array([3., 2., 0.], dtype=float32)}
    """
    trees.check_taus(taus, pretrained)
    wanted = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), (len(taus), *jnp.shape(leaf))), taus[0])
    trees.check_same_tree(wanted, masks, what=(f"{len(taus)} task vectors", "masks"))
    marks = {path: jnp.asarray(leaf) != 0 for path, leaf in trees.flatten_paths(masks).items()}

    def marked(number: int, tau: Params) -> Params:
        leaves = [jnp.where(marks[path][number], leaf, 0.0) for path, leaf in trees.flatten_paths(tau).items()]
        return jax.tree.unflatten(jax.tree.structure(tau), leaves)

    return apply_task_vector(pretrained, stitch([marked(number, tau) for number, tau in enumerate(taus)]))


def fit_localize_few_shot(
    encode: ApplyFn,
    pretrained: Params,
    taus: Mapping[str, Params],
    batches: Mapping[str, Iterable[Batch]],
    heads: Mapping[str, Head],
    *,
    density: float = 0.01,
    steps: int = 10,
    learning_rate: float = 1e7,
    l1_strength: float = 1e-7,
    initial: float = 5.0,
) -> dict[str, Params]:
    """The masks m_t = round(σ(S_t)) with S_t from `learn_scores`; of more marks than `density` allows the largest S_t.

    Tasks do not see one another. A step costs a forward and a backward pass on all examples of a task, and memory for
    a model, the scores and two gradients of theirs; a mask takes a byte an entry.

    Args:
        encode: the forward pass of the models.
        pretrained: θ₀.
        taus: the task vector of each task.
        batches: of each task, with labels; in the paper's code 64 examples of each class.
        heads: of each task.
        density: the share of the entries of each vector that begin marked, and that are marked in the end at most, in
            (0, 1], ranked over all leaves together. Entries that tie with the smallest of them stay too.
        steps: of gradient descent, at least 1.
        learning_rate: above 0. It is large because a gradient is: that of the loss times an entry of τ.
        l1_strength: λ, at least 0.
        initial: the score of entries that begin marked, and minus that of others; above 0. The larger, the less the
            loss has to say.

    Returns:
        `masks` for `localize_few_shot`, bool, leaves [T, ...]; False where τ_t is zero.

    Raises:
        ValueError: an option is out of range, a score is not finite in the end, or as `check_data`.

    Source:
        He et al. 2024, §3, and their code, from which `steps`, `learning_rate` and `initial` are; its λ of 1 stands
        outside the learning rate, and is our 1e-7. There λ raises the scores that are above zero: we follow the norm
        as the paper writes it, which lowers all. That `density` is both where a mask begins and its bound (the code
        begins with 1e-5 and has no bound), that more marks than that are ranked by their scores, and that a step sees
        all examples are our readings.
    """
    each = learn_scores(
        encode,
        pretrained,
        taus,
        batches,
        heads,
        density=density,
        steps=steps,
        learning_rate=learning_rate,
        l1_strength=l1_strength,
        initial=initial,
    )
    masks = [_rounded(scores, tau, density) for tau, scores in zip(taus.values(), each, strict=True)]
    return {"masks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *masks)}


def learn_scores(
    encode: ApplyFn,
    pretrained: Params,
    taus: Mapping[str, Params],
    batches: Mapping[str, Iterable[Batch]],
    heads: Mapping[str, Head],
    *,
    density: float,
    steps: int,
    learning_rate: float,
    l1_strength: float,
    initial: float,
) -> Iterator[Trained]:
    """The scores S_t that minimise E_(x,y) ℓ(θ₀ + σ(S_t) ⊙ τ_t; x, y) + λ ‖σ(S_t)‖₁, of one task after the other.

    ℓ is the cross-entropy. Gradient descent goes over all examples in each step, from `initial` at the entries of
    largest magnitude and −`initial` at the others.

    Args:
        encode: as the rest, of `fit_localize_few_shot`.
        pretrained: θ₀.
        taus: the task vector of each task.
        batches: of each task.
        heads: of each task.
        density: the share of entries that begin with `initial`.
        steps: how many.
        learning_rate: times the gradient of the whole sum.
        l1_strength: λ.
        initial: the first score.

    Yields:
        By path the scores of the leaves that can be moved, in float32 or wider.

    Raises:
        ValueError: as `fit_localize_few_shot`.
    """
    for name, value, holds, want in (
        ("steps", steps, steps >= 1, "1 or more"),
        ("learning_rate", learning_rate, 0 < learning_rate < math.inf, "a finite number above 0"),
        ("l1_strength", l1_strength, 0 <= l1_strength < math.inf, "a finite number, 0 or more"),
        ("initial", initial, 0 < initial < math.inf, "a finite number above 0"),
    ):
        if not holds:
            raise ValueError(f"{name} is {value}, want {want}")
    check_data(pretrained, taus, batches, heads)
    movable = trees.float_leaves(trees.flatten_paths(pretrained))

    @jax.jit
    def start(tau: Params) -> Trained:
        largest = trees.flatten_paths(keep_largest(tau, density))
        return {
            path: jnp.where(jnp.asarray(leaf) != 0, initial, -initial).astype(jnp.result_type(leaf))
            for path, leaf in largest.items()
            if movable[path]
        }

    @jax.jit
    def gradient(scores: Trained, pretrained: Params, tau: Params, head: Head, batch: Batch) -> Trained:
        """Of the sum of a batch's losses."""

        def total(scores: Trained) -> Array:
            logits = head_logits(around(encode, pretrained)(masked(scores, pretrained, tau), batch.inputs), head)
            return jnp.sum(jnp.where(batch.mask, cross_entropy(logits, batch.label), 0))

        return jax.grad(total)(scores)

    @jax.jit
    def updated(scores: Trained, parts: Trained, count: Array) -> Trained:
        def step(score: Array, part: Array) -> Array:
            share = jax.nn.sigmoid(score)
            return score - learning_rate * (part / count + l1_strength * share * (1 - share))

        return jax.tree.map(step, scores, parts)

    for task in taus:
        tau = jax.device_put(taus[task])  # once, not at each batch
        scores = start(tau)
        for _ in range(steps):
            total, count = None, 0
            for batch in batches[task]:
                part = gradient(scores, pretrained, tau, heads[task], jax.tree.map(jnp.asarray, batch))
                total = part if total is None else jax.tree.map(jnp.add, total, part)
                count += int(np.sum(batch.mask))
            assert total is not None  # `check_data`
            scores = updated(scores, total, jnp.asarray(count))
        trees.check_finite(scores, f"scores of task {task!r} after {steps} steps at learning_rate {learning_rate:g}")
        yield scores


def masked(scores: Trained, pretrained: Params, tau: Params) -> Params:
    """The model θ₀ + σ(S) ⊙ τ.

    Example:
        >>> masked({"w": jnp.array([0.0, -jnp.inf])}, {"w": jnp.ones(2)}, {"w": jnp.full(2, 4.0)})
        {'w': Array([3., 1.], dtype=float32)}
    """
    flat = trees.flatten_paths(tau)
    leaves = [jax.nn.sigmoid(scores[path]) * leaf if path in scores else leaf for path, leaf in flat.items()]
    return apply_task_vector(pretrained, jax.tree.unflatten(jax.tree.structure(tau), leaves))


def _rounded(scores: Trained, tau: Params, density: float) -> Params:
    """Marks of the scores above zero, of the largest of them at most, as a tree like τ."""
    flat = {path: jnp.asarray(leaf) for path, leaf in trees.flatten_paths(tau).items()}
    moving = {path: jnp.where(flat[path] != 0, score, -jnp.inf) for path, score in scores.items()}
    entries = list(moving.values())
    least = kth_largest(entries, max(1, round(density * count_entries(entries))))
    marks = {path: jnp.zeros(leaf.shape, bool) for path, leaf in flat.items()}
    marks |= {path: (score >= least) & (score > 0) for path, score in moving.items()}
    return jax.tree.unflatten(jax.tree.structure(tau), list(marks.values()))

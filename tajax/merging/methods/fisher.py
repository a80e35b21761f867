"""Fisher merging: a mean of the models in which each entry counts by its Fisher information."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.linearization import around
from tajax.losses import head_logits
from tajax.merging.method import check_data
from tajax.task_vectors import apply_task_vector
from tajax.types import ApplyFn, Batch, Head, Params, Trained

Labels = Literal["expected", "true"]


def fisher(pretrained: Params, taus: Sequence[Params], *, fishers: Params, floor: float = 1e-6) -> Params:
    """The models' mean weighted entry by entry with their Fisher information, Σ_t F_t θ_t / Σ_t F_t, θ_t = θ₀ + τ_t.

    It is computed as θ₀ + Σ_t F_t τ_t / Σ_t F_t. Where no task has information the mean of the models is taken, because
    every F_t is at least `floor`.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        fishers: F from `fit_fisher`, a tree like `pretrained` whose leaves have the tasks along a leading axis.
        floor: the least F_t, above 0.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: `floor` is not above 0, there are no vectors, one differs from `pretrained`, or a leaf of `fishers`
            does not have the shape of the leaf behind an axis of T.

    Source:
        Matena and Raffel 2022, "Merging Models with Fisher-Weighted Averaging", §3; equal weights for all models.

    Example:
        >>> fishers = {"w": jnp.array([[3.0, 0.0], [1.0, 0.0]])}
        >>> fisher({"w": jnp.zeros(2)}, [{"w": jnp.full(2, 4.0)}, {"w": jnp.full(2, 8.0)}], fishers=fishers)
        {'w': Array([5., 6.], dtype=float32)}
    """
    if not floor > 0:
        raise ValueError(f"floor is the least Fisher information of an entry, above 0; got {floor}")
    trees.check_taus(taus, pretrained)
    given = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), (len(taus), *jnp.shape(leaf))), taus[0])
    trees.check_same_tree(given, fishers, what=(f"{len(taus)} task vectors", "fishers"))

    def weighted(information: ArrayLike, *entries: ArrayLike) -> Array:
        stacked = jnp.stack([jnp.asarray(entry) for entry in entries])
        weights = jnp.maximum(jnp.asarray(information), floor).astype(jnp.result_type(jnp.float32, stacked))
        return jnp.sum(weights * stacked, axis=0) / jnp.sum(weights, axis=0)

    flats = [trees.flatten_paths(tree) for tree in (fishers, *taus)]
    moved = {path: weighted(*(flat[path] for flat in flats)) for path in flats[1]}
    return apply_task_vector(pretrained, jax.tree.unflatten(jax.tree.structure(taus[0]), list(moved.values())))


def fit_fisher(
    encode: ApplyFn,
    pretrained: Params,
    taus: Mapping[str, Params],
    batches: Mapping[str, Iterable[Batch]],
    heads: Mapping[str, Head],
    *,
    labels: Labels = "expected",
) -> dict[str, Params]:
    """The diagonal Fisher information of each fine-tuned model on its task, E_x E_{y ~ p_t(x)} (∂ log p_t(x)_y / ∂θ)².

    The expectation over y is over the model's own predictive distribution, exactly, which costs a backward pass for
    each class and example. With `labels="true"` y is the label instead, one backward pass an example. They are taken
    one after the other, in the memory of one example; the result is as large as the vectors.

    Args:
        encode: the forward pass of the models.
        pretrained: θ₀.
        taus: the task vector of each task.
        batches: of each task. Labels are read if `labels` is `"true"`.
        heads: of each task.
        labels: `"expected"` or `"true"`.

    Returns:
        `fishers` for `fisher`: leaves [T, ...], zero where a leaf is not floating point.

    Raises:
        ValueError: `labels` is neither, or as `check_data`.
    """
    if labels not in get_args(Labels):
        raise ValueError(f"labels is {labels!r}, want one of {', '.join(map(repr, get_args(Labels)))}")
    check_data(pretrained, taus, batches, heads)

    def squares(
        forward: ApplyFn, model: Params, weights: Array, normalizes: ArrayLike, inputs: Any, label: Array
    ) -> Trained:
        """Σ_k p_k (∂ log p_k/∂θ)² of one example; of the label alone where that is true."""
        theta, restore = trees.split(model, None)
        head = Head(weights, jnp.int32(weights.shape[1]), jnp.asarray(normalizes))

        def log_probabilities(theta: Trained) -> Array:
            features = forward(restore(theta), jax.tree.map(lambda leaf: leaf[None], inputs))
            return jax.nn.log_softmax(head_logits(features, head)[0])

        values, pull = jax.vjp(log_probabilities, theta)
        classes = jnp.arange(len(values))
        share = jnp.exp(values) if labels == "expected" else (classes == label).astype(values.dtype)

        def add(total: Trained, k: Array) -> tuple[Trained, None]:
            (gradient,) = pull((classes == k).astype(values.dtype))
            return jax.tree.map(lambda t, g: t + share[k] * jnp.square(g).astype(t.dtype), total, gradient), None

        zeros = {path: jnp.zeros(leaf.shape, jnp.result_type(jnp.float32, leaf)) for path, leaf in theta.items()}
        over = classes if labels == "expected" else jnp.asarray(label)[None]
        return jax.lax.scan(add, zeros, over)[0]

    @jax.jit
    def summed(
        total: Trained, pretrained: Params, model: Params, weights: Array, normalizes: ArrayLike, batch: Batch
    ) -> Trained:
        forward = around(encode, pretrained)

        def add(total: Trained, example: Batch) -> tuple[Trained, None]:
            found = squares(forward, model, weights, normalizes, example.inputs, example.label)
            return jax.tree.map(lambda t, s: t + jnp.where(example.mask, s, 0).astype(t.dtype), total, found), None

        return jax.lax.scan(add, total, jax.tree.map(jnp.asarray, batch))[0]

    each: list[Params] = []
    for task, tau in taus.items():
        model, head, count = apply_task_vector(pretrained, tau), heads[task], 0
        zeros = {
            path: jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf)) for path, leaf in trees.flatten_paths(tau).items()
        }
        total = {path: zeros[path] for path in trees.split(model, None)[0]}
        for batch in batches[task]:
            weights = head.weights[:, : int(head.num_classes)]
            total = summed(total, pretrained, model, weights, head.normalizes, batch)
            count += int(np.sum(batch.mask))
        means = zeros | {path: leaf / count for path, leaf in total.items()}
        each.append(jax.tree.unflatten(jax.tree.structure(tau), list(means.values())))
    return {"fishers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)}

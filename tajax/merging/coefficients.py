"""Coefficients of task vectors, one for each task or for each layer of each task, and how they are learned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from tajax import trees
from tajax.affine import AffineLogits, affine_logits, logits_at
from tajax.linearization import Linearized, around
from tajax.losses import head_logits
from tajax.merging.matrices import in_layers
from tajax.merging.method import check_data
from tajax.rules import STACKED
from tajax.task_vectors import apply_task_vector, norm
from tajax.types import ApplyFn, Batch, Head, Params

Granularity = Literal["task", "layer"]

Coefs: TypeAlias = ArrayLike | Mapping[str, ArrayLike]
"""One for each task, [T]; or by the path of each leaf [T], or [T, L] where it stacks layers."""

ExampleLoss = Callable[[Array, Array], Array]
"""`(logits [B, K], labels [B]) -> losses [B]`."""


def move(pretrained: Params, taus: Sequence[Params], coefs: Coefs, *, stacked: str | None = STACKED) -> Params:
    """The parameters θ₀ + Σ_t c_t τ_t, leaf by leaf, or layer by layer, with coefficients of its own.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        coefs: c.
        stacked: the node below which leaves have the layers along their leading axis; None if there is none.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: there are no vectors, one differs from `pretrained`, or the coefficients are not as many as the
            tasks and layers, or lack a leaf.

    Example:
        >>> taus = [{"a": jnp.ones(2), "b": jnp.ones(1)}, {"a": jnp.full(2, 3.0), "b": jnp.full(1, 3.0)}]
        >>> coefs = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([0.5, 0.5])}
        >>> move({"a": jnp.zeros(2), "b": jnp.zeros(1)}, taus, coefs)
        {'a': Array([1., 1.], dtype=float32), 'b': Array([2.], dtype=float32)}
    """
    trees.check_taus(taus, pretrained)
    flats = [trees.flatten_paths(tau) for tau in taus]
    floats = [path for path, can_move in trees.float_leaves(trees.flatten_paths(pretrained)).items() if can_move]
    if isinstance(coefs, Mapping):
        trees.check_same_names("coefs", floats, coefs, "the parameters that can be moved")

    def combined(path: str) -> Array:
        leaves = [jnp.asarray(flat[path]) for flat in flats]
        if path not in floats:
            return leaves[0]
        c = jnp.asarray(coefs[path] if isinstance(coefs, Mapping) else coefs)
        layers = leaves[0].shape[:1] if in_layers(path, stacked) else ()
        if c.shape not in {(len(taus),), (len(taus), *layers)}:
            want = " or ".join(map(str, dict.fromkeys([(len(taus),), (len(taus), *layers)])))
            raise ValueError(
                f"coefs has shape {c.shape} at {path!r}, want {want}: one for each of {len(taus)} task vectors"
                + (" and each layer" if layers else "")
            )
        parts = [
            leaf * jnp.expand_dims(c[t].astype(jnp.result_type(jnp.float32, leaf)), tuple(range(c.ndim - 1, leaf.ndim)))
            for t, leaf in enumerate(leaves)
        ]
        return sum(parts[1:], start=parts[0])

    step = [combined(path) for path in flats[0]]
    return apply_task_vector(pretrained, jax.tree.unflatten(jax.tree.structure(taus[0]), step))


def start_at(
    pretrained: Params, tasks: int, value: float, *, granularity: Granularity, stacked: str | None = STACKED
) -> Array | dict[str, Array]:
    """The same coefficient everywhere: [T], or by the path of each leaf that can be moved [T] or [T, L].

    Example:
        >>> start_at({"blocks": {"w": jnp.ones((2, 3))}, "b": 1.0}, 1, 0.3, granularity="layer")
        {'b': Array([0.3], dtype=float32), 'blocks/w': Array([[0.3, 0.3]], dtype=float32)}
    """
    if granularity not in get_args(Granularity):
        raise ValueError(f"granularity is {granularity!r}, want one of {', '.join(map(repr, get_args(Granularity)))}")
    flat = trees.flatten_paths(pretrained)
    floats = [leaf for path, leaf in flat.items() if trees.is_float(leaf)]
    dtype = jnp.result_type(jnp.float32, *floats)
    if granularity == "task":
        return jnp.full(tasks, value, dtype)
    shapes = {path: jnp.shape(leaf)[:1] if in_layers(path, stacked) else () for path, leaf in flat.items()}
    return {path: jnp.full((tasks, *shapes[path]), value, dtype) for path, leaf in flat.items() if trees.is_float(leaf)}


def learn(
    loss: ExampleLoss,
    encode: ApplyFn,
    pretrained: Params,
    taus: Mapping[str, Params],
    batches: Mapping[str, Iterable[Batch]],
    heads: Mapping[str, Head],
    *,
    granularity: Granularity,
    initial: float,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    bounds: tuple[float, float] | None = None,
    stacked: str | None = STACKED,
) -> Array | dict[str, Array]:
    """The coefficients after so many steps of Adam on Σ_t mean loss of the merged model on a batch of task t.

    Step k sees batch k of each task, from the first again after the last. A step costs for each task a forward and a
    backward pass on its batch. Where `encode` is linearised and there is one coefficient a task, the features are
    affine in them: each batch goes through the encoder once, along all vectors, and a step then costs some products.

    Args:
        loss: of each example; labels may mean nothing to it.
        encode: the forward pass of the models.
        pretrained: θ₀.
        taus: the task vector of each task.
        batches: of each task.
        heads: of each task.
        granularity: one coefficient for each task, or for each layer of each leaf and task.
        initial: where each begins.
        steps: how many, at least 1.
        learning_rate: of `adam`.
        weight_decay: decoupled, times the learning rate.
        clip_norm: the longest gradient; None: any.
        bounds: to which coefficients are clipped wherever they are used; what is learned may go beyond them.
        stacked: as in `move`.

    Returns:
        The coefficients, clipped; `coefs` of `move`.

    Raises:
        ValueError: an option is out of range, or as `check_data`.
    """
    check_data(pretrained, taus, batches, heads)
    if steps < 1 or not learning_rate > 0 or not weight_decay >= 0:
        raise ValueError(
            f"steps is {steps}, learning_rate {learning_rate} and weight_decay {weight_decay}; want 1 or more, above 0 "
            "and 0 or more"
        )
    coefs = start_at(pretrained, len(taus), initial, granularity=granularity, stacked=stacked)
    vectors = jax.device_put(list(taus.values()))  # once, not at each step

    def clipped(coefs: Any) -> Any:
        return coefs if bounds is None else jax.tree.map(lambda c: jnp.clip(c, *bounds), coefs)

    def mean_loss(logits: Array, batch: Batch) -> Array:
        losses = loss(logits, jnp.asarray(batch.label))
        return jnp.sum(jnp.where(batch.mask, losses, 0)) / jnp.maximum(jnp.sum(batch.mask), 1)

    @jax.jit
    def of_model(coefs: Any, pretrained: Params, vectors: Sequence[Params], head: Head, batch: Batch) -> Any:
        def value(coefs: Any) -> Array:
            model = move(pretrained, vectors, clipped(coefs), stacked=stacked)
            return mean_loss(head_logits(around(encode, pretrained)(model, batch.inputs), head), batch)

        return jax.grad(value)(coefs)

    @jax.jit
    def rows_of(pretrained: Params, vectors: Sequence[Params], head: Head, inputs: Any) -> AffineLogits:
        assert isinstance(encode, Linearized)
        return affine_logits(encode.apply_fn, pretrained, vectors, head, inputs, mask=encode.mask)

    @jax.jit
    def of_rows(coefs: Array, rows: AffineLogits, batch: Batch) -> Array:
        return jax.grad(lambda coefs: mean_loss(logits_at(rows, clipped(coefs)), batch))(coefs)

    def gradients(task: str) -> Iterator[Callable[[Any], Any]]:
        """Of the batches of a task, one after the other and without end."""
        head = heads[task]
        if isinstance(encode, Linearized) and granularity == "task":
            seen = [(rows_of(pretrained, vectors, head, batch.inputs), batch) for batch in batches[task]]
            while True:
                yield from (functools.partial(of_rows, rows=rows, batch=batch) for rows, batch in seen)
        model = functools.partial(of_model, pretrained=pretrained, vectors=vectors, head=head)
        while True:
            yield from (functools.partial(model, batch=batch) for batch in batches[task])

    @jax.jit
    def updated(coefs: Any, state: tuple[Any, Any], parts: Sequence[Any], step: Array) -> tuple[Any, tuple[Any, Any]]:
        gradient = jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]), *parts)
        if clip_norm is not None:
            shrink = 1 / jnp.maximum(norm(gradient) / clip_norm, 1)
            gradient = jax.tree.map(lambda g: shrink * g, gradient)
        moved, state = adam(gradient, state, step, learning_rate)
        return jax.tree.map(lambda c, m: (1 - learning_rate * weight_decay) * c + m, coefs, moved), state

    streams = [gradients(task) for task in taus]
    state = jax.tree.map(jnp.zeros_like, (coefs, coefs))
    for step in range(1, steps + 1):
        coefs, state = updated(coefs, state, [next(stream)(coefs) for stream in streams], jnp.asarray(step))
    return clipped(coefs)


def adam(
    gradient: Any, state: tuple[Any, Any], step: Array, learning_rate: float
) -> tuple[Any, tuple[Any, Any]]:  # Any: trees of arrays
    """A step of Adam and its next state, with β = (0.9, 0.999) and ε = 1e-8; `step` counts from 1 (Kingma and Ba 2015).

    The core stands on JAX alone, without Optax.
    """
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[0], gradient)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state[1], gradient)
    a, b = 1 / (1 - 0.9**step), 1 / (1 - 0.999**step)
    moved = jax.tree.map(
        lambda m, v: -learning_rate * a.astype(m.dtype) * m / (jnp.sqrt(b.astype(v.dtype) * v) + 1e-8), first, second
    )
    return moved, (first, second)

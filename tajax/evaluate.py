"""Evaluation: pure steps over batches, one compiled program a sweep, one pass over the images."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

import tajax  # its room `data` is imported on demand: sweeps need no data set's libraries
from tajax import metrics, trees
from tajax.affine import AffineLogits, affine_logits, tally_at
from tajax.encoders.encoder import Encoder
from tajax.linearization import linear_responses
from tajax.losses import head_logits
from tajax.metrics import Tally, tally
from tajax.parallel import Placement, Replicated
from tajax.splits import AffineSplit, gathered
from tajax.task_vectors import apply_task_vector, combine, moved_leaves, task_vector
from tajax.types import ApplyFn, Batch, Head, Mask, Moved, Params

Result = TypeVar("Result")

SweepStep = Callable[[Params, Sequence[Moved], Array, Head, Batch], Tally]
AffineStep = Callable[[Params, Sequence[Moved], Head, Batch], tuple[Array, Array, Array]]
FeaturesStep = Callable[[Params, Sequence[Moved], ArrayLike, Batch], Array]
ResponsesStep = Callable[[Params, Sequence[Moved], Batch], Array]

_STEPS: weakref.WeakKeyDictionary[Encoder, dict[tuple[bool, Placement | None], SweepStep]] = (
    weakref.WeakKeyDictionary()  # of `accuracy`: they go with the encoder, whose parameters they hold
)


def make_sweep_step(encode: ApplyFn, *, linearized: bool = False, placement: Placement | None = None) -> SweepStep:
    """A compiled step that tallies a batch at many coefficients of the same task vectors.

    The model at coefficients c is f(θ₀ + Σ_t c_t τ_t). Linearised, that is f(θ₀) + Σ_t c_t J τ_t: all
    coefficients together cost one linearisation and T tangent passes (Ortiz-Jimenez et al. 2023, eq. 4).
    Otherwise every coefficient costs a forward pass, in one program that takes it as an argument.

    Args:
        encode: `(params, images) -> features [B, E]`.
        linearized: evaluate the first-order expansion around the pre-trained parameters.
        placement: where arrays live; whole on every device of this process by default.

    Returns:
        `step(pretrained, taus, coefs [G, T], head, batch) -> Tally` with leaves of shape [G]. The task vectors may
        lack leaves that are zero in all of them: those cost neither memory nor tangents.
    """

    def affine(pretrained: Params, taus: tuple[Moved, ...], coefs: Array, head: Head, batch: Batch) -> Tally:
        rows = _affine_rows(encode, pretrained, taus, head, batch)
        return tally_at(rows, batch.label, batch.mask, coefs)

    def pointwise(pretrained: Params, taus: tuple[Moved, ...], coef: Array, head: Head, batch: Batch) -> Tally:
        params = _edited(pretrained, taus, coef) if taus else pretrained
        return tally(head_logits(encode(params, batch.inputs), head), batch.label, batch.mask)

    placement = placement or Replicated()
    summed = placement.sum(affine if linearized else pointwise)

    def step(pretrained: Params, taus: Sequence[Moved], coefs: Array, head: Head, batch: Batch) -> Tally:
        batch = placement.shares(batch)
        if linearized:
            return summed(pretrained, taus, coefs, head, batch)
        points = [summed(pretrained, taus, coef, head, batch) for coef in coefs]
        return Tally(*(jnp.stack(leaves) for leaves in zip(*points, strict=True)))

    return step


def make_affine_step(encode: ApplyFn, *, placement: Placement | None = None) -> AffineStep:
    """A compiled step that gives the scores of a batch along each task vector, for `affine_split`.

    Args:
        encode: `(params, images) -> features [B, E]`.
        placement: where arrays live; whole on every device of this process by default.

    Returns:
        `step(pretrained, taus, head, batch) -> (scores, gram, labels)`, the leaves of `AffineLogits` that have rows,
        and the labels, −1 for padding.
    """

    def affine(pretrained: Params, taus: tuple[Moved, ...], head: Head, batch: Batch) -> tuple[Array, Array, Array]:
        scores, gram, _ = _affine_rows(encode, pretrained, taus, head, batch)
        return scores, gram, jnp.where(batch.mask, batch.label, -1)

    placement = placement or Replicated()
    rows = placement.rows(affine)
    return lambda *args: rows(*args[:-1], placement.shares(args[-1]))


def make_features_step(encode: ApplyFn, *, placement: Placement | None = None) -> FeaturesStep:
    """A compiled step that gives the features of a batch at θ₀ + Σ_t c_t τ_t.

    Args:
        encode: `(params, images) -> features [B, E]`.
        placement: where arrays live; whole on every device of this process by default.

    Returns:
        `step(pretrained, taus, coefs [T], batch) -> features [B, E]`, for batches from `Placement.shares`. The task
        vectors may lack leaves, as in `make_sweep_step`.
    """

    def features(pretrained: Params, taus: tuple[Moved, ...], coefs: Array, batch: Batch) -> Array:
        return encode(_edited(pretrained, taus, coefs), batch.inputs)

    return (placement or Replicated()).rows(features)


def make_responses_step(encode: ApplyFn, *, placement: Placement | None = None) -> ResponsesStep:
    """A compiled step that gives the features of a batch at θ₀ and the first-order response to each task vector.

    Args:
        encode: `(params, images) -> features [B, E]`.
        placement: where arrays live; whole on every device of this process by default.

    Returns:
        `step(pretrained, taus, batch) -> φ [B, T+1, E]`, φ_0 = f(θ₀) and φ_t = Jτ_t, for batches from
        `Placement.shares`. The task vectors may lack leaves, as in `make_sweep_step`.
    """

    def responses(pretrained: Params, taus: tuple[Moved, ...], batch: Batch) -> Array:
        tangents, mask = _tangents(pretrained, taus)
        origin, pushed = linear_responses(encode, pretrained, tangents, batch.inputs, mask=mask)
        return jnp.concatenate([origin[None], pushed]).swapaxes(0, 1)

    return (placement or Replicated()).rows(responses)


def _edited(pretrained: Params, taus: Sequence[Moved], coef: Array) -> Params:
    flats = [trees.flatten_paths(tau) for tau in taus]
    moved, restore = trees.split(pretrained, _moved(pretrained, flats))
    return restore(apply_task_vector(moved, combine(flats, coef)))


def _affine_rows(encode: ApplyFn, pretrained: Params, taus: Sequence[Moved], head: Head, batch: Batch) -> AffineLogits:
    tangents, mask = _tangents(pretrained, taus)
    return affine_logits(encode, pretrained, tangents, head, batch.inputs, mask=mask)


def _tangents(pretrained: Params, taus: Sequence[Moved]) -> tuple[list[Params], Mask]:
    """The whole task vectors, zero at the leaves that they lack, and the mask of those that they have."""
    flats: list[Any] = [trees.flatten_paths(tau) for tau in taus]
    mask = _moved(pretrained, flats)
    _, restore = trees.split(jax.tree.map(jnp.zeros_like, pretrained), mask)
    return list(map(restore, flats)), mask


def _moved(pretrained: Params, taus: Sequence[Moved]) -> Mask:
    """True at the leaves that the task vectors hold."""
    held: set[str] = set().union(*taus)
    return jax.tree.unflatten(jax.tree.structure(pretrained), [p in held for p in trees.flatten_paths(pretrained)])


def sweep(
    step: SweepStep,
    pretrained: Params,
    taus: Sequence[Params],
    coefs: Float[np.ndarray, "G T"],
    head: Head,
    batches: Iterable[Batch],
    *,
    placement: Placement | None = None,
) -> Tally:
    """Tallies over a whole data set at every row of `coefs`; each batch is read once.

    Args:
        step: from `make_sweep_step`.
        pretrained: θ₀.
        taus: T task vectors.
        coefs: one row of T coefficients for each of the G points.
        head: the head of the data set's task.
        batches: padded, masked batches, each row of the data set once; with several processes this one's rows.
        placement: that of the step.

    Returns:
        A Tally with leaves of shape [G], on the host.

    Raises:
        ValueError: `coefs` does not have a column for each task vector or holds NaN, a task vector does not fit
            `pretrained` or is not finite, or the data set is empty. Raised before anything is compiled.
    """
    coefs = np.asarray(coefs, np.float32)
    if coefs.ndim != 2 or coefs.shape[1] != len(taus) or not len(coefs):
        raise ValueError(
            f"coefs has shape {coefs.shape}, expected [G, {len(taus)}]: a row for each point of the sweep and a "
            f"column for each of the {len(taus)} task vectors."
        )
    if not np.isfinite(coefs).all():
        raise ValueError(f"coefs row {int(np.argmin(np.isfinite(coefs).all(axis=1)))} is not finite")
    pretrained, taus, head = _place(pretrained, taus, head, placement)
    total = None
    grid: Any = coefs  # which the step takes as it takes arrays of JAX
    for partial in _paced(step(pretrained, taus, grid, head, batch) for batch in batches):
        total = partial if total is None else metrics.add(total, partial)
    if total is None:
        raise ValueError("the data set is empty: no batch to evaluate")
    return jax.device_get(total)


def accuracy(
    encoder: Encoder,
    params: Params,
    task: tajax.data.Task,
    split: str = "test",
    *,
    head: Head | None = None,
    linearized: bool = False,
    batch_size: int = 256,
    placement: Placement | None = None,
) -> float:
    """Top-1 accuracy of a model on a split of a task, in one call.

    Args:
        encoder: from `tajax.encoders.load`; compiled once for as long as it is kept.
        params: where to evaluate it, a tree like `encoder.params`.
        task: from `tajax.data.open_task`.
        split: 'train', 'val' or 'test'.
        head: the frozen head; the zero-shot head of the task by default.
        linearized: evaluate the first-order expansion around `encoder.params` instead.
        batch_size: images at a time; the accuracy does not depend on it.
        placement: where arrays live; whole on every device of this process by default.

    Returns:
        The share of images whose class is predicted.

    Raises:
        ValueError: no such split; no head, of a family that makes none from class names; parameters that do not fit.
    """
    trees.check_same_tree(encoder.params, params, what=("encoder.params", "params"))
    if head is None:
        if encoder.zero_shot is None:
            raise ValueError(f"encoders of the family {encoder.family!r} make no heads from class names: give a head")
        head = encoder.zero_shot.head(task.class_names, task.templates)
    batches = tajax.data.load(task, split, batch_size=batch_size, preprocessing=encoder.inputs)
    taus: tuple[Params, ...] = (task_vector(encoder.params, params),) if linearized else ()
    coefs = np.ones((1, len(taus)), np.float32)
    steps = _STEPS.setdefault(encoder, {})
    if (linearized, placement) not in steps:
        encode = encoder.apply_for_responses if linearized else encoder.apply
        steps[linearized, placement] = make_sweep_step(encode, linearized=linearized, placement=placement)
    step = steps[linearized, placement]
    found = sweep(step, encoder.params if taus else params, taus, coefs, head, batches, placement=placement)
    return metrics.compute_each(found)[0]["top1"]


def affine_split(
    step: AffineStep,
    pretrained: Params,
    taus: Sequence[Params],
    head: Head,
    batches: Iterable[Batch],
    *,
    placement: Placement | None = None,
) -> AffineSplit:
    """A whole data set along each task vector, from one pass over its images.

    What follows needs no image any more: `splits.tally_at_coefs` for tallies at any coefficients, `splits.intervals`
    and `scaling.exact_scaling_coef` for the best of them. Rows go to the host as they come: the devices hold those of
    two batches, the host all of them once.

    Args:
        step: from `make_affine_step`.
        pretrained: θ₀.
        taus: T task vectors, at least one.
        head: the head of the data set's task.
        batches: padded, masked batches, each row of the data set once; with several processes this one's rows.
        placement: that of the step.

    Returns:
        The rows of the data set in order, N·(T+1)·(K+T+1) floats on the host.

    Raises:
        ValueError: a task vector does not fit `pretrained` or is not finite, or the data set is empty. Raised before
            anything is compiled.
    """
    pretrained, taus, head = _place(pretrained, taus, head, placement)
    return gathered(_paced(step(pretrained, taus, head, batch) for batch in batches), int(head.num_classes))


def _place(
    pretrained: Params, taus: Sequence[Params], head: Head, placement: Placement | None
) -> tuple[Params, tuple[Moved, ...], Head]:
    """Everything that stays the same from batch to batch, checked, and put on the devices once."""
    for index, tau in enumerate(taus):
        trees.check_same_tree(pretrained, tau, what=("pretrained", f"task vector {index}"))
        trees.check_finite(tau, f"task vector {index}")
    moved: tuple[Any, ...] = tuple(moved_leaves(taus))
    return (placement or Replicated()).params((pretrained, moved, head))


def _paced(results: Iterable[Result]) -> Iterator[Result]:
    """The results as they are dispatched, two batches ahead of the devices at most, which hold the images of each."""
    before = None
    for result in results:
        jax.block_until_ready(before)
        yield result
        before = result

"""Evaluation: a pure step that sums, one compiled program a sweep, and the choice of a coefficient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tajax import metrics, parallel, trees
from tajax.linearize import linear_responses
from tajax.losses import head_logits
from tajax.metrics import Tally, normalized_accuracy, tally
from tajax.task_vectors import apply_task_vector, combine
from tajax.types import ApplyFn, Batch, Head, Params

SweepStep = Callable[[Params, Sequence[Params], Array, Head, Batch], Tally]


def make_sweep_step(
    encode: ApplyFn, *, linearized: bool = False, devices: Sequence[jax.Device] | None = None
) -> SweepStep:
    """A compiled step that tallies a batch at many coefficients of the same task vectors.

    The model at coefficients c is f(θ₀ + Σ_t c_t τ_t). Linearised, that is f(θ₀) + Σ_t c_t J τ_t: all
    coefficients together cost one linearisation and T tangent passes (Ortiz-Jimenez et al. 2023, eq. 4).
    Otherwise every coefficient costs a forward pass, in one program that takes it as an argument.

    Args:
        encode: `(params, images) -> features [B, E]`.
        linearized: evaluate the first-order expansion around the pre-trained parameters.
        devices: local devices to use; all by default.

    Returns:
        `step(pretrained, taus, coefs [G, T], head, batch) -> Tally` with leaves of shape [G].
    """

    def affine(pretrained, taus, coefs, head, batch):
        origin, responses = linear_responses(encode, pretrained, taus, batch.image)

        def at(coef):
            return tally(head_logits(origin + jnp.tensordot(coef, responses, axes=1), head), batch.label, batch.mask)

        return jax.lax.map(at, coefs)

    def pointwise(pretrained, taus, coef, head, batch):
        params = apply_task_vector(pretrained, combine(taus, coef)) if len(taus) else pretrained
        return tally(head_logits(encode(params, batch.image), head), batch.label, batch.mask)

    if linearized:
        return parallel.sum_over_devices(affine, devices)
    at_point = parallel.sum_over_devices(pointwise, devices)

    def step(pretrained, taus, coefs, head, batch):
        points = [at_point(pretrained, taus, coef, head, batch) for coef in coefs]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)

    return step


def sweep(
    step: SweepStep,
    pretrained: Params,
    taus: Sequence[Params],
    coefs: Float[np.ndarray, "G T"],
    head: Head,
    batches: Iterable[Batch],
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Tally:
    """Tallies over a whole data set at every row of `coefs`; each batch is read once.

    Args:
        step: from `make_sweep_step`.
        pretrained: θ₀.
        taus: T task vectors.
        coefs: one row of T coefficients for each of the G points.
        head: the head of the data set's task.
        batches: padded, masked batches, each row of the data set once.
        devices: those of the step; all local ones by default.

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
    for index, tau in enumerate(taus):
        trees.check_same_tree(pretrained, tau, what=("pretrained", f"task vector {index}"))
        trees.check_finite(tau, f"task vector {index}")
    pretrained, taus, head = parallel.replicate((pretrained, tuple(taus), head), devices)
    total = None
    for batch in batches:
        partial = step(pretrained, taus, coefs, head, batch)
        total = partial if total is None else metrics.add(total, partial)
    if total is None:
        raise ValueError("the data set is empty: no batch to evaluate")
    return jax.device_get(total)


def select_scaling_coef(
    coefs: Sequence[float], accuracies: Float[np.ndarray, "T G"], single_task: Float[np.ndarray, " T"]
) -> int:
    """Index of the coefficient with the largest mean normalised accuracy (Ilharco et al. 2023, §4).

    Args:
        coefs: the grid of G coefficients.
        accuracies: validation accuracy of the merged model on each task at each coefficient.
        single_task: validation accuracy of each fine-tuned model on its own task, above 0.

    Returns:
        The index into `coefs`; of equal ones the smallest coefficient in size.

    Example:
        >>> select_scaling_coef([0.0, 0.5, 1.0], np.array([[0.2, 0.8, 0.6], [0.3, 0.7, 0.9]]), np.array([0.8, 1.0]))
        1
    """
    means = normalized_accuracy(accuracies, np.asarray(single_task)[:, None]).mean(axis=0)
    return min(range(len(coefs)), key=lambda g: (-means[g], abs(coefs[g])))

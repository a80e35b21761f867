"""Weight disentanglement: does adding one task vector leave the other task's predictions alone?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from tajax import trees
from tajax.linearize import linear_responses
from tajax.losses import head_logits
from tajax.task_vectors import apply_task_vector, combine
from tajax.types import ApplyFn, Batch, Head, Params

Distance = Callable[[Array, Array], Array]
"""How far two outputs [B, K] of a model are from each other, per example: [B]."""


def prediction_error(outputs: Float[Array, "B K"], others: Float[Array, "B K"]) -> Float[Array, " B"]:
    """1 where the predicted classes differ, else 0: the distance of the tangent paper's maps. NaN if an output is."""
    differ = jnp.argmax(outputs, axis=-1) != jnp.argmax(others, axis=-1)
    broken = jnp.isnan(outputs).any(axis=-1) | jnp.isnan(others).any(axis=-1)
    return jnp.where(broken, jnp.nan, differ.astype(jnp.float32))


def symmetric_kl(outputs: Float[Array, "B K"], others: Float[Array, "B K"]) -> Float[Array, " B"]:
    """KL(p‖q) + KL(q‖p) = Σ_k (p − q)(log p − log q) of the softmaxes, in nats.

    On features it is the distance of the representation module in Jin et al. 2024. Padded classes (−inf) count
    for nothing.
    """
    log_p, log_q = (jax.nn.log_softmax(y.astype(jnp.promote_types(y.dtype, jnp.float32))) for y in (outputs, others))
    padding = jnp.isneginf(log_p) | jnp.isneginf(log_q)
    return jnp.sum(jnp.where(padding, 0, (jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)), axis=-1)


def through_head(head: Head, distance: Distance = prediction_error) -> Distance:
    """The distance between the logits of a head, for a model whose outputs are features."""
    return lambda features, others: distance(head_logits(features, head), head_logits(others, head))


def disentanglement_error(
    apply_fn: ApplyFn,
    params0: Params,
    tau_1: Params,
    tau_2: Params,
    batches_1: Iterable[Batch | Array],
    batches_2: Iterable[Batch | Array],
    *,
    coefs: Sequence[float] | Float[np.ndarray, " A"],
    distances: tuple[Distance, Distance] = (prediction_error, prediction_error),
    linearized: bool = False,
) -> Float[np.ndarray, "A A"]:
    """The disentanglement error on a grid, ξ(α₁, α₂) = Σ_t E_{x∼D_t} dist(f(x; θ₀ + α_t τ_t), f(x; θ₀ + α₁τ₁ + α₂τ₂)).

    Zero means that on its own inputs neither task notices the other's vector. The maps of the tangent paper show
    the mean of the two terms, ξ / 2; `disentanglement_terms` gives each of them.

    Args:
        apply_fn: f, from parameters and inputs to outputs [B, K].
        params0: θ₀.
        tau_1: τ₁, a tree with the paths and shapes of `params0`.
        tau_2: τ₂, likewise.
        batches_1: inputs of the first task, arrays [B, ...] or batches, whose padding counts for nothing.
        batches_2: inputs of the second.
        coefs: the A values that α₁ and α₂ take, such as `np.linspace(-3, 3, 25)`.
        distances: dist on each task's inputs. If f gives features, `through_head(head)` of the task, or
            `symmetric_kl` for the features themselves.
        linearized: replace f by its first-order expansion at θ₀.

    Returns:
        ξ [A, A], float64, with α₁ along the first axis. Between 0 and 2 for `prediction_error`.

    Each batch costs A² + A forward passes in one compiled program; linearised, about five forward passes in all.

    Raises:
        ValueError: a task vector does not fit, the grid is not a list of finite numbers, or a task has no inputs.

    Source:
        Ortiz-Jimenez, Favero and Frossard 2023, §4, equation of ξ; Jin et al. 2024 for the distance on features.

    Example:
        >>> logits = lambda params, x: x @ params["w"]
        >>> params = {"w": jnp.array([[1.0, 0.0], [1.0, 0.0]])}
        >>> tau_1, tau_2 = {"w": jnp.array([[0.0, 2.0], [0.0, 0.0]])}, {"w": jnp.array([[0.0, 0.0], [0.0, 2.0]])}
        >>> x_1, x_2 = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])  # each task has a direction of its own
        >>> disentanglement_error(logits, params, tau_1, tau_2, [x_1], [x_2], coefs=[0.0, 1.0])
        array([[0., 0.],
               [0., 0.]])
        >>> disentanglement_error(logits, params, tau_1, tau_2, [x_1 + x_2], [x_1 + x_2], coefs=[0.0, 1.0])
        array([[0., 0.],
               [0., 2.]])
    """
    terms = disentanglement_terms(
        apply_fn,
        params0,
        tau_1,
        tau_2,
        batches_1,
        batches_2,
        coefs=coefs,
        distances=distances,
        linearized=linearized,
    )
    return terms.sum(axis=0)


def disentanglement_terms(
    apply_fn: ApplyFn,
    params0: Params,
    tau_1: Params,
    tau_2: Params,
    batches_1: Iterable[Batch | Array],
    batches_2: Iterable[Batch | Array],
    *,
    coefs: Sequence[float] | Float[np.ndarray, " A"],
    distances: tuple[Distance, Distance] = (prediction_error, prediction_error),
    linearized: bool = False,
) -> Float[np.ndarray, "T=2 A A"]:
    """The two terms of `disentanglement_error`, one for each task's inputs: [2, A, A], float64."""
    taus = [tau_1, tau_2]
    trees.check_taus(taus, params0, what="params0")
    grid = np.asarray(coefs, np.float64)
    if grid.ndim != 1 or not grid.size or not np.isfinite(grid).all():
        raise ValueError(f"coefs must be a list of finite numbers, got shape {grid.shape}: {grid.tolist()}")
    terms = []
    for task, (batches, distance) in enumerate(zip((batches_1, batches_2), distances, strict=True)):
        sums, count = np.zeros((len(grid), len(grid))), 0
        for batch in batches:
            inputs, mask = (batch.image, batch.mask) if isinstance(batch, Batch) else (batch, np.ones(len(batch), bool))
            constants = params0, taus, jnp.asarray(grid), jnp.int32(task)
            sums += np.asarray(_summed_distances(apply_fn, distance, linearized, *constants, inputs, mask), np.float64)
            count += int(np.sum(mask))
        if not count:
            raise ValueError(f"batches_{task + 1} holds no input to average over")
        terms.append(sums / count)
    return np.stack(terms)


@partial(jax.jit, static_argnums=(0, 1, 2))  # compiled once for a model, a distance and shapes, whoever calls
def _summed_distances(
    apply_fn: ApplyFn,
    distance: Distance,
    linearized: bool,
    params0: Params,
    taus: list[Params],
    grid: Float[Array, " A"],
    task: Int[Array, ""],
    inputs: Array,
    mask: Bool[Array, " B"],
) -> Float[Array, "A A"]:
    """Σ_x dist(f at α_t alone, f at both), over one batch of inputs of one task."""
    if linearized:
        origin, responses = linear_responses(apply_fn, params0, taus, inputs)

        def outputs(coefs: Float[Array, " T"]) -> Array:
            exact = jax.lax.Precision.HIGHEST  # a TPU would round the coefficients to bfloat16
            return origin + jnp.tensordot(coefs.astype(responses.dtype), responses, axes=1, precision=exact)
    else:

        def outputs(coefs: Float[Array, " T"]) -> Array:
            return apply_fn(apply_task_vector(params0, combine(taus, coefs)), inputs)

    both = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    alone = jax.lax.map(lambda alpha: outputs(jnp.zeros(2, grid.dtype).at[task].set(alpha)), grid)
    own = jnp.stack(jnp.divmod(jnp.arange(len(both)), len(grid)))[task]  # which α_t each point of the grid has

    def error(point: tuple[Array, Array]) -> Array:
        coefs, index = point
        return jnp.sum(jnp.where(mask, distance(alone[index], outputs(coefs)), 0))

    return jax.lax.map(error, (both, own)).reshape(len(grid), len(grid))

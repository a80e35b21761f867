"""Weight disentanglement: does adding one task vector leave the other task's predictions alone?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from tajax import metrics, trees
from tajax.linearization import linear_responses
from tajax.losses import head_logits
from tajax.task_vectors import apply_task_vector, combine
from tajax.types import ApplyFn, Batch, Head, Params

Distance: TypeAlias = Callable[[Array, Array], Array]
"""How far two outputs [B, K] of a model are from each other, per example: [B]."""

HeadDistance: TypeAlias = Callable[[Array, Array, Head], Array]
"""How far two features [B, E] of an encoder are from each other, with the head of the task: [B]."""

Distances: TypeAlias = tuple[Callable[..., Array], ...]
"""D of them: `Distance`, or `HeadDistance` where a head is given."""


class AffineOutputs(NamedTuple):
    """The `Outputs` of a linearised model: f(θ₀), the response Jτ to the task's own vector and Jτ′ to the other one."""

    origin: Float[Array | np.ndarray, "B K"]
    own: Float[Array | np.ndarray, "B K"]
    other: Float[Array | np.ndarray, "B K"]

    def __call__(self, coefs: tuple[float, float]) -> Float[Array | np.ndarray, "B K"]:
        """f(θ₀) + α Jτ + β Jτ′."""
        return self.origin + coefs[0] * self.own + coefs[1] * self.other


Outputs: TypeAlias = AffineOutputs | Callable[[tuple[float, float]], ArrayLike]
"""The outputs [B, K] of a model on a batch, f(x; θ₀ + ατ + βτ′), as a function of (α, β)."""


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


@functools.cache  # one function for a distance: the same program serves every head, which is data to it
def on_logits(distance: Distance) -> HeadDistance:
    """The distance between the logits that a head makes of two features."""
    return lambda features, others, head: distance(head_logits(features, head), head_logits(others, head))


def _on_features(features: Float[Array, "B E"], others: Float[Array, "B E"], head: Head) -> Float[Array, " B"]:
    return symmetric_kl(features, others)


MODULES: Mapping[str, HeadDistance] = MappingProxyType(
    {"prediction": on_logits(prediction_error), "symmetric_kl": _on_features}
)
"""The two distances of Jin et al. 2024 on the features of an encoder, by name: `prediction` through the task-specific
module, the head; `symmetric_kl` on the representation module alone."""


def disentanglement_error(
    apply_fn: ApplyFn,
    params0: Params,
    tau_1: Params,
    tau_2: Params,
    batches_1: Iterable[Batch | Array],
    batches_2: Iterable[Batch | Array],
    *,
    coefs: Sequence[float] | Float[np.ndarray, " A"],
    heads: tuple[Head, Head] | None = None,
    distances: tuple[Distance, Distance] | None = None,
    linearized: bool = False,
) -> Float[np.ndarray, "A A"]:
    """The disentanglement error on a grid, ξ(α₁, α₂) = Σ_t E_{x∼D_t} dist(f(x; θ₀ + α_t τ_t), f(x; θ₀ + α₁τ₁ + α₂τ₂)).

    Zero means that on its own inputs neither task notices the other's vector. The maps of the tangent paper show
    the mean of the two terms, ξ / 2; `disentanglement_terms` gives each of them.

    Args:
        apply_fn: f, from parameters and inputs to outputs [B, K]: features, or logits of both tasks.
        params0: θ₀.
        tau_1: τ₁, a tree with the paths and shapes of `params0`.
        tau_2: τ₂, likewise.
        batches_1: inputs of the first task, arrays [B, ...] or batches, whose padding counts for nothing.
        batches_2: inputs of the second.
        coefs: the A values that α₁ and α₂ take, such as `np.linspace(-3, 3, 25)`.
        heads: of each task, if f gives features: distances are then between logits. Heads of one shape
            (`models.pad_head`) share one program.
        distances: dist on each task's inputs; `prediction_error` by default if there are heads. Without heads it must
            be given, since the largest of some features is not a prediction: `symmetric_kl` for features themselves,
            `prediction_error` only if f gives logits.
        linearized: replace f by its first-order expansion at θ₀.

    Returns:
        ξ [A, A], float64, with α₁ along the first axis. Between 0 and 2 for `prediction_error`.

    Each batch costs A² forward passes of one compiled program; linearised, about five forward passes in all.

    Raises:
        ValueError: a task vector or a head does not fit, the grid is not a list of finite numbers, a task has no
            inputs, or neither heads nor distances are given.
        TypeError: `heads` is not a pair of heads.

    Source:
        Ortiz-Jimenez, Favero and Frossard 2023, §4, equation of ξ; Jin et al. 2024 for the distance on features.

    Example:
        >>> logits = lambda params, x: x @ params["w"]
        >>> params = {"w": jnp.array([[1.0, 0.0], [1.0, 0.0]])}
        >>> tau_1, tau_2 = {"w": jnp.array([[0.0, 2.0], [0.0, 0.0]])}, {"w": jnp.array([[0.0, 0.0], [0.0, 2.0]])}
        >>> x_1, x_2 = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])  # each task has a direction of its own
        >>> options = {"coefs": [0.0, 1.0], "distances": (prediction_error, prediction_error)}
        >>> disentanglement_error(logits, params, tau_1, tau_2, [x_1], [x_2], **options)
        array([[0., 0.],
               [0., 0.]])
        >>> disentanglement_error(logits, params, tau_1, tau_2, [x_1 + x_2], [x_1 + x_2], **options)
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
        heads=heads,
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
    heads: tuple[Head, Head] | None = None,
    distances: tuple[Distance, Distance] | None = None,
    linearized: bool = False,
) -> Float[np.ndarray, "T=2 A A"]:
    """The two terms of `disentanglement_error`, one for each task's inputs: [2, A, A], float64."""
    taus = [tau_1, tau_2]
    trees.check_taus(taus, params0, what="params0")
    grid, measures = _checked_grid(coefs), _measures(heads, distances)

    def outputs(task: int, batches: Iterable[Batch | Array], *head: Head) -> Iterator[tuple[Outputs, ArrayLike]]:
        own_and_other = [taus[task], taus[1 - task]]
        for b in batches:
            inputs, mask = (b.inputs, b.mask) if isinstance(b, Batch) else (b, np.ones(len(b), bool))
            found: Outputs = partial(_edited_outputs, apply_fn, params0, own_and_other, inputs)
            if linearized:
                found = _affine_outputs(apply_fn, params0, own_and_other, inputs)
            _check_width(task, found, *head)
            yield found, mask

    terms = []
    for task, (batches, (distance, *head)) in enumerate(zip((batches_1, batches_2), measures, strict=True)):
        sums = partial(affine_sums if linearized else pointwise_sums, (distance,), grid)
        (term,) = mean_distances(sums, outputs(task, batches, *head), *head, what=f"batches_{task + 1}")
        terms.append(term if task == 0 else term.T)
    return np.stack(terms)


def mean_distances(
    sums: Callable[..., ArrayLike], batches: Iterable[tuple[Outputs, ArrayLike]], *head: Head, what: str = "batches"
) -> np.ndarray:
    """The means of D distances over all examples, [D, ...], float64. ValueError, which says `what`, if there are none.

    The sums over one batch, `sums(outputs, mask, *head)`, are `pointwise_sums`, `affine_sums` or `curve_sums` of given
    distances and coefficients.
    """
    found, count = metrics.total(((sums(outputs, mask, *head), np.sum(mask)) for outputs, mask in batches), what=what)
    if not count:
        raise ValueError(f"{what} holds no input to average over")
    return np.asarray(found / count)


def mean_over_square(terms: Float[np.ndarray, "T=2 A A"], coefs: Sequence[float] | Float[np.ndarray, " A"]) -> float:
    """A map in one number: the mean of ξ / 2 over the points of the grid with `|α₁| ≤ 1` and `|α₂| ≤ 1`.

    The square is the one that the tangent paper marks in its maps. Points on the axes count, where one of the terms is
    zero whatever the model: compare numbers of the same grid alone.

    Args:
        terms: from `disentanglement_terms`.
        coefs: the values of α₁ and α₂.

    Raises:
        ValueError: no point of the grid lies in the square.

    Example:
        >>> mean_over_square(np.array([[[0, 0], [0.2, 9]], [[0, 0.4], [0, 9]]]), [1, 2])
        0.0
        >>> mean_over_square(np.array([[[0, 0.5], [0, 0.5]], [[0, 0], [0.5, 0.5]]]), [0, 1])
        0.25
    """
    inside = np.abs(_checked_grid(coefs)) <= 1
    if not inside.any():
        raise ValueError(f"no coefficient of {np.asarray(coefs).tolist()} lies in [−1, 1]: there is no mean over it")
    return float(np.asarray(terms)[:, inside][:, :, inside].mean())


def relative_terms(
    terms: Float[np.ndarray, "T=2 A A"], own: Float[np.ndarray, " T=2"], *, degree: int = 1
) -> Float[np.ndarray, "T=2 A A"]:
    """What the other vector does to a task, relative to what the task's own vector does, (term_t / own_t)^(1/degree).

    1 says that the other vector moves the outputs as far as the task's own one at α = 1 does. This is free of the
    scale of the outputs: the divergence of softmaxes of features has no upper end and grows with the square of the
    features' scale, which differs between models and regimes. With the right degree the ratio is linear in the size of
    a small displacement for every distance, so that representation and heads compare.

    Args:
        terms: from `disentanglement_terms`.
        own: E_{x∼D_t}[dist(f(x; θ₀), f(x; θ₀ + τ_t))] for both tasks, above 0.
        degree: how the distance grows with a small displacement: 1 for `prediction_error`, whose expectation grows with
            the displacement, 2 for `symmetric_kl`, which grows with its square.

    Example:
        >>> relative_terms(np.array([[[0.04]], [[0.09]]]), np.array([0.16, 0.09]), degree=2).ravel()
        array([0.5, 1. ])
    """
    return (np.asarray(terms) / np.asarray(own)[:, None, None]) ** (1 / degree)


def equivalent_coefs(
    terms: Float[np.ndarray, "T=2 *points"],
    coefs: Sequence[float] | Float[np.ndarray, " A"],
    own: Float[np.ndarray, "T=2 A"],
    *,
    degree: int = 1,
) -> Float[np.ndarray, "T=2 *points"]:
    """How much of its own vector would move a task's outputs as far as the other vector does: a coefficient.

    The a ≥ 0 with E_{x∼D_t}[dist(f(x; θ₀), f(x; θ₀ + a τ_t))] = term_t, read from the curve of the left side at the
    coefficients of the grid. Unlike `relative_terms` it does not depend on how the distance grows: a share of changed
    predictions saturates, a divergence does not, and both give the same coefficient where heads only pass on what
    happens in the features.

    Args:
        terms: from `disentanglement_terms`, at all points or at some.
        coefs: the values of α₁ and α₂, ascending, with 0 among them.
        own: the curve, at each of them.
        degree: as in `relative_terms`; the curve is interpolated in the distance's root, nearly a straight line.

    Returns:
        Coefficients between 0 and the last of `coefs`, which also stands for all beyond it. Where the curve falls, the
        last coefficient at which it was as low.

    Raises:
        ValueError: 0 is not among the coefficients, or they do not ascend.

    Example:
        >>> equivalent_coefs(np.array([[[0.3]], [[0.9]]]), [0, 0.5, 1], np.array([[0, 0.2, 0.4]] * 2)).ravel()
        array([0.75, 1.  ])
    """
    grid, roots = _checked_grid(coefs), np.asarray(own, np.float64) ** (1 / degree)
    if not (grid == 0).any() or (np.diff(grid) <= 0).any():
        raise ValueError(f"coefs must ascend and hold 0, where the curve begins; got {grid.tolist()}")
    rising = np.maximum.accumulate(roots[:, grid >= 0], axis=1)
    levels = np.asarray(terms, np.float64) ** (1 / degree)
    return np.stack([np.interp(level, curve, grid[grid >= 0]) for level, curve in zip(levels, rising, strict=True)])


@partial(jax.jit, static_argnums=0)
def summed_distances(
    distances: Distances,
    outputs: Float[Array, "B K"],
    others: Float[Array, "B K"],
    mask: Bool[ArrayLike, " B"],
    *head: Head,
) -> Float[Array, " D"]:
    """Σ_x dist(y(x), y′(x)) over a batch, for each of the distances."""
    found = [distance(outputs, others, *head) for distance in distances]
    wide = [d.astype(jnp.promote_types(d.dtype, jnp.float32)) for d in found]  # a sum of bfloat16 ones ends at 256
    return jnp.stack([jnp.sum(jnp.where(mask, d, 0)) for d in wide])


def pointwise_sums(
    distances: Distances, grid: Float[np.ndarray, " A"], outputs: Outputs, mask: Bool[ArrayLike, " B"], *head: Head
) -> Float[np.ndarray, "D A A"]:
    """What a second vector does to the outputs of one batch, Σ_x dist(f at α alone, f at α and β), point by point.

    Where β = 0 it does nothing, by definition: only the outputs at α alone are computed there. `outputs` is called
    once a point, at most two ahead of the devices; rows with a False mask count for nothing. The sums are float64, with
    α, the coefficient of the task's own vector, along the first of the axes A.
    """
    alone = [outputs((alpha, 0.0)) for alpha in grid.tolist()]
    points = [(i, j) for i in range(len(grid)) for j, beta in enumerate(grid) if beta != 0]
    parts: list[Array] = []
    for i, j in points:
        both = outputs((float(grid[i]), float(grid[j])))
        parts.append(summed_distances(distances, alone[i], both, mask, *head))
        if len(parts) > 2:
            parts[-3].block_until_ready()
    sums = np.zeros((len(distances), len(grid), len(grid)))
    for (i, j), part in zip(points, jax.device_get(parts), strict=True):
        sums[:, i, j] = part
    return sums


def curve_sums(
    distances: Distances, coefs: Sequence[float], outputs: Outputs, mask: Bool[ArrayLike, " B"], *head: Head
) -> Float[np.ndarray, "D A"]:
    """What a task's own vector does to the outputs of one batch, Σ_x dist(f(x; θ₀), f(x; θ₀ + ατ)) at each α."""
    origin, *moved = (outputs((alpha, 0.0)) for alpha in (0.0, *coefs))
    return np.stack([summed_distances(distances, origin, edited, mask, *head) for edited in moved], axis=1)


@partial(jax.jit, static_argnums=0)
def affine_sums(
    distances: Distances, grid: Float[Array, " A"], outputs: AffineOutputs, mask: Bool[ArrayLike, " B"], *head: Head
) -> Float[Array, "D A A"]:
    """`pointwise_sums` of a linearised model, whose outputs need no further pass over the inputs: in one program."""
    origin, own, other = outputs
    values = jnp.asarray(grid).astype(origin.dtype)

    def at(alpha: Float[Array, ""]) -> Float[Array, "A D"]:
        alone = origin + alpha * own
        return jax.vmap(lambda beta: summed_distances(distances, alone, alone + beta * other, mask, *head))(values)

    return jnp.moveaxis(jax.lax.map(at, values), -1, 0)


def _measures(
    heads: tuple[Head, Head] | None, distances: tuple[Distance, Distance] | None
) -> list[tuple[Callable[..., Array]] | tuple[HeadDistance, Head]]:
    """Of each task the distance and, where there is one, the head that it takes."""
    if heads is None:
        if distances is None:
            raise ValueError(
                "what do the outputs of the model stand for? Of features, give the tasks' heads=(head_1, head_2), or "
                "distances=(symmetric_kl, symmetric_kl) for the features themselves; of logits, "
                "distances=(prediction_error, prediction_error)."
            )
        return [(distance,) for distance in distances]
    if isinstance(heads, Head) or len(heads) != 2 or not all(isinstance(head, Head) for head in heads):
        raise TypeError(f"heads is {type(heads).__name__}, want the heads of both tasks, (head_1, head_2)")
    chosen = distances or (prediction_error, prediction_error)
    return [(on_logits(distance), head) for distance, head in zip(chosen, heads, strict=True)]


def _check_width(task: int, outputs: Outputs, *head: Head) -> None:
    for one in head:
        width, takes = jax.eval_shape(lambda: outputs((0.0, 0.0))).shape[-1], one.weights.shape[0]
        if takes != width:
            raise ValueError(f"the model has {width} outputs, and heads[{task}] takes {takes}")


def _checked_grid(coefs: Sequence[float] | Float[np.ndarray, " A"]) -> Float[np.ndarray, " A"]:
    grid = np.asarray(coefs, np.float64)
    if grid.ndim != 1 or not grid.size or not np.isfinite(grid).all():
        raise ValueError(f"coefs must be a list of finite numbers, got shape {grid.shape}: {grid.tolist()}")
    return grid


# Compiled once for a model and shapes, whatever the coefficients and whoever calls.
@partial(jax.jit, static_argnums=0)
def _edited_outputs(
    apply_fn: ApplyFn, params0: Params, taus: list[Params], inputs: Array, coefs: tuple[Array, Array]
) -> Array:
    return apply_fn(apply_task_vector(params0, combine(taus, coefs)), inputs)


@partial(jax.jit, static_argnums=0)
def _affine_outputs(apply_fn: ApplyFn, params0: Params, taus: list[Params], inputs: Array) -> AffineOutputs:
    origin, responses = linear_responses(apply_fn, params0, taus, inputs)
    return AffineOutputs(origin, *responses)

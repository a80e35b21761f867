"""Exact coefficients: one for each task of linearised models, by accuracy itself, from one pass over examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from tajax.affine import AffineLogits, affine_logits, tally_at
from tajax.linearization import Linearized
from tajax.merging.method import check_data
from tajax.merging.methods.task_arithmetic import task_arithmetic
from tajax.metrics import compute_each
from tajax.scaling import exact_coefs
from tajax.types import ApplyFn, Batch, Head, Params


def exact_coefficients(pretrained: Params, taus: Sequence[Params], *, coefs: Float[Array, " T"]) -> Params:
    """θ₀ + Σ_t c_t τ_t with a coefficient for each task.

    Args:
        pretrained: θ₀.
        taus: T task vectors, trees with the paths and shapes of `pretrained`.
        coefs: c [T] from `fit_exact_coefficients`.

    Returns:
        A tree with the dtypes of `pretrained`.

    Raises:
        ValueError: there are no vectors, one differs from `pretrained`, or there are not as many `coefs`.

    Source:
        Ours; after Ilharco et al. 2023, §4, who tune one coefficient for all tasks on a grid.

    Example:
        >>> import jax.numpy as jnp
        >>> exact_coefficients({"w": 0.0}, [{"w": 1.0}, {"w": 4.0}], coefs=jnp.array([1.0, 0.5]))
        {'w': Array(3., dtype=float32)}
    """
    return task_arithmetic(pretrained, taus, coefs=coefs)


def fit_exact_coefficients(
    encode: ApplyFn,
    pretrained: Params,
    taus: Mapping[str, Params],
    batches: Mapping[str, Iterable[Batch]],
    heads: Mapping[str, Head],
    *,
    upper: float = 1.0,
) -> dict[str, Float[Array, " T"]]:
    """The c in [0, `upper`] at which no single one can be changed to a larger mean normalised accuracy on the examples.

    Accuracies are normalised by those of the fine-tuned models on the same examples. Every example goes through the
    encoder once, along all vectors; T + 1 scores a class are kept of it, on the host (`tajax.scaling.exact_coefs`).

    Args:
        encode: the forward pass of the models, from `tajax.linearize`.
        pretrained: θ₀.
        taus: the task vector of each task.
        batches: of each task, with labels. Of few examples coefficients are fitted too well: take all of validation.
        heads: of each task.
        upper: the largest coefficient, above 0.

    Returns:
        `coefs` for `exact_coefficients`.

    Raises:
        ValueError: `encode` is not linearised, `upper` is not above 0, or as `check_data`.
    """
    if not isinstance(encode, Linearized):
        raise ValueError(
            "exact coefficients are for linearised models, whose features are affine in the coefficients: give "
            "`tajax.linearize(encode, pretrained)`"
        )
    if not upper > 0:
        raise ValueError(f"upper is the largest coefficient, above 0; got {upper}")
    check_data(pretrained, taus, batches, heads)

    @jax.jit
    def rows_of(pretrained: Params, vectors: Sequence[Params], head: Head, inputs: Any) -> AffineLogits:
        return affine_logits(encode.apply_fn, pretrained, vectors, head, inputs, mask=encode.mask)

    vectors = jax.device_put(list(taus.values()))  # once, not at each batch
    rows, labels, single = [], [], []
    for number, task in enumerate(taus):
        scores, grams, known = [], [], []
        for batch in batches[task]:
            seen, real = rows_of(pretrained, vectors, heads[task], batch.inputs), np.asarray(batch.mask)
            scores.append(np.asarray(seen.scores)[real])
            grams.append(np.asarray(seen.gram)[real])
            known.append(np.asarray(batch.label)[real])
        whole: tuple[Any, ...] = (np.concatenate(scores), np.concatenate(grams), heads[task].num_classes)
        rows.append(AffineLogits(*whole))
        labels.append(np.concatenate(known))
        alone = tally_at(rows[-1], labels[-1], np.ones(len(labels[-1]), bool), np.eye(len(taus))[number : number + 1])
        single.append(compute_each(alone)[0]["top1"])
    return {"coefs": jnp.asarray(exact_coefs(rows, labels, single, bounds=(0.0, upper)).coefs)}

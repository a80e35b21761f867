"""DELTA: a teacher in the tangent space and an ordinary student, trained together; the student is kept.

Of two vectors, τ_T and τ_S, the first is that of tangent-space training with a penalty on its drift, and the second
follows it with the ordinary encoder, so that the fine-tuned model needs no expansion:

    L_T = CE(f(θ₀) + Jτ_T) + β drift(τ_T)
    L_S = CE(f(θ₀ + τ_S)) + β₁ E_a ‖f(θ₀ + aτ_S) − f(θ₀) − a Jτ_T‖² / E‖f(θ₀)‖² + β₂ drift(τ_S),    a ~ U(½, 1),

with a drawn anew in every step and no gradient through the teacher in L_S. What is minimised is L_T + L_S.

The drift is the energy of τ on the other tasks by Kronecker factors, Σ_s E‖Jτ‖² / E‖f‖², exactly that of
`tajax.training.tak` with its options `curvature`, `factors` and `weighting`. Departures from the paper, of which we
know the formulas and not the code: it takes the factors of general images instead of the other tasks', with the
diagonal corrected in their eigenbasis (EK-FAC); its constants are for another scale of the drift; and here both vectors
are clipped by one norm. A step costs an expansion and three passes of the encoder.

Records have the teacher's loss and accuracy; their `penalty` is the rest of L_T + L_S.

Source: arXiv 2605.18993 (DELTA, ICML 2026).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tajax import trees
from tajax.curvature.penalty import total
from tajax.finetune import Penalized, Penalty
from tajax.losses import cross_entropy, head_logits
from tajax.parametrization import Parametrization, masked
from tajax.training import Context, Options, TrainingMethod, tak
from tajax.types import Mask, Params, Trained

__all__ = ["METHOD", "teacher_and_student"]

_TEACHER, _STUDENT = "teacher", "student"
NEAREST = 0.5
"""The smallest a at which the student is compared with the teacher."""


def teacher_and_student(mask: Mask | None = None) -> Parametrization:
    """Two copies of what a mask names: θ is the teacher's, and the fine-tuned parameters are the student's.

    Example:
        >>> pretrained = {"a": jnp.ones(2), "b": jnp.zeros(1)}
        >>> both = teacher_and_student({"a": True, "b": False})
        >>> sorted(both.init(pretrained))
        ['student/a', 'teacher/a']
        >>> trained = {"teacher/a": jnp.zeros(2), "student/a": jnp.array([5.0, 5.0])}
        >>> both.restore(pretrained, trained)["a"], both.finetuned(pretrained, trained)["a"]
        (Array([0., 0.], dtype=float32), Array([5., 5.], dtype=float32))
    """
    one = masked(mask)

    def init(pretrained: Params) -> Trained:
        return {f"{who}/{path}": leaf for who in (_TEACHER, _STUDENT) for path, leaf in one.init(pretrained).items()}

    def of(who: str) -> Any:
        return lambda pretrained, trained: one.restore(pretrained, _own(who, trained))

    return Parametrization(init, restore=of(_TEACHER), outcome=of(_STUDENT))


def make_penalty(options: Options) -> Penalty:
    """All of L_T + L_S but the teacher's cross-entropy, which is the step's own loss."""

    def penalty(trained: Trained, seen: Penalized) -> Array:
        head, factors, key = seen.data
        inputs, labels, mask = seen.batch
        theta0 = trees.flatten_paths(seen.pretrained)
        student = seen.restore(_swapped(trained))
        taus = [
            {path: jnp.subtract(theta[path], theta0[path]) for path in _own(_TEACHER, trained)}
            for theta in map(trees.flatten_paths, (seen.restore(trained), student))
        ]
        drifts = [total(factors, tau) for tau in taus]
        losses = cross_entropy(head_logits(seen.encode(student, inputs), head), labels)

        a = jax.random.uniform(jax.random.fold_in(key, seen.step), minval=NEAREST)
        origin = jax.lax.stop_gradient(seen.encode(seen.pretrained, inputs))
        taught = origin + a * jax.lax.stop_gradient(seen.respond(trained, inputs))
        between = jax.tree.map(lambda p, q: (p + a * (q - p)).astype(p.dtype), seen.pretrained, student)
        apart = jnp.sum(jnp.square(seen.encode(between, inputs) - taught), axis=-1)

        def mean(rows: Array) -> Array:
            return jnp.sum(jnp.where(mask, rows, 0)) / jnp.maximum(jnp.sum(mask), 1)

        distance = mean(apart) / mean(jnp.sum(jnp.square(origin), axis=-1))
        return (
            options["drift"] * drifts[0]
            + mean(losses)
            + options["distill"] * distance
            + options["student_drift"] * drifts[1]
        )

    return penalty


def _own(who: str, trained: Trained) -> Trained:
    return {path.removeprefix(f"{who}/"): leaf for path, leaf in trained.items() if path.startswith(f"{who}/")}


def _swapped(trained: Trained) -> Trained:
    """With the student in the teacher's place, so that `restore` gives its parameters."""
    other = {_TEACHER: _STUDENT, _STUDENT: _TEACHER}
    return {path: trained["/".join((other[path.partition("/")[0]], path.partition("/")[2]))] for path in trained}


def _data(context: Context) -> Any:
    return context.head, tak.factors_of_others(context), jax.random.key(context.seed)


METHOD = TrainingMethod(
    penalty=make_penalty,
    data=_data,
    parametrization=lambda context: teacher_and_student(context.mask),
    check=tak.METHOD.check,
)

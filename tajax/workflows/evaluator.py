"""How the models of a run are measured: what is compiled for one stage serves every other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np
from numpy.typing import ArrayLike

from tajax import data, evaluate, metrics
from tajax.encoders.encoder import Encoder
from tajax.metrics import Means
from tajax.parallel import Placement
from tajax.splits import AffineSplit
from tajax.types import Batch, Head, Params


class BatchesOf(Protocol):
    """The batches of a split of a task."""

    def __call__(self, task: data.Task, split: str, /, *, by_length: bool = True) -> Iterable[Batch]:
        """As `Setup.batches`."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the models θ₀ + Σ_t c_t τ_t on tasks.

    Attributes:
        encoder: the pre-trained model.
        placement: where arrays live.
        linearized: whether the models are first-order expansions around θ₀.
        batches: every example of a split once, as `Setup.batches`.
        features_step: `(parameters, batch of Placement.shares) -> features [B, E]`, compiled once for all tasks.
        heads: a frozen head for each task name; those of the tasks are padded to the same number of classes.
    """

    encoder: Encoder
    placement: Placement
    linearized: bool
    batches: BatchesOf
    features_step: Callable[[Params, Batch], jax.Array]
    heads: Mapping[str, Head]

    @functools.cached_property
    def _sweep_steps(self) -> dict[bool, evaluate.SweepStep]:
        return {
            linearized: evaluate.make_sweep_step(encode, linearized=linearized, placement=self.placement)
            for linearized, encode in ((False, self.encoder.apply), (True, self.encoder.apply_for_responses))
        }

    @functools.cached_property
    def _affine_step(self) -> evaluate.AffineStep:
        return evaluate.make_affine_step(self.encoder.apply_for_responses, placement=self.placement)

    def evaluate(
        self, task: data.Task, split: str, taus: Sequence[Params] = (), coefs: ArrayLike = ((),)
    ) -> list[Means]:
        """`top1`, `loss` and `count` on a split at each row of coefficients [G, T]; without task vectors, at θ₀."""
        step = self._sweep_steps[self.linearized and bool(taus)]
        constants = self.encoder.params, taus, np.asarray(coefs), self.heads[task.name]
        tallies = evaluate.sweep(step, *constants, self.batches(task, split), placement=self.placement)
        return metrics.compute_each(tallies)

    def affine_split(self, task: data.Task, split: str, taus: Sequence[Params]) -> AffineSplit:
        """A split along each task vector, in the expansion: it can be evaluated anywhere without another pass."""
        constants = self.encoder.params, taus, self.heads[task.name]
        return evaluate.affine_split(self._affine_step, *constants, self.batches(task, split), placement=self.placement)

"""How long the papers' eight tasks would take on a device: a prediction from counted operations, nothing measured."""

from __future__ import annotations

from typing import NamedTuple

import jax

from experiments.scale import operations, targets
from experiments.scale.programs import COEFS, STEPS, Job, traced

UTILISATION = 0.4
"""The assumed share of the peak that products reach, of the time of a whole step. Assumed, and not known."""

BATCH = 128  # of a training step

IMAGES = {
    "cars": (8144, 8041),
    "dtd": (3760, 1880),
    "eurosat": (24300, 2700),
    "gtsrb": (26640, 12630),
    "mnist": (60000, 10000),
    "resisc45": (18900, 6300),
    "sun397": (19850, 19850),
    "svhn": (73257, 26032),
}
"""Training images, those of validation among them, and test images of each task."""

OWN_VALIDATION = {"eurosat": 2700}


class Passes(NamedTuple):
    """How often an evaluation sees an image."""

    validation: int
    test: int


POINTWISE = Passes(len(COEFS) + 1, 3)
"""Ordinary models: each point of the sweep and the single-task model; on test zero-shot, single-task and merged."""

AFFINE = Passes(2, 2)
"""Linearised ones: along the sum of the vectors and along the task's own; zero-shot is on both."""


class Counted(NamedTuple):
    """Operations that the protocol takes."""

    training: float
    evaluation: float

    def seconds(self, target: targets.Target) -> float:
        """The time on a target at `UTILISATION` of its peak."""
        return sum(self) / (target.chips * target.teraflops * 1e12 * UTILISATION)


def counted(step: int, image: int, *, linearized: bool) -> Counted:
    """The operations of eight tasks.

    Args:
        step: of a training step of `BATCH` images.
        image: of one image in one pass of the evaluation.
        linearized: whether that is of a linearised model.
    """
    passes = AFFINE if linearized else POINTWISE
    images = passes.validation * validation_images() + passes.test * sum(test for _, test in IMAGES.values())
    return Counted(len(IMAGES) * STEPS * step, images * image)


def validation_images() -> int:
    """A tenth of what each task has to train on, at most 5,000; EuroSAT has its own."""
    return sum(OWN_VALIDATION.get(task, min(train // 10, 5000)) for task, (train, _) in IMAGES.items())


class Evaluation(NamedTuple):
    """Operations of one image in one pass."""

    pointwise: int
    """Of a forward pass."""
    affine: int
    """Of a linearised model along one task vector."""


def evaluation(model: str) -> Evaluation:
    """What evaluations of a model cost; it is traced and not compiled."""
    cpu, batch = jax.devices("cpu")[:1], 8
    jobs = Job("", model, "sweep", "standard", batch), Job("", model, "affine", "linear", batch)
    return Evaluation(*(operations.count(traced(job, cpu).jaxpr) // batch for job in jobs))

"""Records of what is made before anything is measured: checkpoints, heads, trainings, fits."""

from typing import Any, NotRequired

from tajax.records.base import Recorded


class Training(Recorded):
    """A point of a training: means since the point before."""

    step: int
    loss: float
    learning_rate: float


class Pretrain(Training):
    """Contrastive pre-training."""


class Checkpoint(Recorded):
    """An imported task vector."""

    task: str
    source: str
    format: str
    notes: NotRequired[list[str]]
    """What was not read of it."""
    rounding: NotRequired[dict[str, Any]]
    warning: NotRequired[str]


class Head(Recorded):
    """A linear probe, fitted to features of the pre-trained model."""

    task: str
    kind: str
    base_sha256: str
    made_from: NotRequired[dict[str, Any]]
    images: int
    regularization: float
    train_top1: float
    val_top1: float
    val_loss: float
    converged: bool


class Recomputation(Recorded):
    """How much of each layer fine-tuning computes again, where that was chosen by the memory of the devices."""

    remat: str
    needs: dict[str, int | None]
    """Bytes a device of each step that was compiled; None where the compiler found that it cannot fit, or says
    nothing."""
    free: int
    """Bytes that there were for it, on the device that has the least."""
    device_kind: str
    device_count: int
    placement: str


class Finetune(Training):
    """Fine-tuning on a task."""

    task: str
    top1: float
    grad_norm: float
    penalty: NotRequired[float]


class Tuning(Recorded):
    """A candidate of `config.tune`, and what its merged model is worth on validation."""

    settings: dict[str, float]
    """By the field of `config.finetune`."""
    merged_top1: float
    """Mean over tasks, at the best α."""
    single_top1: float
    """Mean over tasks of the fine-tuned models, each on its own."""
    seconds: float
    chosen: bool
    at_the_end: list[str]
    """Of the one that was chosen: fields of which it is the smallest or largest value that was tried."""


class MergingFit(Recorded):
    """What a merging method found in examples of the tasks."""

    method: str
    split: str
    """Of the tasks, from which the examples are."""
    images: dict[str, int]
    """How many of each task."""
    labels: bool
    """Whether it was given the labels."""
    seconds: float
    found: NotRequired[dict[str, Any]]
    """What was found, if it is small: coefficients, for example, by what they are of, with the tasks in order."""

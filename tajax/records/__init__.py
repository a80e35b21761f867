"""The schema of `results.jsonl`: for each stage the type of its records, which has its name.

    find(records, SingleTask, split="test")[0]["top1"]

A stage is called as its type is, in small letters: records of `SingleTask` have the stage "single_task". Who writes and
who reads them does it through these types, so that a type checker finds a field that is not there. The types are for
type checkers alone: a record is a dictionary, and one of an earlier version may lack what is `NotRequired` here.

Accuracies are fractions in [0, 1], of images of a split; losses are cross-entropies in nats. B is the number of
images, T that of tasks, L that of layers, A that of coefficients.
"""

from tajax.records.accuracy import (
    Accuracy,
    AnalogySweep,
    Control,
    ExactNegationCoef,
    ExactScalingCoef,
    Example,
    NegationSweep,
    Playground,
    PlaygroundCoefs,
    Predictions,
    SingleTask,
    Sweep,
    TaskAddition,
    TaskAnalogy,
    TaskNegation,
    ZeroShot,
)
from tajax.records.analyses import Curvature, Disentanglement, Geometry, KernelBehaviour, Ntk
from tajax.records.base import Recorded, Run, stage_of
from tajax.records.training import Checkpoint, Finetune, Head, MergingFit, Pretrain, Recomputation, Training, Tuning

__all__ = [
    "Accuracy",
    "AnalogySweep",
    "Checkpoint",
    "Control",
    "Curvature",
    "Disentanglement",
    "ExactNegationCoef",
    "ExactScalingCoef",
    "Example",
    "Finetune",
    "Geometry",
    "Head",
    "KernelBehaviour",
    "MergingFit",
    "NegationSweep",
    "Ntk",
    "Playground",
    "PlaygroundCoefs",
    "Predictions",
    "Pretrain",
    "Recomputation",
    "Recorded",
    "Run",
    "SingleTask",
    "Sweep",
    "TaskAddition",
    "TaskAnalogy",
    "TaskNegation",
    "Training",
    "Tuning",
    "ZeroShot",
    "stage_of",
]

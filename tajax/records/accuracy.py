"""Records of accuracies: of the pre-trained, of single and of merged models, and of predictions."""

from typing import NotRequired, TypedDict

from tajax.records.base import Recorded


class Accuracy(Recorded):
    """Accuracy on a split of a task, of whichever model the stage is about."""

    task: str
    split: str
    top1: float
    loss: NotRequired[float]
    count: NotRequired[int]


class ZeroShot(Accuracy):
    """The pre-trained model."""


class Control(Accuracy):
    """The pre-trained model on the control."""


class SingleTask(Accuracy):
    """The model that was fine-tuned on the task."""


class Sweep(Accuracy):
    """The merged model at a coefficient of the grid."""

    scaling_coef: float


class ExactScalingCoef(Recorded):
    """The best coefficient of all, as `tajax.scaling.Optimum`."""

    split: str
    scaling_coef: float
    value: float
    lower: float
    upper: float


class TaskAddition(Accuracy):
    """The merged model at the chosen coefficient."""

    scaling_coef: float
    normalized_top1: float | None
    """By the accuracy of the fine-tuned model; None where that is 0."""
    method: NotRequired[str]
    tuned: NotRequired[bool]
    """False for a method without a coefficient."""
    search: NotRequired[str]
    """How α was found where not all of the grid was measured: `coarse_to_fine`."""


class Example(TypedDict):
    """A test example: its file, .png or .txt, row, class, and the classes that three models predict."""

    file: str
    kind: str
    row: int
    label: int
    pretrained: int
    single: int
    merged: int


class Predictions(Recorded):
    """How the predictions of the pre-trained, the single-task and the merged model agree on a split."""

    task: str
    split: str
    classes: list[str]
    examples: NotRequired[list[Example]]
    count: int
    top1: dict[str, float]
    """Of each of the three models."""
    correctness: list[list[int]]
    """[[a, b], [c, d]], counts: the single-task model right in the first row, the merged one in the first column."""
    confusion: list[list[int]]
    """`[single, merged, count]` for each pair of predicted classes that there is."""


class Playground(Recorded):
    """Scores of some examples of a task, or of the control, along each vector, in `playground/TASK.safetensors`."""

    task: str
    split: str
    directions: list[str]
    """The tasks of the vectors."""
    bounds: list[float]
    """[2]: the least and the largest coefficient that the scores are good for."""
    count: int
    complete: int
    """Of these examples, those of which every class that can win is there."""
    changed: float
    """The share of predictions that the rounding changes, over random coefficients (`tajax.coded_scores`)."""


class PlaygroundCoefs(Recorded):
    """The best coefficients on the examples of `Playground`: by their mean normalised accuracy."""

    directions: list[str]
    single: list[float]
    """[T]: the accuracy of each fine-tuned model on its own task, on these examples."""
    common: float
    """One for all vectors."""
    common_value: float
    coefs: list[float]
    """[T]: one for each, none of which can be bettered alone."""
    value: float


class NegationSweep(Accuracy):
    """The model without `task`, at a coefficient of the grid."""

    measured_on: str
    """That task, or the control."""
    scaling_coef: float


class _Negation(TypedDict):
    """`tajax.scaling.Negation`."""

    scaling_coef: float
    satisfied: bool
    at_end: bool
    lower: float
    upper: float


class ExactNegationCoef(Recorded, _Negation):
    """The coefficient that forgets most of all that keep the control."""

    task: str
    split: str


class TaskNegation(Accuracy, _Negation):
    """The model without `task` at the chosen coefficient."""

    control: str
    control_required: float
    control_top1: float
    control_loss: float
    control_count: int


class AnalogySweep(Accuracy):
    """The fourth task of an analogy at a coefficient of the grid."""

    vector: str
    """What is added: `analogy`, or `c_alone`."""
    scaling_coef: float


class TaskAnalogy(Accuracy):
    """The fourth task of an analogy at the chosen coefficient."""

    vector: str
    scaling_coef: float

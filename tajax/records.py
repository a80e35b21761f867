"""The schema of `results.jsonl`: for each stage the type of its records, which has its name.

    find(records, SingleTask, split="test")[0]["top1"]

A stage is called as its type is, in small letters: records of `SingleTask` have the stage "single_task". Who writes and
who reads them does it through these types, so that a type checker finds a field that is not there. The types are for
type checkers alone: a record is a dictionary, and one of an earlier version may lack what is `NotRequired` here.

Accuracies are fractions in [0, 1], of images of a split; losses are cross-entropies in nats. B is the number of
images, T that of tasks, L that of layers, A that of coefficients.
"""

import re
from typing import Any, NotRequired, TypedDict


def stage_of(kind: Any) -> str:
    """The stage of the records of a type.

    Example:
        >>> stage_of(SingleTask), stage_of(Ntk)
        ('single_task', 'ntk')
    """
    return re.sub("(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


class Recorded(TypedDict, total=False):
    """What every record has, added by the journal."""

    stage: str
    config_hash: str
    seed: int
    regime: str
    model: str
    elapsed_seconds: float
    """Since the process began."""
    warnings: list[str]
    """What a reader should know of the numbers, a line each."""


class Run(Recorded, total=False):
    """A process that begins to record: what it measures stands behind it, up to the next of these."""

    family: NotRequired[str]
    """Of the model; of earlier versions clip, always."""
    base_sha256: str
    revision: str | None
    base_notes: list[str]
    """This and the next two: of a CLIP. Other families have other facts."""
    preprocessing: dict[str, Any]
    activation: dict[str, str]
    vectors: str
    """Where the task vectors are from: trained, reused, imported, or none."""
    trained_parameters: int | None
    """How many are trained, or moved by vectors from elsewhere; None where those do not say it."""
    trained_factors: NotRequired[int]
    """How many numbers are trained in place of these, where a regime trains factors of them."""
    total_parameters: int
    heads: str
    manifests: dict[str, Any]
    cuts: dict[str, Any]
    """Of each task whose validation or test images were cut from another split: seed and count."""
    data: dict[str, Any]
    """A digest of each part of each task."""
    examples: NotRequired[str]
    """What the tasks are of: images or texts."""
    skipped_images: dict[str, dict[str, int]]
    """Images and texts that cannot be read and were left out, by task and split."""
    cut_texts: NotRequired[dict[str, dict[str, int]]]
    """Texts that are longer than the encoder takes, by task and split."""
    processes: int
    command: str
    time: str
    versions: dict[str, str]
    platform: str
    device_kind: str
    device_count: int
    cpu_count: int
    git_revision: str


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


class Disentanglement(Recorded):
    """The map of a pair of tasks for one distance."""

    tasks: list[str]
    split: str
    distance: str
    summary: float
    """The mean of ξ / 2 over [−1, 1]²."""
    relative: float | None
    """The same mean of `tajax.disentanglement.relative_terms`; None where a task's own vector moves nothing."""
    own: list[float]
    """[2]: how far each task's own vector moves its own outputs, at α = 1 …"""
    own_curve: NotRequired[list[list[float]]]
    """… and [2, A], at each α."""
    images: list[int]
    coefs: list[float]
    terms: list[list[list[float]]]
    """[2, A, A]: both terms of ξ, α₁ along the first axis A."""


class KernelBehaviour(Recorded):
    """A model and its linearisation at θ₀ + ατ."""

    task: str
    split: str
    scaling_coef: float
    norm: float
    """α‖τ‖."""
    relative_gap: float
    """As in `tajax.relative_feature_gap`."""
    relative_movement: float
    """‖f(θ₀+ατ) − f(θ₀)‖ / ‖f(θ₀)‖ over all images."""
    top1: float
    linearized_top1: float
    agreement: float
    """The share of images for which both predict the same class."""
    count: int


class Geometry(Recorded):
    """The task vectors in a module: `all`, the node that stacks the layers, or a path."""

    module: str
    tasks: list[str]
    parameters: int
    norms: list[float]
    """[T]: ‖τ_t‖ there."""
    pretrained_norm: float
    """‖θ₀‖ there."""
    cosines: list[list[float | None]]
    """[T, T]; None where a vector is zero."""
    layer_norms: NotRequired[list[list[float]]]
    """[T, L], where layers are stacked."""
    layer_pretrained_norms: NotRequired[list[float]]
    """[L]."""
    layer_cosines: NotRequired[list[float | None]]
    """[L]: means over pairs of tasks."""


class Curvature(Recorded):
    """The factors of a task's curvature at θ₀, in `curvature/TASK.safetensors`."""

    task: str
    images: int
    seconds: float
    """That the factors took, with the reading of the images."""
    megabytes: float
    """10⁶ bytes, of the file."""
    feature_norm: float
    """√E‖f(x; θ₀)‖²."""
    kronecker: list[str]
    """Leaves with a pair of factors; a kernel and its bias have one name."""
    rows: list[str]
    """Of these, tables of vectors that are taken row by row."""
    gram: list[str]
    """Leaves with the full second moment of their gradients."""


class Ntk(Recorded):
    """Where the leading eigenfunctions of a kernel live.

    Names that begin with `energy_` are local energies Σ_ρ φ_ρ(x)² of single images. Nyström: of the eigenfunctions of
    all task images on these (`own`) and on the control's (`control`); of those of either half on the other half (`new`)
    and on the control's (`new_control`). Mixture: on both sides.
    """

    task: str
    control: str
    reading: str
    """`nystrom` or `mixture`."""
    kernel: str
    output: str
    directions: int | None
    initialization: str
    images: int
    split: str
    eigenvalues: list[float]
    share: float
    """Nyström: Ē_new / (Ē_new + Ē_new_control), ½ if the energy is no larger on new images of the task than on the
    control's. Mixture: the mean of `shares`."""
    shares: list[float]
    """Nyström: `share` for the first 1, 2, … eigenfunctions. Mixture: the p_ρ."""
    energy_own: list[float]
    energy_control: list[float]
    share_in_sample: NotRequired[float]
    """Nyström: Ē_own / (Ē_own + Ē_control)."""
    separation: NotRequired[float]
    """Nyström: the area under the ROC curve of the new energies."""
    reverse_share: NotRequired[float]
    """Nyström: with the roles of task and control exchanged. A kernel whose eigenfunctions are merely larger on one of
    the two has a share below ½ on one way and above it on the other, one that keeps them apart above ½ on both."""
    reverse_separation: NotRequired[float]
    energy_new: NotRequired[list[float]]
    energy_new_control: NotRequired[list[float]]
    contrast: NotRequired[float]
    """Mixture: this and the next two are means over ρ as in `tajax.ntk.Mixture`."""
    chance: NotRequired[float]
    excess: NotRequired[float]

"""Records of analyses of task vectors and of the kernel."""

from typing import NotRequired

from tajax.records.base import Recorded


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

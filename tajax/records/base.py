"""What every record has, and the record of a process."""

import re
from typing import Any, NotRequired, TypedDict


def stage_of(kind: Any) -> str:
    """The stage of the records of a type.

    Example:
        >>> from tajax.records import Ntk, SingleTask
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
    precision: NotRequired[str]
    """How exactly the encoder computes, as asked for; of earlier versions default, always."""
    products: NotRequired[str]
    """What the factors of its products are rounded to on these devices."""
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

"""The table of tasks: where each one's images are, how they are split, and what its prompts say.

A row holds facts alone; `tasks.open_task` acts on them and `python -m tajax.data --check` compares with them. Splits
are those of the papers' code, which is not always what TFDS suggests: DTD trains on the official training and
validation images, Flowers102 on the 1,020 training images alone, Food101 is tested on what TFDS calls validation, and
no row validates on an official validation split, because the protocol cuts a tenth off the training images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tajax.data import prompts
from tajax.data.builders import ALL
from tajax.data.manifests import SplitRule


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A row of the table.

    Attributes:
        tfds: name in the TFDS catalogue, with its config, or of a builder of ours (`tajax_…`).
        epochs: of the protocol; None: not given (bundled tasks, and the control).
        templates: prompts, each with one {}.
        class_names: name of a class in prompts by its stored name, K pairs in the order of the labels.
        splits: role → TFDS split; None: as the names suggest.
        counts: images of the whole data set, "train" (validation included) and "test"; None: not fixed.
        manifest: how the files of a data set with one split alone are divided; None: it has splits.
        archive: the builder of ours for the official archive, used where `tfds` is not prepared; None: there is none.
        hint: what to know when it is not prepared yet.
    """

    tfds: str
    epochs: int | None
    templates: tuple[str, ...]
    class_names: Mapping[str, str]
    splits: Mapping[str, str] | None = None
    counts: Mapping[str, int] | None = None
    manifest: SplitRule | None = None
    archive: str | None = None
    hint: str = ""


_TRAIN_TEST = {"train": "train", "test": "test"}


def _row(
    name: str,
    dataset: str,
    epochs: int | None,
    *,
    train: int,
    test: int,
    splits: Mapping[str, str] = _TRAIN_TEST,
    **more: Any,
) -> TaskSpec:
    return TaskSpec(
        dataset,
        epochs,
        prompts.TEMPLATES[name],
        prompts.class_names(name),  # the 21 files take 2 ms, TensorFlow Datasets beside them takes seconds
        splits=splits,
        counts={"train": train, "test": test},
        **more,
    )


# The papers split EuroSAT at random, 270 images of each class for validation and as many for testing, and never
# published the draw. Of a class of 3,000, 2,500 or 2,000 images, 2,460, 1,960 or 1,460 are left to train on.
# RESISC45's sizes are those of the lists that their code loads (Neumann et al. 2019, arXiv:1911.06721): of the 700
# images of a class 420 are trained on, 140 tested on, and 140, that paper's validation images, used for nothing. The
# lists themselves can be given as a manifest.
_EUROSAT = SplitRule(
    files={
        **{name: 3000 for name in ("AnnualCrop", "Forest", "HerbaceousVegetation", "Residential", "SeaLake")},
        **{name: 2500 for name in ("Highway", "Industrial", "PermanentCrop", "River")},
        "Pasture": 2000,
    },
    pattern="{name}_{number}.jpg",
    take={"test": 270, "val": 270},
)
_RESISC45 = SplitRule(
    files=dict.fromkeys(prompts.class_names("resisc45"), 700),
    pattern="{name}_{number:03d}.jpg",
    take={"test": 140, "unused": 140},
)
_ONE_SPLIT = {"train": "train"}

PROTOCOL: dict[str, TaskSpec] = {
    "cars": _row(
        *("cars", "cars196", 35),
        train=8_144,
        test=8_041,
        archive="tajax_cars",
        hint="The download link of cars196 is dead.",
    ),
    "dtd": _row("dtd", "dtd", 76, train=3_760, test=1_880, splits={"train": "train+validation", "test": "test"}),
    "eurosat": _row(
        *("eurosat", "eurosat/rgb", 12),
        train=24_300,
        test=2_700,
        splits=_ONE_SPLIT,
        manifest=_EUROSAT,
        hint="Its host's certificate has expired (pytorch/vision#8563); torchvision fetches the same EuroSAT.zip from "
        "https://huggingface.co/datasets/torchgeo/eurosat.",
    ),
    # TFDS has GTSRB only in visual_domain_decathlon, at 72 pixels and with test labels of −1.
    "gtsrb": _row("gtsrb", "tajax_gtsrb", 11, train=26_640, test=12_630),
    "mnist": _row("mnist", "mnist", 5, train=60_000, test=10_000),
    "resisc45": _row("resisc45", "resisc45", 15, train=18_900, test=6_300, splits=_ONE_SPLIT, manifest=_RESISC45),
    # The default config of sun397 is a random split; this is the first of the ten official ones.
    "sun397": _row("sun397", "sun397/standard-part1-120k", 14, train=19_850, test=19_850),
    "svhn": _row("svhn", "svhn_cropped", 4, train=73_257, test=26_032),
    "imagenet": _row(
        *("imagenet", "imagenet2012", None),
        train=1_281_167,
        test=50_000,
        splits={"train": "train", "test": "validation"},
    ),
}
"""The eight tasks of the protocol, and ImageNet, the control of negation."""

SUITE: dict[str, TaskSpec] = {name: row for name, row in PROTOCOL.items() if name != "imagenet"} | {
    "stl10": _row("stl10", "stl10", 60, train=5_000, test=8_000),
    "oxford_iiit_pet": _row("oxford_iiit_pet", "oxford_iiit_pet", 82, train=3_680, test=3_669),
    "flowers102": _row("flowers102", "oxford_flowers102", 147, train=1_020, test=6_149),
    "cifar100": _row("cifar100", "cifar100", 6, train=50_000, test=10_000),
    "pcam": _row("pcam", "patch_camelyon", 1, train=262_144, test=32_768),
    "fer2013": _row("fer2013", "tajax_fer2013", 10, train=28_709, test=7_178),  # tested on both official test sets
    "cifar10": _row("cifar10", "cifar10", 6, train=50_000, test=10_000),
    "food101": _row(
        *("food101", "food101", 4),
        train=75_750,
        test=25_250,
        splits={"train": "train", "test": "validation"},
    ),
    "fashion_mnist": _row("fashion_mnist", "fashion_mnist", 5, train=60_000, test=10_000),
    "rendered_sst2": _row("rendered_sst2", "tajax_rendered_sst2", 39, train=6_920, test=1_821),
    # EMNIST's images are mirrored and turned, here and in the papers' code: nobody sets them upright.
    "emnist": _row("emnist", "emnist/digits", 2, train=240_000, test=40_000),
    "kmnist": _row("kmnist", "kmnist", 5, train=60_000, test=10_000),
}
"""The twenty tasks of the suite: the protocol's eight, then six that make fourteen, then the last six."""

BUNDLED: dict[str, TaskSpec] = {
    name: TaskSpec(f"tajax_{name}", None, spec.templates, {stored: stored for stored in spec.class_names})
    for name, spec in ALL.items()
}
"""The synthetic tasks that need no download: eight tasks, and "objects", the control of negation."""

TASKS: dict[str, TaskSpec] = BUNDLED | PROTOCOL | SUITE

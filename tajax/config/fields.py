"""The fields of a run: their defaults, units and readers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import get_args

from ml_collections import ConfigDict, config_dict

from tajax import task_names
from tajax.merging import METHODS, PREPARATIONS
from tajax.options import Option
from tajax.questions import ON_VECTORS, QUESTIONS
from tajax.regimes import regime_options
from tajax.types import Precision, Remat

WORKFLOWS: Mapping[str, str] = {name: question.text for name, question in QUESTIONS.items()}
INITIALIZATIONS = ("pretrained", "random")
HEADS = ("zero_shot", "linear_probe")
SEARCHES = ("coarse_to_fine", "grid")
SPLITS = ("train", "val", "test")
KERNEL_OUTPUTS = ("trace", "diagonal", "full")
SCENES = ("small", "large")
ON_BAD_IMAGE = ("error", "skip")
REMATS = ("auto", *get_args(Remat))
PRECISIONS: tuple[str, ...] = get_args(Precision)

TEXT_TASKS = task_names.TEXT_TASKS  # by their files in the data directory
BUNDLED_TASKS = ("shapes", "colors", "digits", "letters", "textures", "counting", "signs", "arrows")
PROTOCOL_TASKS = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")
SUITE_TASKS = (  # of the suite of twenty; the first fourteen are a suite, too
    *PROTOCOL_TASKS,
    *("stl10", "oxford_iiit_pet", "flowers102", "cifar100", "pcam", "fer2013"),
    *("cifar10", "food101", "fashion_mnist", "rendered_sst2", "emnist", "kmnist"),
)

# Fields that change where, how fast or how often, and never what is computed: not part of `config_hash`.
OPERATIONAL = (
    "variant",
    "data_dir",
    "data_workers",
    "keep_programs",
    "devices",
    "placement",
    "fsdp",
    "finetune.checkpoint_every",
    "finetune.checkpoint_seconds",
    "finetune.log_every",
    "finetune.remat",
    "evaluate.batch_size",
    "evaluate.search",  # a run can go on with the whole grid; should another α be best there, it says so and stops
    "ntk.batch_size",
    "ntk.memory",
    "curvature.batch_size",
    "save.merged",
    "save.examples",
    "save.open_clip",
    "save.playground",
    "track.tensorboard",
    "track.wandb",
    "pretrain.checkpoint_every",
    "pretrain.checkpoint_seconds",
    "pretrain.eval_every",  # of earlier versions, in whose `config.json` it stands; nobody has read it
    "pretrain.log_every",
)

# Fields, or whole sections of them, that only these workflows read. What is not here, all of them do.
READERS = {
    field: tuple(name for name, question in QUESTIONS.items() if field in question.reads)
    for question in QUESTIONS.values()
    for field in question.reads
}

# Of these, what a workflow does not read counts to it all the same, as it always has: finished runs are found by it.
COUNT_ANYWAY = (*ON_VECTORS, "evaluate.scaling_coefs", "evaluate.exact", "save")


# What runs of earlier versions did, whose `config.json` has no such field: those that read it, and of the options of a
# merging method those that merged by it.
FORMERLY: Mapping[str, object] = {"finetune.protocol": 1, "merging.wudi.ridge": 0}

RENAMED: Mapping[str, str] = {
    "merging.density": "merging.ties.density",
    "merging.ties_merge": "merging.ties.merge",
    "merging.drop_rate": "merging.dare.drop_rate",
}
"""Fields by the name that earlier versions gave them, which still counts in hashes."""

PROTOCOL = 2
"""Of fine-tuning. Since 2: step k of a warm-up of W is taken at λ(k + 1)/W, and the last batch of an epoch is as small
as what is left, as in the papers' released code; before, at λk/W, and batches went on in the next epoch."""


def merging_options() -> dict[str, Option]:
    """What merging methods and preparations leave open, by field: each has a section of its own.

    Example:
        >>> merging_options()["merging.ties.density"].default
        0.2
    """
    return {
        f"merging.{name}.{keyword}": option
        for name, options in _merging_sections().items()
        for keyword, option in options.items()
    }


def _merging_sections() -> dict[str, Mapping[str, Option]]:
    methods = {name: row.settings for name, row in METHODS.items()}
    return methods | {name: row.options for name, row in PREPARATIONS.items()}


def options() -> dict[str, Option]:
    """What methods of merging and regimes leave open, by field.

    Example:
        >>> options()["merging.dare.drop_rate"].wanted
        'a share below 1'
    """
    return merging_options() | {f"finetune.{name}": option for name, option in regime_options().items()}


def default_config() -> ConfigDict:
    """Every field with its default: the published protocol (Ilharco et al. 2023) on the bundled model and tasks.

    Returns:
        A locked `ConfigDict`: assigning to an unknown field raises `AttributeError` with the nearest name.

    Example:
        >>> config = default_config()
        >>> config.finetune.learning_rate, config.evaluate.scaling_coefs[:3]
        (1e-05, (0.0, 0.05, 0.1))
    """
    config = ConfigDict()
    config.workflow = "task_addition"  # one of WORKFLOWS; main
    config.variant = ""  # set by with_variant, names the default workdir; main
    config.regime = "standard"  # one of REGIMES; finetune and evaluate
    config.trainable = config_dict.placeholder(object)  # rule, patterns or {pattern: bool}; None: regime's
    config.linearize_through_norm = False  # the expansion is of x/‖x‖ instead of the features x; linearised regimes
    config.layers = config_dict.placeholder(tuple)  # (first, end) of the layers that are trained; None: all
    config.model = "tiny"  # "tiny", a hub id, owner/name@revision where it is to be pinned, or a directory; models.load
    config.family = "clip"  # one of FAMILIES, of which the model is; encoders
    config.initialization = "pretrained"  # of the encoder, one of INITIALIZATIONS; random: drawn from the seed
    config.heads = "zero_shot"  # one of HEADS: from class names, or fitted to the pre-trained features
    config.tasks = BUNDLED_TASKS  # names of the task table, TFDS names, folders, .npz files or tables; data.open_task
    config.control = config_dict.placeholder(str)  # a task that edits must leave alone; task_negation and ntk
    config.task_vectors = config_dict.placeholder(str)  # workdir whose vectors are reused; None: train
    config.checkpoints = config_dict.placeholder(tuple)  # fine-tuned elsewhere, one a task, or one with {task} in it
    config.any_base = False  # take task vectors that were made from another base, too
    config.seed = 0  # order of examples, augmentation; data.load and finetune
    config.data_dir = os.environ.get("TAJAX_DATA_DIR", "~/.cache/tajax")  # prepared data sets; data
    config.on_bad_image = "error"  # one of ON_BAD_IMAGE: what an image or text that cannot be read does; data
    config.max_tokens = config_dict.placeholder(int)  # of a text, longer ones are cut; None: the encoder's limit; data
    config.data_workers = 0  # processes that decode images, 0: in the main process; data.load
    config.keep_programs = True  # compiled ones in data_dir/programs, for the next run to begin at once; compilation
    config.devices = config_dict.placeholder(int)  # local devices to use; None: all; parallel
    config.precision = "default"  # one of PRECISIONS: of the encoder's products, or all of it in bfloat16; precision
    config.placement = "replicated"  # one of PLACEMENTS, where parameters and batches live on them; parallel
    config.fsdp = config_dict.placeholder(int)  # devices that share a copy, None: those of a process; parallel

    config.finetune = finetune = ConfigDict()
    finetune.optimizer = "adamw"  # one of OPTIMIZERS; muon: of matrices, and AdamW for the rest; optim
    finetune.learning_rate = 1e-5  # peak of the cosine schedule; optim
    finetune.weight_decay = 0.1  # decoupled; optim
    finetune.clip_norm = 1.0  # global gradient norm over the trained leaves, inf: never clip; optim
    finetune.penalty_strength = config_dict.placeholder(float)  # times the penalty; None: the regime's own; training
    finetune.protocol = PROTOCOL  # version of schedule and batches, no other can be had; finetune
    finetune.steps = config_dict.placeholder(int)  # optimiser steps a task; None: from `epochs`; finetune
    finetune.epochs = config_dict.placeholder(int)  # passes over train; None: the task table's; finetune
    finetune.warmup_steps = config_dict.placeholder(int)  # linear warm-up; None: a tenth of the steps; optim
    finetune.batch_size = 128  # examples an optimiser step, all devices together; data.load
    finetune.accumulation_steps = 1  # parts a batch is computed in, one after the other; finetune
    finetune.augment = True  # of images, random resized crop of scale 0.9–1.0; data.load
    finetune.remat = "auto"  # one of REMATS: activations that are recomputed; auto: as few as fit; encoders
    finetune.checkpoint_every = 500  # steps; finetune
    finetune.checkpoint_seconds = 300.0  # or so long since the last one, whichever is first; inf: never; finetune
    finetune.log_every = config_dict.placeholder(int)  # steps; None: about forty times a training; finetune

    config.tune = tune = ConfigDict()  # tried on validation before the run, by the merged model's accuracy
    tune.learning_rate = config_dict.placeholder(tuple)  # candidates for finetune.learning_rate; None: that alone
    tune.penalty_strength = config_dict.placeholder(tuple)  # for finetune.penalty_strength, with every rate

    config.evaluate = evaluate = ConfigDict()
    evaluate.batch_size = 256  # examples; accuracy does not depend on it; evaluate
    evaluate.scaling_coefs = tuple(round(0.05 * k, 2) for k in range(21))  # the grid of α; evaluate
    evaluate.search = "coarse_to_fine"  # one of SEARCHES: measure about half of the grid, or its whole curve; scaling
    evaluate.exact = False  # linearised regimes: the best of all α between the ends of the grid; scaling
    evaluate.control_threshold = 0.95  # control accuracy to keep, relative to the pre-trained one's; task_negation

    config.merging = merging = ConfigDict()  # read by workflows.task_addition
    merging.method = "task_arithmetic"  # one of METHODS; its α is then tuned, if it has one
    merging.prepare = ()  # of PREPARATIONS, done to the vectors before, the first one first; empty: none
    merging.images = 256  # examples of each task that methods which need data see, drawn with the seed; data.drawn
    merging.split = "val"  # one of SPLITS, from which they are; test: without labels, as in AdaMerging's paper
    for name, section in _merging_sections().items():
        if section:
            merging[name] = ConfigDict({keyword: option.default for keyword, option in section.items()})
    for field, option in regime_options().items():
        finetune[field] = option.default

    config.disentanglement = disentanglement = ConfigDict()  # read by workflows.disentanglement
    disentanglement.coefs = tuple(0.25 * k - 3 for k in range(25))  # values of α₁ and α₂
    disentanglement.pairs = config_dict.placeholder(tuple)  # pairs of task names; None: every pair
    disentanglement.split = "test"  # whose examples
    disentanglement.images = config_dict.placeholder(int)  # so many of each task, evenly spread; None: all

    config.ntk = ntk = ConfigDict()  # read by workflows.ntk
    ntk.images = 128  # of each task, and of the control, drawn with the seed
    ntk.split = "test"  # whose examples
    ntk.eigenfunctions = 16  # leading ones whose energy is measured, at most half of the images
    ntk.output = "trace"  # one of KERNEL_OUTPUTS: over the features, the mean over each on its own, or E×E matrices
    ntk.directions = config_dict.placeholder(int)  # random ones of the features that stand for all; None: all, exactly
    ntk.batch_size = 128  # examples: up to twice as many gradients are kept at once, in full as many activations
    ntk.memory = config_dict.placeholder(int)  # MiB of a device for gradients; None: half of it, of a CPU 4096

    config.curvature = curvature = ConfigDict()  # read by workflows.curvature
    curvature.images = 256  # training examples of each task, drawn with the seed; a few hundred are enough
    curvature.batch_size = 16  # examples at once: memory is what all dense layers are given and send back

    config.save = save = ConfigDict()
    save.merged = True  # write the merged model as a Hugging Face directory; workflows
    save.examples = True  # keep some test examples, as the models see them, for the report; workflows.task_addition
    save.open_clip = False  # write it for open_clip, too, to `merged_open_clip`; workflows
    save.playground = 256  # linearised regimes: validation examples a task whose scores the report holds; 0: none

    config.track = track = ConfigDict()  # where results are shown while they come; tracking
    track.tensorboard = True  # keep event files in the workdir, for `tensorboard --logdir`
    track.wandb = config_dict.placeholder(str)  # PROJECT or ENTITY/PROJECT of Weights & Biases; None: not sent

    config.pretrain = pretrain = ConfigDict()  # read by workflows.pretrain alone
    pretrain.initial_model = config_dict.placeholder(str)  # of this geometry, with its tokenizer; None: from the seed
    pretrain.steps = 4000  # optimiser steps
    pretrain.batch_size = 256  # image-caption pairs a step
    pretrain.learning_rate = 1e-3  # peak of the cosine schedule
    pretrain.weight_decay = 0.1  # AdamW, decoupled
    pretrain.warmup_steps = 200  # linear warm-up
    pretrain.natural = config_dict.placeholder(tuple)  # .npz files of JPEG bytes and labels; None: no photographs
    pretrain.natural_fraction = 0.5  # share of natural images in a batch, 0–1
    pretrain.share_power = 0.5  # of these, a source of n images has a share in proportion to n to this power
    pretrain.scenes = "large"  # one of SCENES: how many captioned scenes
    pretrain.checkpoint_every = 500  # steps
    pretrain.checkpoint_seconds = 300.0  # or so long since the last one, whichever is first
    pretrain.log_every = 50  # steps
    pretrain.image_size = 32  # pixels
    pretrain.patch_size = 8  # pixels, divides image_size
    pretrain.width = 128  # of the image tower
    pretrain.layers = 6  # of the image tower
    pretrain.heads = 4  # of the image tower, divides width
    pretrain.text_width = 128  # of the text tower
    pretrain.text_layers = 3  # of the text tower
    pretrain.text_heads = 4  # of the text tower, divides text_width
    pretrain.context_length = 32  # tokens
    pretrain.vocab_size = 2048  # byte-pair tokens, special ones included
    pretrain.embed_dim = 128  # features of both towers
    return config.lock()

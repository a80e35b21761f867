"""The fields of a run, their defaults and presets, and every check between them.

A config is a locked `ConfigDict`. `default_config` lists every field with its unit and its reader; files in
`configs/` are a short delta over it and take a variant (`with_variant`); `validate` refuses what cannot run
before any work starts. `workflows` unpack it: nothing below them sees a `ConfigDict`.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from ml_collections import ConfigDict, config_dict

Fields: TypeAlias = ConfigDict | Mapping[str, object]


class Regime(NamedTuple):
    """How one copy of the encoder is fine-tuned and then evaluated (papers: TTA §3–4, ATT §3)."""

    name: str
    trainable: str | Sequence[str] | Mapping[str, bool]  # for tajax.trees.param_mask: what moves
    train_linearized: bool  # fine-tune the first-order Taylor expansion around the pre-trained parameters
    evaluate_linearized: bool  # evaluate in that expansion


REGIMES: Mapping[str, Regime] = {
    regime.name: regime
    for regime in (
        Regime("standard", "all", False, False),
        Regime("attention", "attention", False, False),
        Regime("attention_with_bias", "attention_with_bias", False, False),
        Regime("linear", "all", True, True),
        Regime("linear_attention", "attention", True, True),
        Regime("posthoc", "all", False, True),
    )
}

WORKFLOWS = ("single_task", "task_addition", "pretrain")
SCENES = ("small", "large")

BUNDLED_TASKS = ("shapes", "colors", "digits", "letters", "textures", "counting", "signs", "arrows")
PROTOCOL_TASKS = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")

# Fields that change where, how fast or how often, and never what is computed: not part of `config_hash`.
OPERATIONAL = (
    "variant",
    "data_dir",
    "data_workers",
    "devices",
    "finetune.checkpoint_every",
    "finetune.log_every",
    "finetune.remat",
    "evaluate.batch_size",
    "save.merged",
    "pretrain.checkpoint_every",
    "pretrain.eval_every",
    "pretrain.log_every",
)


def default_config() -> ConfigDict:
    """Every field with its default: the published protocol (papers.md §1) on the bundled model and tasks.

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
    config.model = "tiny"  # "tiny", a hub id or a directory; models.load
    config.tasks = BUNDLED_TASKS  # names of the task table, TFDS names, folders or .npz files; data.open_task
    config.task_vectors = config_dict.placeholder(str)  # workdir whose vectors are reused; None: train
    config.seed = 0  # order of examples, augmentation; data.load and finetune
    config.data_dir = os.environ.get("TAJAX_DATA_DIR", "~/.cache/tajax")  # prepared data sets; data
    config.data_workers = 0  # processes that decode images, 0: in the main process; data.load
    config.devices = config_dict.placeholder(int)  # local devices to use; None: all; parallel

    config.finetune = finetune = ConfigDict()
    finetune.learning_rate = 1e-5  # peak of the cosine schedule; optim
    finetune.weight_decay = 0.1  # AdamW, decoupled; optim
    finetune.clip_norm = 1.0  # global gradient norm over the trained leaves, inf: never clip; optim
    finetune.steps = config_dict.placeholder(int)  # optimiser steps a task; None: from `epochs`; finetune
    finetune.epochs = config_dict.placeholder(int)  # passes over train; None: the task table's; finetune
    finetune.warmup_steps = config_dict.placeholder(int)  # linear warm-up; None: a tenth of the steps; optim
    finetune.batch_size = 128  # images an optimiser step, all devices together; data.load
    finetune.accumulation_steps = 1  # parts a batch is computed in, one after the other; finetune
    finetune.augment = True  # random resized crop of scale 0.9–1.0; data.load
    finetune.remat = False  # recompute activations in the backward pass: less memory, more time; models
    finetune.checkpoint_every = 500  # steps; finetune
    finetune.log_every = 50  # steps; finetune

    config.evaluate = evaluate = ConfigDict()
    evaluate.batch_size = 256  # images; accuracy does not depend on it; evaluate
    evaluate.scaling_coefs = tuple(round(0.05 * k, 2) for k in range(21))  # the grid of α; evaluate
    evaluate.exact = False  # linearised regimes: the best of all α between the ends of the grid; scaling

    config.save = save = ConfigDict()
    save.merged = True  # write the merged model as a Hugging Face directory; workflows

    config.pretrain = pretrain = ConfigDict()  # read by workflows.pretrain alone
    pretrain.steps = 4000  # optimiser steps
    pretrain.batch_size = 256  # image-caption pairs a step
    pretrain.learning_rate = 1e-3  # peak of the cosine schedule
    pretrain.weight_decay = 0.1  # AdamW, decoupled
    pretrain.warmup_steps = 200  # linear warm-up
    pretrain.natural = config_dict.placeholder(str)  # .npz of JPEG bytes and labels; None: no photographs
    pretrain.natural_fraction = 0.5  # share of natural images in a batch, 0–1
    pretrain.scenes = "large"  # one of SCENES: how many captioned scenes
    pretrain.eval_every = 500  # steps
    pretrain.checkpoint_every = 500  # steps
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


def _tiny(config: ConfigDict) -> None:
    """The bundled model and tasks; a small model learns from scratch-like steps, so few and large ones."""
    config.model = "tiny"
    config.tasks = BUNDLED_TASKS
    config.finetune.learning_rate = 1e-3
    config.finetune.steps = 200
    config.finetune.batch_size = 32


def _protocol(config: ConfigDict, model: str, *, accumulation_steps: int = 1) -> None:
    """The eight tasks and the hyper-parameters of the papers, as in the default."""
    config.model = model
    config.tasks = PROTOCOL_TASKS
    config.finetune.warmup_steps = 500
    config.finetune.accumulation_steps = accumulation_steps


VARIANTS = {
    "tiny": _tiny,
    "b32": lambda config: _protocol(config, "openai/clip-vit-base-patch32"),
    "b16": lambda config: _protocol(config, "openai/clip-vit-base-patch16"),
    "l14": lambda config: _protocol(config, "openai/clip-vit-large-patch14", accumulation_steps=2),
}


def with_variant(config: ConfigDict, name: str, *, among: Iterable[str] = tuple(VARIANTS)) -> ConfigDict:
    """`config` set up for one model and its tasks: the part after the colon in `configs/attn.py:b32`.

    Args:
        config: changed in place.
        name: `tiny` (bundled model and tasks), or `b32`, `b16`, `l14` (OpenAI CLIP, the papers' eight tasks).
        among: the variants that this config file offers.

    Returns:
        `config`.

    Raises:
        ValueError: `name` is not one of `among`.
    """
    VARIANTS[one_of("variant", name, among)](config)
    config.variant = name
    return config


def one_of(what: str, value: object, choices: Iterable[str]) -> str:
    """`value` if it is one of `choices`, else a `ValueError` that names the nearest and all of them."""
    choices = tuple(choices)
    if isinstance(value, str) and value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {value!r}.{hint} Choices: {', '.join(choices)}.")


def regime(config: ConfigDict) -> Regime:
    """The regime a config asks for, with `config.trainable` in place of its rule where given.

    Example:
        >>> config = default_config()
        >>> config.trainable = "mlp"
        >>> regime(config)
        Regime(name='standard', trainable='mlp', train_linearized=False, evaluate_linearized=False)
    """
    chosen = REGIMES[one_of("regime", config.regime, REGIMES)]
    if config.trainable is None:
        return chosen
    return chosen._replace(trainable=config.trainable)


def warmup_steps(config: ConfigDict, steps: int) -> int:
    """Warm-up of a fine-tuning of `steps` steps: as given, or a tenth of them.

    Raises:
        ValueError: the warm-up would fill the run, so that the learning rate never peaks.

    Example:
        >>> warmup_steps(default_config(), 150)
        15
    """
    warmup = config.finetune.warmup_steps
    if warmup is None:
        return steps // 10
    if warmup >= steps:
        raise ValueError(
            f"finetune.warmup_steps is {warmup}, but the run has {steps} steps: the learning rate would "
            f"never reach its peak. Give --config.finetune.warmup_steps={steps // 10} or more steps."
        )
    return warmup


def validate(config: ConfigDict) -> None:
    """Refuses a config that cannot run.

    Raises:
        ValueError: an unknown field, workflow, regime, or a value out of range or at odds with another. The
            message names field, value, choices and the nearest match.
        TypeError: a value of the wrong type.
    """
    default = default_config()
    _check_fields(config, default)
    one_of("workflow", config.workflow, WORKFLOWS)
    regime(config)
    one_of("pretrain.scenes", config.pretrain.scenes, SCENES)
    for field, value in flatten(config).items():
        unnamed = _COUNT if _field_type(default, field) is int else _ANYTHING
        holds, wanted = _RANGES.get(field.rpartition(".")[2], unnamed)
        if value is not None and not holds(value):  # NaN fails every comparison
            raise ValueError(f"{field} is {value!r}, want {wanted}.")
    _check_trainable(config.trainable)
    _check_tasks(config.tasks)
    _check_evaluate(config)
    _check_finetune(config)
    _check_pretrain(config)


_COUNT = (lambda v: v >= 1, "1 or more")  # of whole numbers, unless the table below knows better
_ANYTHING = (lambda v: True, "")
_RANGES = {  # by the last part of a field's name
    **dict.fromkeys(("seed", "data_workers", "warmup_steps"), (lambda v: v >= 0, "0 or more")),
    "learning_rate": (lambda v: 0 < v < math.inf, "a finite number above 0"),
    "weight_decay": (lambda v: 0 <= v < math.inf, "a finite number, 0 or above"),
    "clip_norm": (lambda v: v > 0, "a number above 0, or inf for no clipping"),
    "natural_fraction": (lambda v: 0 <= v <= 1, "a share between 0 and 1"),
    "model": (bool, "'tiny', a hub id such as 'openai/clip-vit-base-patch32', or a directory"),
}


def _check_fields(config: ConfigDict, default: ConfigDict) -> None:
    given, known = flatten(config), flatten(default)
    for field in given:
        one_of("config field", field, known)
    for field, standard in known.items():
        if field not in given:
            raise ValueError(f"config field {field!r} is missing. Start from tajax.config.default_config().")
        value, wanted = given[field], _field_type(default, field)
        if value is None and standard is not None:
            raise ValueError(f"config field {field!r} is None. Its default is {standard!r}.")
        allowed = (int, float) if wanted is float else wanted
        stray_bool = isinstance(value, bool) and wanted in (int, float)  # bool is an int to Python
        if value is not None and (stray_bool or not isinstance(value, allowed)):
            raise TypeError(f"config field {field!r} is {value!r}, want {wanted.__name__}.")


def _field_type(config: ConfigDict, field: str) -> type:
    *parents, last = field.split(".")
    for parent in parents:
        config = config[parent]
    return config.get_type(last)


def _check_trainable(rule: object) -> None:
    # Whether a pattern matches a parameter is known only with the model in hand: tajax.trees.param_mask says.
    if rule is None:
        return
    several = tuple(rule) if isinstance(rule, (tuple, list, Mapping)) else ()
    patterns = (rule,) if isinstance(rule, str) else several
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        wanted = "a rule such as 'attention', a path pattern, several of them, or {pattern: bool}"
        raise ValueError(f"trainable is {rule!r}, want {wanted}.")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"trainable pattern {pattern!r} is no regular expression: {error}.") from error


def _check_tasks(tasks: tuple[object, ...]) -> None:
    if not tasks:
        raise ValueError("tasks is empty. Give at least one name, folder or .npz file.")
    for task in tasks:
        if not isinstance(task, str) or not task:
            raise TypeError(f"tasks holds {task!r}, want strings: names, folders or .npz files.")
    twice = sorted({task for task in tasks if tasks.count(task) > 1})
    if twice:
        raise ValueError(f"tasks names {', '.join(map(repr, twice))} more than once.")


def _check_evaluate(config: ConfigDict) -> None:
    coefs, exact = config.evaluate.scaling_coefs, config.evaluate.exact
    numbers = all(isinstance(c, (int, float)) and not isinstance(c, bool) and math.isfinite(c) for c in coefs)
    if len(coefs) < 1 + exact or not numbers or any(a >= b for a, b in itertools.pairwise(coefs)):
        wanted = f"want finite numbers, each larger than the one before, at least {1 + exact} of them"
        raise ValueError(f"evaluate.scaling_coefs is {coefs!r}, {wanted}.")
    if exact and not regime(config).evaluate_linearized:
        names = ", ".join(name for name, r in REGIMES.items() if r.evaluate_linearized)
        raise ValueError(f"evaluate.exact is for regimes that are evaluated linearised ({names}), not {config.regime}.")


def _check_finetune(config: ConfigDict) -> None:
    steps, epochs = config.finetune.steps, config.finetune.epochs
    if steps is not None and epochs is not None:
        raise ValueError(f"finetune.steps ({steps}) and finetune.epochs ({epochs}) are both given; give one.")
    if steps is not None:
        warmup_steps(config, steps)
    _check_divides(config, "finetune.accumulation_steps", "finetune.batch_size")


def _check_pretrain(config: ConfigDict) -> None:
    warmup, steps = config.pretrain.warmup_steps, config.pretrain.steps
    if warmup >= steps:
        raise ValueError(f"pretrain.warmup_steps ({warmup}) is not below pretrain.steps ({steps}).")
    for part, whole in (("patch_size", "image_size"), ("heads", "width"), ("text_heads", "text_width")):
        _check_divides(config, f"pretrain.{part}", f"pretrain.{whole}")


def _check_divides(config: ConfigDict, part: str, whole: str) -> None:
    values = flatten(config)
    if values[whole] % values[part]:
        raise ValueError(f"{part} ({values[part]}) does not divide {whole} ({values[whole]}).")


def flatten(config: Fields) -> dict[str, object]:
    """Fields by dotted name, in the order of definition; of a config or of what `json.loads` made of one.

    Example:
        >>> flatten(default_config())["finetune.weight_decay"]
        0.1
    """
    flat: dict[str, object] = {}
    for field, value in config.items():
        if isinstance(value, (ConfigDict, Mapping)) and field != "trainable":  # its keys are patterns
            flat.update({f"{field}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[field] = value
    return flat


def config_hash(config: Fields) -> str:
    """Twelve hexadecimal digits that name what a config computes.

    Fields in `OPERATIONAL` do not count, nor whether a whole number is written 1 or 1.0.
    """
    fields = {name: _canonical(value) for name, value in flatten(config).items() if name not in OPERATIONAL}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def diff(config_a: Fields, config_b: Fields) -> dict[str, tuple[object, object]]:
    """Fields in which two configs differ, with both values; None where a config lacks the field.

    Example:
        >>> diff(default_config(), with_variant(default_config(), "l14"))["finetune.accumulation_steps"]
        (1, 2)
    """
    a, b = flatten(config_a), flatten(config_b)
    return {
        field: (a.get(field), b.get(field))
        for field in dict.fromkeys((*a, *b))
        if _canonical(a.get(field)) != _canonical(b.get(field))
    }


def _canonical(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (tuple, list)):
        return [_canonical(item) for item in value]
    if isinstance(value, Mapping):
        return [[key, _canonical(item)] for key, item in value.items()]  # the first matching pattern wins
    return value

"""Every check of a config: of each field, and between fields. Nothing runs that has not passed them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from tajax.config.choices import one_of, regime
from tajax.config.fields import (
    HEADS,
    INITIALIZATIONS,
    KERNEL_OUTPUTS,
    ON_BAD_IMAGE,
    PRECISIONS,
    PROTOCOL,
    REMATS,
    SCENES,
    SEARCHES,
    SPLITS,
    WORKFLOWS,
    default_config,
    options,
)
from tajax.config.identity import flatten, reads
from tajax.config.merging import check_merging
from tajax.encoders import FAMILIES
from tajax.merging import METHODS
from tajax.optim import OPTIMIZERS
from tajax.parallel import PLACEMENTS
from tajax.questions import QUESTIONS
from tajax.regimes import REGIMES, regime_options


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
    regime(config)
    values, optional = flatten(config), options()
    for field, choices in (_CHOICES | {name: option.choices for name, option in optional.items()}).items():
        if choices:
            one_of(field, values[field], choices)
    ranges = {name: (option.holds, option.wanted) for name, option in optional.items()}
    for field, value in values.items():
        if field.startswith("tune."):  # which holds several values of the field of the same name
            continue
        unnamed = _COUNT if field_type(default, field) is int else _ANYTHING
        holds, wanted = ranges.get(field) or _RANGES.get(field.rpartition(".")[2], unnamed)
        if value is not None and not holds(value):  # NaN fails every comparison
            raise ValueError(f"{field} is {value!r}, want {wanted}.")
    _check_trainable(config.trainable)
    _check_layers(config.layers)
    _check_tasks(config)
    _check_checkpoints(config)
    _check_grid("evaluate.scaling_coefs", config.evaluate.scaling_coefs, at_least=1 + config.evaluate.exact)
    _check_grid("disentanglement.coefs", config.disentanglement.coefs, at_least=1)
    _check_exact(config)
    _check_through_norm(config)
    check_merging(config)
    _check_pairs(config)
    _check_placement(config)
    _check_ntk(config)
    _check_finetune(config)
    _check_pretrain(config)


_CHOICES = {
    "workflow": WORKFLOWS,
    "initialization": INITIALIZATIONS,
    "family": FAMILIES,
    "heads": HEADS,
    "on_bad_image": ON_BAD_IMAGE,
    "placement": PLACEMENTS,
    "precision": PRECISIONS,
    "evaluate.search": SEARCHES,
    "finetune.optimizer": OPTIMIZERS,
    "finetune.remat": REMATS,
    "merging.method": METHODS,
    "merging.split": SPLITS,
    "disentanglement.split": SPLITS,
    "ntk.output": KERNEL_OUTPUTS,
    "ntk.split": SPLITS,
    "pretrain.scenes": SCENES,
}
Range: TypeAlias = tuple[Callable[[Any], object], str]  # whether a value of a field's type holds, and what is wanted

_COUNT: Range = (lambda v: v >= 1, "1 or more")  # of whole numbers, unless the table below knows better
_ANYTHING: Range = (lambda v: True, "")
_RANGES: dict[str, Range] = {  # by the last part of a field's name
    **dict.fromkeys(("seed", "data_workers", "warmup_steps", "playground"), (lambda v: v >= 0, "0 or more")),
    "learning_rate": (lambda v: 0 < v < math.inf, "a finite number above 0"),
    "weight_decay": (lambda v: 0 <= v < math.inf, "a finite number, 0 or above"),
    "checkpoint_seconds": (lambda v: v > 0, "seconds above 0, or inf for never"),
    "clip_norm": (lambda v: v > 0, "a number above 0, or inf for no clipping"),
    "control_threshold": (lambda v: 0 <= v <= 1, "a share between 0 and 1"),
    "control": (bool, "a task: a name, a folder or a file"),
    "variant": (re.compile(r"\w[\w.-]*|").fullmatch, "a name, which becomes part of a directory's"),
    "penalty_strength": (lambda v: 0 <= v < math.inf, "a finite number, 0 or more"),
    "natural_fraction": (lambda v: 0 <= v <= 1, "a share between 0 and 1"),
    "share_power": (lambda v: 0 <= v <= 1, "a power between 0, every source as often, and 1, every image as often"),
    "wandb": (lambda v: re.fullmatch(r"([\w.-]+/)?[\w.-]+", v), "PROJECT or ENTITY/PROJECT of Weights & Biases"),
    "model": (
        lambda v: v and not v.endswith("@"),
        "'tiny', a hub id such as 'openai/clip-vit-base-patch32', with '@revision' if it is pinned, or a directory",
    ),
}


def _check_fields(config: ConfigDict, default: ConfigDict) -> None:
    given, known = flatten(config), flatten(default)
    for field in given:
        one_of("config field", field, known)
    for field, standard in known.items():
        if field not in given:
            raise ValueError(f"config field {field!r} is missing. Start from tajax.config.default_config().")
        value, wanted = given[field], field_type(default, field)
        if value is None and standard is not None:
            raise ValueError(f"config field {field!r} is None. Its default is {standard!r}.")
        allowed = (int, float) if wanted is float else wanted
        stray_bool = isinstance(value, bool) and wanted in (int, float)  # bool is an int to Python
        if value is not None and (stray_bool or not isinstance(value, allowed)):
            raise TypeError(f"config field {field!r} is {value!r}, want {wanted.__name__}.")


def field_type(config: ConfigDict, field: str) -> type:
    """What the values of a field are, by its dotted name."""
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
            raise ValueError(f"trainable pattern {pattern!r} is not a valid regular expression: {error}.") from error


def _check_layers(layers: tuple[Any, ...] | None) -> None:
    whole = layers is None or all(isinstance(end, int) and not isinstance(end, bool) for end in layers)
    if layers is not None and not (whole and len(layers) == 2 and 0 <= layers[0] < layers[1]):
        raise ValueError(
            f"layers is {layers!r}, want (first, end): from layer `first`, counted from 0, to before `end`; for the "
            'first six, --config.layers="(0, 6)".'
        )


def _check_tasks(config: ConfigDict) -> None:
    tasks = config.tasks
    if not tasks:
        raise ValueError("tasks is empty. Give at least one name, folder or file.")
    for task in tasks:
        if not isinstance(task, str) or not task:
            raise TypeError(f"tasks holds {task!r}, want strings: names, folders or files.")
    twice = sorted({task for task in tasks if tasks.count(task) > 1})
    if twice:
        raise ValueError(f"tasks names {', '.join(map(repr, twice))} more than once.")
    question = QUESTIONS[config.workflow]
    if question.roles and len(tasks) != len(question.roles):
        roles = ", ".join(question.roles)
        raise ValueError(f"{config.workflow} takes {len(question.roles)} tasks, {roles}, and got {len(tasks)}.")
    if question.control and config.control is None:
        raise ValueError(f"{config.workflow} {question.control}.")
    if question.control and config.control in tasks:
        raise ValueError(
            f"control {config.control!r} is one of the tasks. Give another control, or leave that task out."
        )


def _check_checkpoints(config: ConfigDict) -> None:
    places, tasks = config.checkpoints, config.tasks
    if places is None:
        return
    if config.task_vectors is not None:
        raise ValueError(
            f"checkpoints ({places!r}) and task_vectors ({config.task_vectors!r}) are both given; give one."
        )
    if not all(isinstance(place, str) and place for place in places):
        raise TypeError(f"checkpoints holds {places!r}, want strings: files, directories or hub ids.")
    pattern = len(places) == 1 and "{task}" in places[0]
    if not pattern and len(places) != len(tasks):
        raise ValueError(
            f"checkpoints names {len(places)} for {len(tasks)} tasks ({', '.join(tasks)}). Give one for each task, in "
            "their order, or a single one with {task} in it, which stands for the task's name."
        )


def _check_grid(field: str, coefs: tuple[Any, ...], *, at_least: int) -> None:
    numbers = all(isinstance(c, (int, float)) and not isinstance(c, bool) and math.isfinite(c) for c in coefs)
    if len(coefs) < at_least or not numbers or any(a >= b for a, b in itertools.pairwise(coefs)):
        wanted = f"want finite numbers, each larger than the one before, at least {at_least} of them"
        raise ValueError(f"{field} is {coefs!r}, {wanted}.")


def _check_exact(config: ConfigDict) -> None:
    if config.evaluate.exact and not regime(config).evaluate_linearized:
        names = ", ".join(name for name, r in REGIMES.items() if r.evaluate_linearized)
        raise ValueError(f"evaluate.exact is for regimes that are evaluated linearised ({names}), not {config.regime}.")


def _check_through_norm(config: ConfigDict) -> None:
    row = regime(config)
    if config.linearize_through_norm and not (row.train_linearized or row.evaluate_linearized):
        names = ", ".join(name for name, r in REGIMES.items() if r.evaluate_linearized)
        raise ValueError(
            f"linearize_through_norm is for regimes that are linearised ({names}), not {config.regime}. Leave it out."
        )


def _check_placement(config: ConfigDict) -> None:
    if config.fsdp is not None and config.placement == "replicated":
        others = " or ".join(f"--config.placement={name}" for name in PLACEMENTS if name != "replicated")
        raise ValueError(
            f"fsdp is {config.fsdp}, but placement 'replicated' divides nothing among the devices of a group. "
            f"Add {others}, or leave it out."
        )


def _check_pairs(config: ConfigDict) -> None:
    # Whether a name is one of the tasks is known only when they are open: workflows.disentanglement says.
    for pair in config.disentanglement.pairs or ():
        named = isinstance(pair, (tuple, list)) and all(isinstance(name, str) for name in pair)
        if not named or len(set(pair)) != 2 or len(pair) != 2:
            raise ValueError(f"disentanglement.pairs holds {pair!r}, want two names of different tasks.")


def _check_ntk(config: ConfigDict) -> None:
    images, eigenfunctions = config.ntk.images, config.ntk.eigenfunctions
    if 2 * eigenfunctions > images:
        raise ValueError(
            f"ntk.eigenfunctions is {eigenfunctions}, more than half of ntk.images, {images}: each half of the images "
            "has eigenfunctions of its own."
        )


def _check_finetune(config: ConfigDict) -> None:
    steps, epochs = config.finetune.steps, config.finetune.epochs
    if steps is not None and epochs is not None:
        raise ValueError(f"finetune.steps ({steps}) and finetune.epochs ({epochs}) are both given; give one.")
    if steps is not None:
        warmup_steps(config, steps)
    _check_divides(config, "finetune.accumulation_steps", "finetune.batch_size")
    if config.finetune.protocol != PROTOCOL:
        raise ValueError(
            f"finetune.protocol is {config.finetune.protocol}; this version trains by {PROTOCOL}. Leave it out."
        )
    _check_regime_options(config)
    _check_tune(config)


def _check_regime_options(config: ConfigDict) -> None:
    """What the regime does not read must not be given, as if it had an effect."""
    row, default = regime(config), default_config().finetune
    given = [name for name in regime_options() if config.finetune[name] != default[name]]
    given += ["penalty_strength"] if config.finetune.penalty_strength is not None else []
    for name in given:
        if name not in (*row.options, *(("penalty_strength",) if row.strength is not None else ())):
            having = [
                other.name
                for other in REGIMES.values()
                if (other.strength is not None if name == "penalty_strength" else name in other.options)
            ]
            raise ValueError(
                f"finetune.{name} is {config.finetune[name]}, but regime {row.name!r} does not read it. "
                f"Leave it out; regimes that do: {', '.join(having) or 'none so far'}."
            )


def _check_tune(config: ConfigDict) -> None:
    for field, given in config.tune.items():
        if given is None:
            continue
        holds, wanted = _RANGES[field]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in given)
        if not given or not numbers or not all(map(holds, given)) or len(set(given)) != len(given):
            raise ValueError(f"tune.{field} is {given!r}, want different numbers, each {wanted}.")
        if not reads(config.workflow, "tune"):
            raise ValueError(f"tune.{field} is given, but workflow {config.workflow!r} trains nothing. Leave it out.")
        if config.task_vectors is not None or config.checkpoints is not None:
            raise ValueError(f"tune.{field} is given, but task_vectors or checkpoints are, too: nothing is trained.")
    if config.tune.penalty_strength is not None and regime(config).strength is None:
        raise ValueError(f"tune.penalty_strength is given, but regime {config.regime!r} has no penalty. Leave it out.")
    merged = METHODS[config.merging.method]
    if any(config.tune.values()) and merged.needs != "nothing":
        raise ValueError(f"tune measures merged models, and merging.method {config.merging.method!r} needs data.")


def _check_pretrain(config: ConfigDict) -> None:
    warmup, steps = config.pretrain.warmup_steps, config.pretrain.steps
    if warmup >= steps:
        raise ValueError(f"pretrain.warmup_steps ({warmup}) is not below pretrain.steps ({steps}).")
    for path in config.pretrain.natural or ():
        if not isinstance(path, str) or not path:
            raise TypeError(f"pretrain.natural holds {path!r}, want strings: .npz files.")
    for part, whole in (("patch_size", "image_size"), ("heads", "width"), ("text_heads", "text_width")):
        _check_divides(config, f"pretrain.{part}", f"pretrain.{whole}")


def _check_divides(config: ConfigDict, part: str, whole: str) -> None:
    values: dict[str, Any] = flatten(config)
    if values[whole] % values[part]:
        raise ValueError(f"{part} ({values[part]}) does not divide {whole} ({values[whole]}).")

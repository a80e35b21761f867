"""The stages of each workflow, in order: what a run says at its beginning that it will do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from tajax import data, merging, processes, progress
from tajax.config import REGIMES
from tajax.progress import Stage
from tajax.progress.watch import printable

_FORWARD, _TANGENT = "forward pass", "tangent pass"  # of one kind, an image takes equally long in each stage


def announce(config: ConfigDict, workdir: Path) -> None:
    """Tells who watches what the run will do."""
    what = "pre-training" if config.workflow == "pretrain" else f"{config.regime} on {config.model}"
    tasks = "" if config.workflow == "pretrain" else f", {len(config.tasks)} tasks"
    progress.plan(f"{config.workflow.replace('_', ' ')}: {what}{tasks}", str(workdir), stages(config))


def expect(config: ConfigDict, tasks: Sequence[data.Task]) -> None:
    """Tells how much the evaluations are, once the tasks are open: what is timed in one counts for the next."""
    val, test = (sum(len(task.split(split)) for task in tasks) for split in ("val", "test"))
    progress.expect({"zero_shot": val + test, "single_task": val + test, "task_addition": test})


def warn(lines: Iterable[str]) -> None:
    """What a reader of the numbers should know, a line each; it is said of quiet runs, too, and by one process."""
    if processes.is_first():
        for line in lines:
            print(f"warning: {printable(line)}", file=sys.stderr)


def stages(config: ConfigDict) -> tuple[Stage, ...]:
    """What a workflow does with a config, in order.

    Example:
        >>> from tajax.config import default_config
        >>> [stage.name for stage in stages(default_config())][:5]
        ['setup', 'heads', 'zero_shot', 'finetune', 'single_task']
    """
    return _OF_WORKFLOW[config.workflow](config)


def source_of_vectors(config: ConfigDict) -> str:
    """Where a run has its task vectors from: `imported`, `reused`, `trained`, or `none` where it takes no vectors.

    Example:
        >>> from tajax.config import default_config
        >>> source_of_vectors(default_config())
        'trained'
    """
    sources = {"checkpoints": "imported", "vectors": "reused", "finetune": "trained"}
    return next((sources[stage.name] for stage in stages(config) if stage.name in sources), "none")


def _begin(config: ConfigDict) -> tuple[Stage, ...]:
    read = (Stage("checkpoints", "read checkpoints", each=True),) if config.checkpoints else ()
    return Stage("setup", "set up", work=0), *read, Stage("heads", each=config.heads == "linear_probe")


def _vectors(config: ConfigDict) -> tuple[Stage, ...]:
    if config.checkpoints:
        return ()
    if config.task_vectors is not None:
        return (Stage("vectors", "read task vectors", work=0),)
    return (Stage("finetune", "fine-tune", images=config.finetune.batch_size, each=True),)


def _own_kind(config: ConfigDict) -> str:
    return _TANGENT if REGIMES[config.regime].evaluate_linearized else _FORWARD


def _zero_shot(config: ConfigDict) -> tuple[Stage, ...]:
    return (Stage("zero_shot", "zero-shot", kind=_FORWARD, images=1),)


def _single_task(config: ConfigDict) -> tuple[Stage, ...]:
    return (
        *_begin(config),
        *_zero_shot(config),
        *_vectors(config),
        Stage("single_task", "single-task", kind=_own_kind(config), images=1),
    )


def _task_addition(config: ConfigDict) -> tuple[Stage, ...]:
    tuned = merging.METHODS[config.merging.method].scaled
    sweep = Stage("sweep", f"sweep of {len(config.evaluate.scaling_coefs)} coefficients", images=1)
    after: tuple[Stage, ...] = (Stage("predictions", images=1),) if config.save.examples else ()
    after += (Stage("save", "save merged model", work=0),) if config.save.merged or config.save.open_clip else ()
    return (
        *_single_task(config),
        *((sweep,) if tuned else ()),
        Stage("task_addition", "merged model", kind=_own_kind(config), images=1),
        *after,
    )


def _task_negation(config: ConfigDict) -> tuple[Stage, ...]:
    return (
        *_begin(config),
        *_zero_shot(config),
        Stage("control", kind=_FORWARD, images=1),
        *_vectors(config),
        Stage("negation_sweep", f"sweep of {len(config.evaluate.scaling_coefs)} coefficients", images=1),
        Stage("task_negation", "negated models", images=1),
    )


def _task_analogy(config: ConfigDict) -> tuple[Stage, ...]:
    sweep = Stage("analogy_sweep", f"sweep of {len(config.evaluate.scaling_coefs)} coefficients", images=1)
    return *_single_task(config), sweep, Stage("task_analogy", "analogy", images=1)


def _on_vectors(stage: Stage) -> Callable[[ConfigDict], tuple[Stage, ...]]:
    return lambda config: (*_begin(config), *_vectors(config), stage)


_OF_WORKFLOW: Mapping[str, Callable[[ConfigDict], tuple[Stage, ...]]] = {
    "single_task": _single_task,
    "task_addition": _task_addition,
    "task_negation": _task_negation,
    "task_analogy": _task_analogy,
    "disentanglement": _on_vectors(Stage("disentanglement", each=True)),
    "kernel_behaviour": _on_vectors(Stage("kernel_behaviour", images=1, each=True)),
    "geometry": _on_vectors(Stage("geometry", work=0)),
    "ntk": lambda config: (*_begin(config), Stage("ntk", "local energy", each=True)),
    "pretrain": lambda config: (
        Stage("setup", "set up", work=0),
        Stage("pretrain", "pre-train", images=config.pretrain.batch_size),
        Stage("save", "save model", work=0),
    ),
}

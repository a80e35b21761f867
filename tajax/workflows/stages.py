"""The stages of a workflow, in order: what a run says at its beginning that it will do; those that many share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from tajax import data, processes, progress
from tajax.config import REGIMES, reads
from tajax.encoders import family_named
from tajax.progress import Stage
from tajax.progress.watch import printable
from tajax.records import Finetune, SingleTask, TaskAddition, ZeroShot, stage_of
from tajax.workflows.workflow import named

FORWARD, TANGENT = "forward pass", "tangent pass"  # of one kind, an image takes equally long in each stage


def announce(config: ConfigDict, workdir: Path) -> None:
    """Tells who watches what the run will do."""
    on_tasks = f"{config.regime} on {config.model}, {len(config.tasks)} tasks"
    what = on_tasks if reads(config.workflow, "tasks") else "pre-training"
    title = f"{config.workflow.replace('_', ' ')}: {what}"
    progress.plan(title, str(workdir), stages(config), examples=family_named(config.family).modality)


def expect(config: ConfigDict, tasks: Sequence[data.Task]) -> None:
    """Tells how much the evaluations are, once the tasks are open: what is timed in one counts for the next."""
    val, test = (sum(len(task.split(split)) for task in tasks) for split in ("val", "test"))
    images = {ZeroShot: val + test, SingleTask: val + test, TaskAddition: test}
    progress.expect({stage_of(kind): count for kind, count in images.items()})


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
    return named(config.workflow).stages(config)


def begin(config: ConfigDict) -> tuple[Stage, ...]:
    """The stages of `start`."""
    read = (Stage("checkpoints", "read checkpoints", each=True),) if config.checkpoints else ()
    return Stage("setup", "set up", work=0), *read, Stage("heads", each=config.heads == "linear_probe")


def vectors(config: ConfigDict) -> tuple[Stage, ...]:
    """The one of `task_vectors`; none where `start` has read checkpoints."""
    if config.checkpoints:
        return ()
    if config.task_vectors is not None:
        return (Stage("vectors", "read task vectors", work=0),)
    return (Stage(stage_of(Finetune), "fine-tune", images=config.finetune.batch_size, each=True),)


def on_vectors(stage: Stage) -> Callable[[ConfigDict], tuple[Stage, ...]]:
    """Of a workflow that looks at task vectors in one stage."""
    return lambda config: (*begin(config), *vectors(config), stage)


def own_kind(config: ConfigDict) -> str:
    """The kind of pass that evaluates a model of the config's regime."""
    return TANGENT if REGIMES[config.regime].evaluate_linearized else FORWARD


ZERO_SHOT = Stage(stage_of(ZeroShot), "zero-shot", kind=FORWARD, images=1)

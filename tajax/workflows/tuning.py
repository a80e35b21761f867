"""The learning rate and the strength of a penalty, chosen on validation: `config.tune`.

Each candidate is a run of task addition in `workdir/tuning`, complete, resumed where it was left, and never repeated.
The one whose merged model has the best mean validation accuracy gives the run its settings and its task vectors.
"""

from __future__ import annotations

import copy
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from tajax import atomic, processes, progress, results
from tajax.config import config_hash
from tajax.records import SingleTask, TaskAddition, Tuning, stage_of
from tajax.workflows import inputs
from tajax.workflows.setup import Setup
from tajax.workflows.workdir import hold, vector_path
from tajax.workflows.workflow import named

FOLDER = "tuning"
FIELDS = ("learning_rate", "penalty_strength")


class Candidate(NamedTuple):
    """One of the settings that were tried."""

    settings: dict[str, float]
    """By the field of `config.finetune`."""
    workdir: Path
    """Of its run."""
    merged: float
    """Mean top-1 accuracy of the merged model on validation."""
    single: float
    """Of the fine-tuned models, each on its own task."""
    seconds: float
    """That its run took; of several processes of it, all together."""


def candidates(config: ConfigDict) -> list[dict[str, float]]:
    """Every combination of what `config.tune` gives, in its order; none where it gives nothing.

    Example:
        >>> from tajax.config import default_config
        >>> config = default_config()
        >>> config.tune.learning_rate = (1e-5, 3e-5)
        >>> candidates(config)
        [{'learning_rate': 1e-05}, {'learning_rate': 3e-05}]
    """
    given = {field: config.tune[field] for field in FIELDS if config.tune[field]}
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())] if given else []


def tuned(config: ConfigDict, workdir: Path, *, overwrite: bool = False) -> tuple[ConfigDict, list[Candidate]]:
    """The config with the best candidate's settings, and all candidates, the best first.

    Of equal ones the first that was given is taken. Without `config.tune` the config is returned as it is.
    """
    tried = []
    every = candidates(config)
    for number, settings in enumerate(every, start=1):
        place = workdir / FOLDER / "_".join(f"{field}={value:g}" for field, value in settings.items())
        progress.say(f"tuning {number} of {len(every)}: {_in_words(settings)}")
        alone = _with(config, settings)
        alone.workflow = "task_addition"
        for field in FIELDS:
            alone.tune[field] = None
        for field in alone.save:
            alone.save[field] = type(alone.save[field])()  # False, or none
        alone.track.wandb = None
        if overwrite or not _measured(place, alone):
            with hold(place):
                named("task_addition").run(alone, place, overwrite=overwrite)
        tried.append(_read(settings, place))
    if not tried:
        return config, []
    best = max(tried, key=lambda candidate: candidate.merged)  # the first of equals
    return _with(config, best.settings), [best, *(other for other in tried if other is not best)]


def adopt(setup: Setup, tried: Sequence[Candidate]) -> None:
    """Records what was tried, and takes over the task vectors of the best, which are not trained again."""
    if not tried:
        return
    best = tried[0]
    if processes.is_first():
        for candidate in tried:
            _check_inputs(setup.workdir, candidate.workdir)
    edges = [
        field
        for field in FIELDS
        if len(setup.config.tune[field] or ()) > 1
        and best.settings[field] in (min(setup.config.tune[field]), max(setup.config.tune[field]))
    ]
    for candidate in sorted(tried, key=lambda candidate: candidate.workdir.name):
        if not setup.journal.find(Tuning, settings=candidate.settings):
            setup.journal.record(
                Tuning,
                settings=candidate.settings,
                merged_top1=candidate.merged,
                single_top1=candidate.single,
                seconds=candidate.seconds,
                chosen=candidate is best,
                at_the_end=edges if candidate is best else [],
            )
    progress.say(
        f"tuned on validation: {_in_words(best.settings)}, merged {best.merged:.3f}; {len(tried)} candidates in "
        f"{sum(candidate.seconds for candidate in tried):.0f} s"
        + (f". It is the end of what was tried of {' and '.join(edges)}: give more values there" if edges else "")
    )
    if processes.is_first():
        for task in setup.tasks:
            theirs, mine = vector_path(best.workdir, task.name), vector_path(setup.workdir, task.name)
            if not mine.exists():
                atomic.write(mine, theirs.read_bytes())
    processes.barrier()


def _with(config: ConfigDict, settings: dict[str, float]) -> ConfigDict:
    changed = copy.deepcopy(config)
    for field, value in settings.items():
        changed.finetune[field] = float(value)
    return changed


def _in_words(settings: dict[str, float]) -> str:
    return ", ".join(f"{field.replace('_', ' ')} {value:g}" for field, value in settings.items())


def _found(place: Path, stage: str) -> list[results.Record]:
    path = place / "results.jsonl"
    return list(results.find(results.read(path), stage=stage, split="val")) if path.exists() else []


def _measured(place: Path, config: ConfigDict) -> bool:
    """Whether a run of this config has ended there; one of another config is not taken, and refused when it is run."""

    def ended() -> bool:
        found = _found(place, stage_of(TaskAddition))
        return len([r for r in found if r["config_hash"] == config_hash(config)]) == len(found) == len(config.tasks)

    return processes.broadcast_json(ended)


def _check_inputs(workdir: Path, place: Path) -> None:
    """Raises `FileExistsError` if a candidate was trained on other data than those that the run has now."""
    theirs, mine = (json.loads((each / inputs.FILE).read_text(encoding="utf-8")) for each in (place, workdir))
    for part in ("tasks", "facts"):
        for name, value in theirs[part].items():
            if mine[part].get(name, value) != value:
                raise FileExistsError(
                    f"{place} was tuned on other inputs: {part} {name!r} changed since. Choose another --workdir, or "
                    "pass --overwrite to tune again."
                )


def _read(settings: dict[str, float], place: Path) -> Candidate:
    def read() -> list[float]:
        merged, single = (
            statistics.fmean(record["top1"] for record in _found(place, stage_of(kind)))
            for kind in (TaskAddition, SingleTask)
        )
        return [merged, single, _seconds(results.read(place / "results.jsonl"))]

    return Candidate(settings, place, *processes.broadcast_json(read))


def _seconds(records: Sequence[results.Record]) -> float:
    """Of all processes of a run: the last that each recorded."""
    total = last = 0.0
    for record in records:
        if record["stage"] == "run":
            total += last
        last = record.get("elapsed_seconds", 0.0)
    return total + last

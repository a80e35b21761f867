"""Task negation: a model that has lost a task and nothing else, θ₀ − ατ (Ilharco et al. 2023, §3)."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from tajax import data, metrics, processes, splits
from tajax.metrics import Means
from tajax.progress import Stage
from tajax.records import Accuracy, Control, ExactNegationCoef, NegationSweep, TaskNegation, ZeroShot, stage_of
from tajax.report.negation import unlimited
from tajax.results import Record
from tajax.scaling import Negation, exact_negation_coef, select_negation_coef
from tajax.types import Params
from tajax.workflows import playground
from tajax.workflows.control import measure_control
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.journal import Journal, means_of, measure_splits
from tajax.workflows.playground import record_playground
from tajax.workflows.setup import Setup
from tajax.workflows.single_task import measure_zero_shot
from tajax.workflows.stages import FORWARD, ZERO_SHOT, begin, vectors
from tajax.workflows.start import on_tasks
from tajax.workflows.vectors import task_vectors
from tajax.workflows.workflow import Workflow

Vectors = Mapping[str, Params]  # by task
Measure = Callable[[data.Task, Vectors, Float[np.ndarray, "G T"]], Sequence[Means]]


def answer(setup: Setup, evaluator: Evaluator) -> None:
    """Fine-tuning, then for each task α tuned on validation, and its accuracy and the control's at that."""
    (control,) = setup.controls
    measure_zero_shot(setup, evaluator)
    pretrained = measure_control(setup.journal, evaluator, control)
    required = setup.config.evaluate.control_threshold * pretrained["val"]
    for line in unlimited(setup.journal.find(Control)) if processes.is_first() else ():
        print(f"warning: {line}", file=sys.stderr)
    taus = task_vectors(setup, evaluator.heads)
    negate_tasks(setup, evaluator, control, taus, required=required)
    record_playground(setup, evaluator, taus)


def negate_tasks(
    setup: Setup, evaluator: Evaluator, control: data.Task, taus: Vectors, *, required: float
) -> dict[str, Negation]:
    """Records both accuracies over the grid of α on validation, and at the best α of each task on both splits.

    The control's images are many and the same for every task, so one pass over them serves all vectors, which are
    on the devices together meanwhile.

    Args:
        setup: the run, with the accuracies of the pre-trained model recorded.
        evaluator: of its models, with the control's head.
        control: the control task.
        taus: the task vector of each task.
        required: the least control accuracy on validation.

    Returns:
        The choice for each task: of the grid, or with `config.evaluate.exact` of all α between its ends. Where none
        keeps the control, it is recorded with `satisfied` False, and the accuracies are those of the nearest miss.
    """
    if setup.config.evaluate.exact:
        chosen = _best_of_all(setup, evaluator, control, taus, required)
    else:

        def at_grid(on: data.Task, edited: Vectors, rows: Float[np.ndarray, "G T"]) -> Sequence[Means]:
            return evaluator.evaluate(on, "val", tuple(edited.values()), rows)

        _record_sweeps(setup, control, taus, at_grid)
        chosen = _best_of_grid(setup, control, required)
    _record_choices(setup, evaluator, control, taus, chosen, required)
    return chosen


def _record_sweeps(setup: Setup, control: data.Task, taus: Vectors, measure: Measure) -> None:
    """Records what `measure` gives on the control and on each task at every α, where that is not recorded yet."""
    grid = setup.config.evaluate.scaling_coefs
    moved = [coef for coef in grid if coef]
    every = (control, *setup.tasks)
    vectors = {on.name: taus if on is control else {on.name: taus[on.name]} for on in every}
    for on, missing in setup.journal.each(
        NegationSweep,
        every,
        lambda on: {"task": tuple(vectors[on.name]), "measured_on": on.name, "split": "val", "scaling_coef": grid},
        units=lambda on: len(on.split("val")),
    ):
        edited = vectors[on.name]
        rows = np.kron(np.eye(len(edited)), -np.array(moved)[:, None])
        measured = zip(itertools.product(edited, moved), measure(on, edited, rows) if moved else (), strict=True)
        values = dict(measured) | {(name, 0.0): _unedited(setup.journal, on, "val") for name in edited}
        for key in missing:
            setup.journal.record(NegationSweep, **key, **values[key["task"], key["scaling_coef"]])


def _best_of_grid(setup: Setup, control: data.Task, required: float) -> dict[str, Negation]:
    grid, sweeps = setup.config.evaluate.scaling_coefs, _recorded_sweeps(setup.journal)
    chosen = {}
    for task in setup.tasks:
        on_task, on_control = ([sweeps[task.name, on, c]["top1"] for c in grid] for on in (task.name, control.name))
        chosen[task.name] = select_negation_coef(grid, on_task, on_control, required=required)
    return chosen


def _best_of_all(
    setup: Setup, evaluator: Evaluator, control: data.Task, taus: Vectors, required: float
) -> dict[str, Negation]:
    """Records the grid and the exact optima, all of them from one pass over each task's images."""

    @functools.cache
    def seen(on: data.Task) -> splits.AffineSplit:
        return evaluator.affine_split(on, "val", tuple(taus.values()) if on is control else (taus[on.name],))

    def at_grid(on: data.Task, _: Vectors, rows: Float[np.ndarray, "G T"]) -> Sequence[Means]:
        return metrics.compute_each(splits.tally_at_coefs(seen(on), rows))

    _record_sweeps(setup, control, taus, at_grid)
    recorded = {r["task"]: r for r in setup.journal.find(ExactNegationCoef)}
    if recorded.keys() == taus.keys():
        return {
            name: Negation(r["scaling_coef"], r["satisfied"], r["at_end"], r["lower"], r["upper"])
            for name, r in recorded.items()
        }
    grid, chosen = setup.config.evaluate.scaling_coefs, {}
    for task, direction in zip(setup.tasks, -np.eye(len(taus)), strict=True):
        intervals = splits.intervals(seen(task), -np.ones(1)), splits.intervals(seen(control), direction)
        best = exact_negation_coef(*intervals, required=required, bounds=(grid[0], grid[-1]))
        if task.name not in recorded:
            setup.journal.record(ExactNegationCoef, task=task.name, split="val", **best._asdict())
        chosen[task.name] = best
    return chosen


def _record_choices(
    setup: Setup,
    evaluator: Evaluator,
    control: data.Task,
    taus: Vectors,
    chosen: Mapping[str, Negation],
    required: float,
) -> None:
    sweeps = _recorded_sweeps(setup.journal)
    coefs = {name: choice.scaling_coef for name, choice in chosen.items()}

    @functools.cache
    def on_control(split: str) -> Mapping[str, Means]:
        edited = {name: tau for name, tau in taus.items() if coefs[name]}
        rows = -np.diag([coefs[name] for name in edited])
        measured = evaluator.evaluate(control, split, tuple(edited.values()), rows) if edited else ()
        return dict(zip(edited, measured, strict=True))

    def at_choice(name: str, on: data.Task, split: str) -> Means:
        if not coefs[name]:
            return _unedited(setup.journal, on, split)
        if split == "val" and (name, on.name, coefs[name]) in sweeps:
            return sweeps[name, on.name, coefs[name]]
        if on is control:
            return on_control(split)[name]
        return evaluator.evaluate(on, split, [taus[name]], [[-coefs[name]]])[0]

    def measure(task: data.Task, split: str) -> Record:
        kept = at_choice(task.name, control, split)
        return {
            "control": control.name,
            "control_required": required,
            **chosen[task.name]._asdict(),
            **at_choice(task.name, task, split),
            "control_top1": kept["top1"],
            "control_loss": kept["loss"],
            "control_count": kept["count"],
        }

    first = {f"{setup.tasks[0].name} test": len(control.split("test"))}  # once, for the vectors of all tasks
    measure_splits(setup.journal, TaskNegation, setup.tasks, measure, more=first)


def _recorded_sweeps(journal: Journal) -> dict[tuple[str, str, float], Means]:
    """By task whose vector is subtracted, task that is measured, and α."""
    records = journal.find(NegationSweep)
    return {(r["task"], r["measured_on"], r["scaling_coef"]): means_of(r) for r in records}


def _unedited(journal: Journal, on: data.Task, split: str) -> Means:
    """What is recorded of the pre-trained model."""
    kinds: tuple[type[Accuracy], ...] = ZeroShot, Control
    (record,) = (r for kind in kinds for r in journal.find(kind, task=on.name, split=split))
    return means_of(record)


def stages(config: ConfigDict) -> tuple[Stage, ...]:
    """What the workflow does, in order."""
    return (
        *begin(config),
        ZERO_SHOT,
        Stage(stage_of(Control), kind=FORWARD, images=1),
        *vectors(config),
        Stage(stage_of(NegationSweep), f"sweep of {len(config.evaluate.scaling_coefs)} coefficients", images=1),
        Stage(stage_of(TaskNegation), "negated models", images=1),
        *playground.stages(config),
    )


WORKFLOW = Workflow(on_tasks(answer), stages)

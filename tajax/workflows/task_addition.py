"""Task addition: one model for all tasks, θ₀ + ατ, with α tuned on validation (Ilharco et al. 2023, §4).

τ is what `config.merging.method` makes of the task vectors; their sum, if not said otherwise. A method that is not
affine makes another τ for each α. One without a coefficient, such as the average of the models, stands as it is: α = 1.
Methods that need data are fitted to examples of the tasks before (`tajax.workflows.fitting`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tajax import data, host, merging, processes, progress, records
from tajax.metrics import Means, normalized_accuracy
from tajax.progress import Stage
from tajax.records import SingleTask, TaskAddition, stage_of
from tajax.report.accuracy import without_ratio
from tajax.results import Record
from tajax.task_vectors import task_vector
from tajax.types import MergeFn, Params
from tajax.workflows import fitting, playground, single_task, sweep
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.fitting import fit_method
from tajax.workflows.journal import SPLITS, Journal, measure_splits
from tajax.workflows.playground import record_playground
from tajax.workflows.predictions import record_predictions
from tajax.workflows.setup import Setup
from tajax.workflows.single_task import measure_single_task, measure_zero_shot
from tajax.workflows.stages import own_kind
from tajax.workflows.start import on_tasks
from tajax.workflows.vectors import task_vectors
from tajax.workflows.workflow import Workflow

Merged = Callable[[Sequence[float]], Iterator[tuple[Params, Sequence[float]]]]
"""The merged models at coefficients α, as `merge` gives them."""


def answer(setup: Setup, evaluator: Evaluator) -> None:
    """Everything from the pre-trained model to the merged one: fine-tuning, single tasks, tuned addition."""
    save = setup.config.save
    if save.open_clip:  # a geometry that open_clip has not is refused now, not when all is done
        setup.encoder.check_format("open_clip")
    measure_zero_shot(setup, evaluator)
    taus = task_vectors(setup, evaluator.heads)
    measure_single_task(setup, evaluator, taus)
    merged = merge(setup, taus, fit_method(setup, evaluator.heads, taus))
    scaling_coef = add_tasks(setup, evaluator, merged)
    [(tau, [along])] = merged([scaling_coef])
    if save.examples:
        record_predictions(setup, evaluator, taus, tau, along)
    record_playground(setup, evaluator, taus)
    if save.merged or save.open_clip:
        save_merged(setup, tau, along)


def merge(setup: Setup, taus: Mapping[str, Params], found: Mapping[str, Any] = MappingProxyType({})) -> Merged:
    """The models that a method makes of all vectors, each as θ₀ moved along one.

    One vector serves every α of an affine method, whose model is θ₀ + αg: g, its model around zero, in the precision of
    the task vectors, because θ₀ added and subtracted again would round it. Any other method merges into θ₀ for each α,
    and its vector is what that changed, to be gone whole.

    Args:
        setup: its `config.merging` names the method, what is done to vectors before, and has the options of both.
        taus: the task vector of each task.
        found: what the method's `fit` found, by keyword; nothing for methods that need no data.

    Returns:
        `coefficients α [G] -> pairs (τ, c), one a pass over images`: all c together are G long, and the models at α are
        θ₀ + cτ. Vectors are float32 or wider, on the host, and made as they are asked for: those of all tasks are on
        the device for as long as a merge takes.
    """
    settings = setup.config.merging
    method = merging.METHODS[settings.method]
    options = {keyword: settings[settings.method][keyword] for keyword in method.options}
    if method.layered:
        options["stacked"] = setup.encoder.stacked
    for name in reversed(settings.prepare):  # the outermost is applied first
        preparation = merging.PREPARATIONS[name]
        chosen = {keyword: settings[name][keyword] for keyword in preparation.options}
        method = merging.compose(preparation, method, **chosen)
    given = {**found, **({"key": jax.random.key(setup.config.seed)} if method.random else {})}
    program: MergeFn = (functools.partial if method.eager else merging.compiled)(method, **options)
    vectors = [taus[task.name] for task in setup.tasks]
    if method.affine:
        tau = host.fetch(program(jax.tree.map(jnp.zeros_like, vectors[0]), vectors, **given))
        return lambda coefs: iter([(tau, coefs)])
    pretrained = setup.pretrained

    @functools.lru_cache(maxsize=1)  # the one that is chosen serves all tasks
    def moved(coef: float) -> Params:
        scaled = {"scaling_coef": coef} if method.scaled else {}
        return host.fetch(task_vector(pretrained, program(pretrained, vectors, **given, **scaled)))

    return lambda coefs: ((moved(coef), (1.0,)) for coef in coefs)


def add_tasks(setup: Setup, evaluator: Evaluator, merged: Merged) -> float:
    """Records the merged model's accuracy over the grid of α on validation, and at the best α on test.

    Args:
        setup: the run, with single-task accuracies recorded.
        evaluator: of its models.
        merged: from `merge`.

    Returns:
        The α with the best mean normalised validation accuracy: of the grid, or with `config.evaluate.exact` of all
        between its ends. Where a fine-tuned model is never right there is no such accuracy: it is recorded as None, and
        the other tasks decide (`scaling.select_scaling_coef`). 1 for a method without a coefficient, and then no
        grid is measured.

    Raises:
        ValueError: the run was measured at another α: by an earlier version, which tuned one for every method, or
            with another `config.evaluate.search`.
    """
    journal = setup.journal
    single = {split: _single_task(journal, split) for split in SPLITS}
    tuned = merging.METHODS[setup.config.merging.method].scaled
    method = " + ".join((*setup.config.merging.prepare, setup.config.merging.method))
    _tell_without_ratio(journal, tuned=tuned)
    origin = {"method": method} | ({} if tuned else {"tuned": False})
    if tuned and not sweep.in_full(setup.config):
        origin["search"] = setup.config.evaluate.search

    def at(task: data.Task, split: str, coefs: Sequence[float]) -> list[Means]:
        passes = ((tau, np.array(along)[:, None]) for tau, along in merged(coefs))
        return [values for tau, rows in passes for values in evaluator.evaluate(task, split, [tau], rows)]

    if not tuned:
        scaling_coef = 1.0
    elif setup.config.evaluate.exact:
        [(tau, _)] = merged(setup.config.evaluate.scaling_coefs)
        scaling_coef = sweep.best_of_all(setup, evaluator, tau, single["val"])
    else:
        scaling_coef = sweep.best_of_grid(setup, lambda task, coefs: at(task, "val", coefs), single["val"])
    searched = f" with evaluate.search={setup.config.evaluate.search}" if tuned else ""
    earlier = {r["scaling_coef"] for r in journal.find(TaskAddition)}
    if earlier - {scaling_coef}:
        raise ValueError(
            f"{setup.workdir} holds the accuracy of {method} at α = {earlier.pop():g}, and this version measures "
            f"it at {scaling_coef:g}{searched}. Choose another --workdir, or pass --overwrite to replace that run."
        )

    def measure(task: data.Task, split: str) -> Record:
        known = sweep.measured_at(journal, task, scaling_coef) if split == "val" else None
        values = known or at(task, split, [scaling_coef])[0]
        normalized = normalized_accuracy(values["top1"], single[split][task.name])
        ratio = None if np.isnan(normalized) else float(normalized)
        return {"scaling_coef": scaling_coef, "normalized_top1": ratio, **origin, **values}

    measure_splits(journal, TaskAddition, setup.tasks, measure, note=f"α = {scaling_coef:.3g}, ")
    return scaling_coef


def _tell_without_ratio(journal: Journal, *, tuned: bool) -> None:
    """Says of which tasks the merged model's accuracy cannot be normalised."""
    for line in without_ratio(journal.find(SingleTask), tuned=tuned) if processes.is_first() else ():
        print(f"warning: {line}", file=sys.stderr)


def save_merged(setup: Setup, tau: Params, scaling_coef: float) -> None:
    """Writes θ₀ + λτ with the untouched text tower, in the formats that `config.save` names.

    `workdir/merged` is Hugging Face's, `workdir/merged_open_clip` open_clip's. In the linearised regimes these are
    the parameters of the expansion; a reader that evaluates them with the ordinary forward pass gets another function.
    """
    save = setup.config.save
    formats = {"merged": ("huggingface", save.merged), "merged_open_clip": ("open_clip", save.open_clip)}
    missing = [name for name, (_, wanted) in formats.items() if wanted and not (setup.workdir / name).exists()]
    if not processes.is_first():
        return
    with progress.stage("save", dict.fromkeys(missing, 1)) as running:
        if not missing:
            return
        # The last to read θ₀, so the merged model takes its memory.
        move = merging.compiled(merging.task_arithmetic, donate=True)
        merged = move(setup.pretrained, [tau], scaling_coef=scaling_coef)
        for name in running.each(missing, str):
            setup.encoder.save(setup.workdir / name, merged, format=formats[name][0])


def _single_task(journal: Journal, split: str) -> dict[str, float]:
    return {r["task"]: r["top1"] for r in journal.find(SingleTask, split=split)}


def stages(config: ConfigDict) -> tuple[Stage, ...]:
    """What the workflow does, in order."""
    method = merging.METHODS[config.merging.method]
    after: tuple[Stage, ...] = (Stage(stage_of(records.Predictions), images=1),) if config.save.examples else ()
    after += playground.stages(config)
    after += (Stage("save", "save merged model", work=0),) if config.save.merged or config.save.open_clip else ()
    return (
        *single_task.stages(config),
        *fitting.stages(config),
        *((sweep.stage(config),) if method.scaled else ()),
        Stage(stage_of(TaskAddition), "merged model", kind=own_kind(config), images=1),
        *after,
    )


WORKFLOW = Workflow(on_tasks(answer), stages)

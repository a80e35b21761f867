"""Curvature: for each task, which changes of the parameters move its features, as factors in files of their own.

`curvature/TASK.safetensors` is what the regime `tak` trains other tasks with, in place of this one's images. Nothing is
fine-tuned, and no label is read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tajax import data, progress, trees
from tajax.curvature.files import check_fits, load_factors, save_factors
from tajax.curvature.measure import Measure, factors_path, make_measure
from tajax.progress import Stage
from tajax.records import Curvature, stage_of
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.setup import Setup
from tajax.workflows.stages import begin
from tajax.workflows.start import on_tasks
from tajax.workflows.workflow import Memory, Workflow

STAGE = stage_of(Curvature)


def answer(setup: Setup, evaluator: Evaluator) -> None:
    """The factors of every task of a config, from its training examples; finished files are read and kept."""
    settings = setup.config.curvature
    measure = make_measure(
        Measure(
            encoder=setup.encoder,
            trained=[path for path, part in trees.trained_layers(setup.pretrained, setup.mask).items() if np.any(part)],
            trainable=setup.regime.trainable,
            layers=setup.config.layers,
            images=settings.images,
            through_norm=setup.config.linearize_through_norm,
            seed=setup.config.seed,
            batch_size=settings.batch_size,
            workers=setup.config.data_workers,
        ),
        advance=progress.advance,
    )
    for task in setup.tasks:  # all of them before the first is made
        _check_kept(setup, task)
    for task, missing in setup.journal.each(
        Curvature,
        setup.tasks,
        lambda task: {"task": task.name},
        units=lambda task: min(settings.images, len(task.split("train"))),
    ):
        path = factors_path(setup.workdir, task.name)
        if not path.exists():
            save_factors(path, *measure(task))
        for key in missing:
            record(setup, key["task"], path)


def record(setup: Setup, task: str, path: Path) -> None:
    """Records what a file of factors holds."""
    factors, about = load_factors(path, setup.pretrained)
    rows = [name for name, factor in factors.kronecker.items() if factor.inputs.ndim == 2]
    setup.journal.record(
        Curvature,
        task=task,
        images=about.images,
        seconds=about.seconds,
        megabytes=path.stat().st_size / 1e6,
        feature_norm=float(np.sqrt(factors.feature_square)),
        kronecker=list(factors.kronecker),
        rows=rows,
        gram=list(factors.gram),
    )
    progress.note({"MB": path.stat().st_size / 1e6, "leaves": len(factors.kronecker) + len(factors.gram)})


def _check_kept(setup: Setup, task: data.Task) -> None:
    """Raises if what an earlier process of the run has made is gone, damaged, or not of this run's model."""
    path = factors_path(setup.workdir, task.name)
    if path.exists():
        try:
            _, about = load_factors(path, setup.pretrained)
        except ValueError as error:
            raise ValueError(f"{error} Pass --overwrite to make all anew.") from error
        check_fits(path, about, setup.encoder, task=task.name)
    elif setup.journal.find(Curvature, task=task.name):
        raise FileNotFoundError(
            f"{path} is gone, which this run has recorded. Put it back, or pass --overwrite to make all anew."
        )


WORKFLOW = Workflow(
    on_tasks(answer),
    stages=lambda config: (*begin(config), Stage(STAGE, "curvature", images=1, each=True)),
    memory=Memory(
        "computing the curvature", {"curvature.batch_size": (" below {}", "looks at fewer examples at once")}
    ),
)

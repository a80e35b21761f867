"""What the report needs to show a linearised model at any coefficients: scores of some validation examples.

Of each task, and of the control where the run has one, `config.save.playground` examples are evaluated along all task
vectors: one pass with a linearisation and T tangent passes a batch, beside which nothing is measured again. Their
scores are kept as whole numbers (`tajax.coded_scores`), so many classes of an example that a page stays small.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from tajax import coded_scores, data, processes, progress
from tajax.affine import AffineLogits, correct_intervals
from tajax.coded_scores import About, CodedScores
from tajax.config import REGIMES
from tajax.data.samples import drawn
from tajax.progress import Stage
from tajax.records import Playground, PlaygroundCoefs, stage_of
from tajax.results import Record
from tajax.scaling import exact_coefs, exact_scaling_coef
from tajax.splits import on_host
from tajax.types import Params
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.setup import Setup

FOLDER = "playground"
SPLIT = "val"
LARGEST_PAGE = 2_000_000
"""Bytes that the scores of all tasks may take on a page, where they are written in base64."""


def record_playground(setup: Setup, evaluator: Evaluator, taus: Mapping[str, Params]) -> None:
    """Keeps the scores of examples of each task and of the control, and records the best coefficients on these.

    Nothing is done in regimes that are not evaluated linearised, or where `config.save.playground` is 0. What has its
    record is skipped.

    Args:
        setup: the run.
        evaluator: of its models, with the control's head where there is one.
        taus: the task vector of each task.
    """
    wanted = setup.config.save.playground
    if not (wanted and evaluator.linearized):
        return
    names, every, journal = list(taus), (*setup.tasks, *setup.controls), setup.journal
    count, most = room(len(every), len(names), wanted)
    if not count:
        progress.say(
            f"no playground: a page has no room for the scores of {len(every)} tasks along {len(names)} vectors"
        )
        return
    reach = max(1.0, *map(abs, setup.config.evaluate.scaling_coefs))

    def keep(task: data.Task) -> tuple[CodedScores, About]:
        some = drawn(task, SPLIT, count, seed=setup.config.seed)
        rows, labels = evaluator.affine_split(some, SPLIT, [taus[name] for name in names])
        scores, bounds = np.asarray(rows.scores), (-reach, reach)
        coded = coded_scores.encode(scores, labels, bounds=bounds, most=most)
        share = coded_scores.changed(scores, coded, coded_scores.draws(bounds, len(names)))
        about = About(task.name, tuple(names), bounds, scores.shape[-1], share)
        if processes.is_first():
            coded_scores.write(_path(setup, task.name), coded, about)
        return coded, about

    for task, (key,) in journal.each(
        Playground,
        every,
        lambda task: {"task": task.name, "split": SPLIT},
        units=lambda task: min(count, len(task.split(SPLIT))),
    ):
        coded, about = keep(task)
        journal.record(
            Playground,
            **key,
            directions=names,
            bounds=list(about.bounds),
            count=len(coded.labels),
            complete=int(coded.complete.sum()),
            changed=about.changed,
        )
        progress.note({"changed": about.changed})
    there = processes.broadcast_json(lambda: [_path(setup, task.name).exists() for task in every])
    for task in itertools.compress(every, map(operator.not_, there)):  # of a run that was copied without its files
        keep(task)
    if not journal.find(PlaygroundCoefs):
        paths = [_path(setup, name) for name in names]
        best = processes.broadcast_json(lambda: best_coefs(paths, bounds=(0.0, reach)))
        journal.record(PlaygroundCoefs, directions=names, **best)


def room(tasks: int, vectors: int, examples: int) -> tuple[int, int]:
    """How many examples of each task, and classes of each example, fit on a page.

    Args:
        tasks: whose examples, the control among them.
        vectors: T.
        examples: that are wanted of each task.

    Returns:
        At most as many examples, fewer where not even two classes of each would fit; and how many classes each may
        keep. An example takes 4 bytes, each of its classes 2 (T + 1), and base64 a third more.

    Example:
        >>> room(8, 8, 256), room(9, 8, 256), room(20, 20, 256), room(8, 8, 100_000), room(700, 700, 256)
        ((256, 40), (256, 35), (256, 6), (4687, 2), (0, 0))
    """
    of_task, of_class = LARGEST_PAGE * 3 // 4 // tasks, 2 * (vectors + 1)
    examples = min(examples, of_task // (4 + 2 * of_class))
    return examples, (of_task // examples - 4) // of_class if examples else 0


def best_coefs(paths: list[Path], *, bounds: tuple[float, float]) -> Record:
    """The best coefficients on coded examples, one for all vectors and one for each: fields of `PlaygroundCoefs`.

    Args:
        paths: of the files of the tasks, in the order of the vectors.
        bounds: between which they are.

    Raises:
        FileNotFoundError, ValueError: as `coded_scores.read`.
    """
    read = [coded_scores.read(path) for path in paths]
    all_coded, widest = [coded for coded, _ in read], max(about.num_classes for _, about in read)
    labels = [coded.labels.astype(np.int32) for coded in all_coded]
    single = [accuracy(coded, own) for coded, own in zip(all_coded, np.eye(len(paths)), strict=True)]
    rows = [_rows(coded, widest) for coded in all_coded]
    intervals = [correct_intervals(*pair, np.ones(len(paths))) for pair in zip(rows, labels, strict=True)]
    common = exact_scaling_coef(intervals, single, bounds=bounds)
    each = exact_coefs(rows, labels, single, bounds=bounds)
    return {
        "single": single,
        "common": common.scaling_coef,
        "common_value": common.value,
        "coefs": each.coefs.tolist(),
        "value": each.value,
    }


def accuracy(coded: CodedScores, coefs: Float[np.ndarray, " T"]) -> float:
    """The share of examples that are right at some coefficients."""
    return float(coded_scores.correct(coded, coefs[None]).mean())


def stages(config: ConfigDict) -> tuple[Stage, ...]:
    """What is done here with a config."""
    wanted = config.save.playground and REGIMES[config.regime].evaluate_linearized
    return (Stage(stage_of(Playground), "scores for the playground", images=1),) if wanted else ()


def _path(setup: Setup, task: str) -> Path:
    return setup.workdir / FOLDER / f"{task}.safetensors"


def _rows(coded: CodedScores, num_classes: int) -> AffineLogits:
    """Scores without a norm to divide by, which changes no prediction; of as many classes for all, to compile once."""
    scores = coded_scores.dense(coded, num_classes)
    none = np.zeros((len(scores), *2 * (scores.shape[1],)), np.float32)
    none[:, 0, 0] = 1
    return on_host(scores, none, num_classes)

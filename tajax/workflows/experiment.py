"""What every task-arithmetic workflow starts from: the model, the tasks, their heads, and the record it keeps."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
from ml_collections import ConfigDict

from tajax import data, evaluate, metrics, models, parallel, processes, progress, tracking, trees
from tajax.config import Regime, config_hash
from tajax.config import regime as regime_of
from tajax.data import fingerprint
from tajax.encoders import family
from tajax.encoders.encoder import Encoder
from tajax.parallel import Placement
from tajax.questions import QUESTIONS
from tajax.report import runs
from tajax.results import Record
from tajax.types import Batch, Head, Mask, Params
from tajax.workflows import inputs
from tajax.workflows.heads import linear_probe_head
from tajax.workflows.imported import keep_vectors, moved_mask, read_vectors, reused_mask
from tajax.workflows.journal import Journal
from tajax.workflows.stages import announce, expect, source_of_vectors, warn
from tajax.workflows.workdir import claim, write_report

SPLITS = ("val", "test")


@dataclass(frozen=True)
class Experiment:
    """A pre-trained model, the tasks to edit it with, and where results go.

    Attributes:
        config: the validated config.
        workdir: directory of the run.
        encoder: the pre-trained model.
        tasks: the opened tasks.
        heads: a frozen head for each task name, all padded to the same number of classes.
        regime: what is trained and what is linearised.
        mask: the leaves and layers of the encoder that are trained.
        placement: where arrays live, on the devices of all processes.
        journal: the record of the run.
        imported: the task vectors of `config.checkpoints`, by task; None where there are none.
        controls: the control task, which is not one of `tasks`, where the workflow takes one.
    """

    config: ConfigDict
    workdir: Path
    encoder: Encoder
    tasks: tuple[data.Task, ...]
    heads: dict[str, Head]
    regime: Regime
    mask: Mask
    placement: Placement
    journal: Journal
    imported: dict[str, Params] | None = None
    controls: tuple[data.Task, ...] = ()

    @property
    def pretrained(self) -> Params:
        """θ₀, the parameters of the pre-trained encoder."""
        return self.encoder.params

    def batches(self, task: data.Task, split: str) -> Iterable[Batch]:
        """Every image of a split once, in order, in padded batches; of several processes each has its rows."""
        batches = data.load(
            task,
            split,
            batch_size=self.config.evaluate.batch_size,
            preprocessing=self.encoder.inputs,
            workers=self.config.data_workers,
            share=processes.share(),
        )
        return progress.counted(batches, self.config.evaluate.batch_size)

    def make_head(self, task: data.Task) -> Head:
        """The frozen head of a task, of the kind that `config.heads` names; a fitted one is kept and recorded."""
        if self.config.heads == "linear_probe":
            return linear_probe_head(self, task)
        if self.encoder.zero_shot is None:
            raise ValueError(
                f"{self.config.model} is of the family {self.encoder.family!r}, which makes no heads from class names. "
                "Give --config.heads=linear_probe."
            )
        return self.encoder.zero_shot.head(task.class_names, task.templates)

    def find(self, stage: str, **fields: object) -> list[Record]:
        """Records of this run and of a stage with these fields."""
        return self.journal.find(stage, **fields)

    def record(self, stage: str, **fields: object) -> None:
        """Appends a record to `results.jsonl`, with what says where it came from."""
        self.journal.record(stage, **fields)

    def measure(
        self,
        stage: str,
        measure: Callable[[data.Task, str], Mapping[str, float]],
        *,
        doubts: Callable[[data.Task, str, float], Mapping[str, object]] = lambda task, split, top1: {},
        more: Mapping[str, int] = MappingProxyType({}),
        note: str = "",
    ) -> None:
        """Records `measure(task, split)` under a stage, for every task and split that has no such record yet.

        Args:
            stage: of the records.
            measure: gives what is recorded, `top1` among it.
            doubts: more fields of a record, for the `top1` of a task and split.
            more: images that are looked at beside those of the split, by "task split".
            note: said of the stage when it is done, before the mean accuracy.
        """

        def named(pair: tuple[data.Task, str]) -> str:
            return f"{pair[0].name} {pair[1]}"

        def mean() -> str:
            reached = [record["top1"] for record in self.find(stage=stage, split="test")]
            return f"{note}mean test top1 {statistics.fmean(reached):.3f}"

        for (task, split), (key,) in self.journal.each(
            stage,
            itertools.product(self.tasks, SPLITS),
            lambda pair: {"task": pair[0].name, "split": pair[1]},
            units=lambda pair: len(pair[0].split(pair[1])) + more.get(named(pair), 0),
            name=named,
            note=mean,
        ):
            measured = measure(task, split)
            self.record(stage, **key, **measured, **doubts(task, split, measured["top1"]))
            progress.note({"top1": measured["top1"]})

    @functools.cached_property
    def features_step(self) -> Callable[[Params, Batch], jax.Array]:
        """`(parameters, batch of `Placement.shares`) -> features [B, E]`, compiled once for all tasks."""
        return self.placement.rows(lambda params, batch: self.encoder.apply(params, batch.inputs))

    @functools.cached_property
    def sweep_steps(self) -> dict[bool, evaluate.SweepStep]:
        """The steps of ordinary and of linearised evaluation, each compiled once for all stages."""
        return {
            linearized: evaluate.make_sweep_step(encode, linearized=linearized, placement=self.placement)
            for linearized, encode in ((False, self.encoder.apply), (True, self.encoder.apply_for_responses))
        }

    def evaluate(
        self, step: evaluate.SweepStep, task: data.Task, split: str, taus: tuple[Params, ...], coefs: Iterable
    ) -> list[dict[str, float]]:
        """`top1`, `loss` and `count` on a split at each row of coefficients."""
        constants = self.pretrained, taus, np.asarray(coefs), self.heads[task.name]
        tallies = evaluate.sweep(step, *constants, self.batches(task, split), placement=self.placement)
        return metrics.compute_each(tallies)


def setup(config: ConfigDict, workdir: Path, *, overwrite: bool = False) -> Experiment:
    """Loads model and tasks, builds the heads and claims the directory; bad input ends here, before any training.

    Args:
        config: a validated config.
        workdir: an existing directory.
        overwrite: replace an earlier run in it.

    Returns:
        The experiment.

    Raises:
        ValueError: bad input; among it a control that has the name of one of the tasks.
        FileExistsError: the directory holds a run of another config, or on other inputs.
    """
    started = time.monotonic()
    announce(config, workdir)
    tracking.check(config.track.wandb)
    with progress.stage("setup"):
        names = (config.control,) if QUESTIONS[config.workflow].control else ()
        controls = tuple(data.open_task(name, data_dir=config.data_dir) for name in names)
        try:
            placement = parallel.PLACEMENTS[config.placement](parallel.devices_of_all(config.devices))
        except ValueError as error:
            raise ValueError(f"{error} That is --config.devices=NUMBER.") from error
        vectors = source_of_vectors(config)
        for section in ("finetune", "evaluate") if vectors == "trained" else ("evaluate",):
            placement.check_batch_size(config[section].batch_size, what=f"config.{section}.batch_size")
        encoder = family(config.family).load(
            config.model,
            remat=vectors == "trained" and config.finetune.remat,
            random_seed=config.seed if config.initialization == "random" else None,
        )
        regime = regime_of(config)
        mask = trees.param_mask(encoder.params, regime.trainable, layers=config.layers, rules=encoder.rules)
        tasks = tuple(data.open_tasks(config.tasks, data_dir=config.data_dir))
        if same := {control.name for control in controls} & {task.name for task in tasks}:
            raise ValueError(
                f"control {config.control!r} and one of the tasks are both called {same.pop()!r}: their results could "
                "not be told apart. Rename one of the files or folders."
            )
        options = {"on_bad_image": config.on_bad_image, "option": "--config.on_bad_image=skip"}
        opened = (*tasks, *controls)
        readable = tuple(data.check_images(task, **options) for task in opened)
        skipped = _skipped(opened, readable)
        tasks, controls = readable[: len(tasks)], readable[len(tasks) :]
        made_from = inputs.of_experiment(config, encoder, readable)
    expect(config, tasks)
    given = read_vectors(config, workdir, encoder, tasks, overwrite=overwrite) if config.checkpoints else None
    imported = {task: vector.tau for task, vector in given.items()} if given else None
    moved: Mask | None = mask
    if imported:
        moved = mask = moved_mask(list(imported.values()))
    elif vectors == "reused":
        moved = reused_mask(config, encoder, tasks)
    about_data = {name: fingerprint.brief(found) for name, found in made_from["tasks"].items()}
    known = {"config_hash": config_hash(config), "base_sha256": encoder.identity.sha256}
    processes.check_same(**known, **{f"data of {name}": found for name, found in about_data.items()})
    claim(config, workdir, overwrite=overwrite)
    journal = _journal(config, workdir, encoder, readable, vectors, moved, started)
    journal.facts |= {"data": about_data, "skipped_images": skipped}
    heads: dict[str, Head] = {}  # filled below by what the experiment compiles, and keeps, to fit them
    experiment = Experiment(
        config, workdir, encoder, tasks, heads, regime, mask, placement, journal, imported=imported, controls=controls
    )
    _check_base(experiment)
    inputs.keep(workdir, made_from)
    journal.track(config)
    if given:
        keep_vectors(experiment, given)
    _announce(experiment)
    warn(journal.facts["warnings"])
    most_classes = max(len(task.class_names) for task in tasks)
    with progress.stage("heads", {task.name: 1 for task in readable}) as running:
        for task in running.each(readable):
            head = experiment.make_head(task)
            is_control = any(task is control for control in controls)
            heads[task.name] = head if is_control else models.pad_head(head, most_classes)
    return experiment


def on_tasks(answer: Callable[[Experiment], object]) -> Callable[..., None]:
    """The program `run(config, workdir, *, overwrite=False)` that sets up, answers its question and reports.

    What is finished in the directory is skipped; `overwrite` replaces an earlier run in it.
    """

    def run(config: ConfigDict, workdir: Path, *, overwrite: bool = False) -> None:
        answer(setup(config, workdir, overwrite=overwrite))
        write_report(workdir)

    return run


def _journal(
    config: ConfigDict,
    workdir: Path,
    encoder: Encoder,
    tasks: tuple[data.Task, ...],
    vectors: str,
    moved: Mask | None,
    started: float,
) -> Journal:
    origin = {"regime": config.regime, "model": config.model, "seed": config.seed, "config_hash": config_hash(config)}
    facts = {
        "base_sha256": encoder.identity.sha256,
        "revision": encoder.identity.revision,
        **encoder.identity.facts,
        "vectors": vectors,
        "trained_parameters": None if moved is None else trees.count_params(encoder.params, moved),
        "total_parameters": trees.count_params(encoder.params),
        "heads": config.heads,
        "manifests": {task.name: task.manifest for task in tasks if task.manifest},
        "cuts": {task.name: cuts for task in tasks if (cuts := _cuts(task))},
        "warnings": [line for task in tasks for line in task.warnings],
        "processes": processes.share()[1],
    }
    return Journal(workdir / "results.jsonl", origin, facts, started)


def _cuts(task: data.Task) -> dict[str, Mapping[str, int | None]]:
    """Seed and count of each split of a task that was cut from another."""
    cuts = {"val": task.validation, "test": task.test_cut}
    return {split: cut for split, cut in cuts.items() if cut and cut["seed"] is not None}


def _skipped(opened: Sequence[data.Task], readable: Sequence[data.Task]) -> dict[str, dict[str, int]]:
    """The images that were left out, by task and split where there are any."""
    skipped = {}
    for before, after in zip(opened, readable, strict=True):
        counts = {split: len(source) - len(after.splits[split]) for split, source in before.splits.items()}
        if any(counts.values()):
            skipped[before.name] = {split: count for split, count in counts.items() if count}
    return skipped


def _check_base(experiment: Experiment) -> None:
    """Raises `ValueError` if the run was begun with another image tower under the same name."""
    earlier, present = experiment.find(stage="run"), experiment.encoder.identity.sha256
    if earlier and (base := earlier[0].get("base_sha256", present)) != present:
        raise ValueError(
            f"{experiment.workdir} was begun with a model of sha256 {base}, but {experiment.config.model} now "
            f"has {present}. Choose another --workdir, or pass --overwrite to replace that run."
        )


def _announce(experiment: Experiment) -> None:
    facts = experiment.journal.facts
    of_processes = f" of {facts['processes']} processes" if processes.joined() else ""
    progress.say(f"{': '.join(runs.parameters(facts))}, on {experiment.placement}{of_processes}")

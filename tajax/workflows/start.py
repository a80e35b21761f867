"""The beginning of every run on tasks: model, tasks, heads and directory, or the error that ends it before any work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from tajax import data, encoders, processes, progress, tracking, trees
from tajax.config import config_hash
from tajax.config import regime as regime_of
from tajax.data import fingerprint
from tajax.data.sources import TextSource
from tajax.encoders import family_named
from tajax.encoders.encoder import Encoder, shortened, through_norm
from tajax.precision import products
from tajax.questions import QUESTIONS
from tajax.records import Run
from tajax.report import runs
from tajax.types import Tokenization
from tajax.workflows import inputs
from tajax.workflows.evaluator import Evaluator
from tajax.workflows.heads import make_heads
from tajax.workflows.journal import Journal
from tajax.workflows.placing import placed
from tajax.workflows.setup import Setup
from tajax.workflows.stages import announce, expect, warn
from tajax.workflows.training import check_training, count_entries, count_trained
from tajax.workflows.tuning import adopt, tuned
from tajax.workflows.vectors import keep_vectors, moved_mask, read_vectors, reused_count, source_of_vectors
from tajax.workflows.workdir import claim, write_report


def start(config: ConfigDict, workdir: Path, *, overwrite: bool = False) -> tuple[Setup, Evaluator]:
    """Loads model and tasks, builds the heads and claims the directory; bad input ends here, before any training.

    Args:
        config: a validated config.
        workdir: an existing directory.
        overwrite: replace an earlier run in it.

    Returns:
        What the run is, and what evaluates its models.

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
        family = family_named(config.family)
        placement = placed(config, rule=family.divided)
        vectors = source_of_vectors(config)
        for section in ("finetune", "evaluate") if vectors == "trained" else ("evaluate",):
            placement.check_batch_size(config[section].batch_size, what=f"config.{section}.batch_size")
        encoder = encoders.load(
            config.model,
            family=config.family,
            random_seed=config.seed if config.initialization == "random" else None,
            precision=config.precision,
        )
        if config.max_tokens is not None:
            encoder = shortened(encoder, config.max_tokens)
        if config.linearize_through_norm:
            encoder = through_norm(encoder)
        placement.shardings(encoder.params, moments=True)  # or the leaf that cannot be divided
        regime = regime_of(config)
        mask = trees.param_mask(
            encoder.params, regime.trainable, layers=config.layers, rules=encoder.rules, stacked=encoder.stacked
        )
        check_training(config, regime, encoder, mask, vectors=vectors)
        tasks = tuple(data.open_tasks(config.tasks, data_dir=config.data_dir))
        if same := {control.name for control in controls} & {task.name for task in tasks}:
            raise ValueError(
                f"control {config.control!r} and one of the tasks are both called {same.pop()!r}: their results could "
                "not be told apart. Rename one of the files or folders."
            )
        for task in (*tasks, *controls):
            data.check_takes(task, encoder.inputs)
        options = {"on_bad_image": config.on_bad_image, "option": "--config.on_bad_image=skip"}
        opened = (*tasks, *controls)
        readable = tuple(data.check_images(task, **options) for task in opened)
        skipped = _skipped(opened, readable)
        tasks, controls = readable[: len(tasks)], readable[len(tasks) :]
        made_from = inputs.of_tasks(config, encoder, readable)
        cut_texts = _cut_texts(encoder, readable)
    expect(config, tasks)
    given = read_vectors(config, workdir, encoder, tasks, overwrite=overwrite) if config.checkpoints else {}
    imported = {task: vector.tau for task, vector in given.items()}
    counted: int | None = trees.count_params(encoder.params, mask)
    if imported:
        mask = moved_mask(list(imported.values()))
        counted = trees.count_params(encoder.params, mask)
    elif vectors == "reused":
        counted = reused_count(config, encoder, tasks)
    elif vectors == "trained":
        counted = count_entries(config, regime, encoder, mask) or counted
    about_data = {name: fingerprint.brief(found) for name, found in made_from["tasks"].items()}
    known = {"config_hash": config_hash(config), "base_sha256": encoder.identity.sha256}
    processes.check_same(**known, **{f"data of {name}": found for name, found in about_data.items()})
    claim(config, workdir, overwrite=overwrite)
    journal = _journal(config, workdir, encoder, readable, vectors, counted, started)
    journal.facts |= {"data": about_data, "skipped_images": skipped}
    if vectors == "trained" and (factors := count_trained(config, regime, encoder, mask)) is not None:
        journal.facts["trained_factors"] = factors
    if cut_texts:
        journal.facts["cut_texts"] = cut_texts
    setup = Setup(config, workdir, encoder, tasks, controls, regime, mask, placement, journal, imported)
    _check_base(setup)
    inputs.keep(workdir, made_from)
    journal.track(config)
    if given:
        keep_vectors(setup, given)
    _announce(setup)
    warn(journal.facts["warnings"])
    if cut_texts:
        progress.say(_about_cut_texts(encoder, readable, cut_texts))
    step = placement.rows(lambda params, batch: encoder.apply(params, batch.inputs))
    heads = make_heads(setup, step)
    return setup, Evaluator(encoder, placement, regime.evaluate_linearized, setup.batches, step, heads)


def on_tasks(answer: Callable[[Setup, Evaluator], object]) -> Callable[..., None]:
    """The program `run(config, workdir, *, overwrite=False)` that sets up, answers its question and reports.

    What is finished in the directory is skipped; `overwrite` replaces an earlier run in it.
    """

    def run(config: ConfigDict, workdir: Path, *, overwrite: bool = False) -> None:
        config, tried = tuned(config, workdir, overwrite=overwrite)
        setup, evaluator = start(config, workdir, overwrite=overwrite)
        adopt(setup, tried)
        answer(setup, evaluator)
        write_report(workdir)

    return run


def _journal(
    config: ConfigDict,
    workdir: Path,
    encoder: Encoder,
    tasks: tuple[data.Task, ...],
    vectors: str,
    counted: int | None,
    started: float,
) -> Journal:
    origin = {"regime": config.regime, "model": config.model, "seed": config.seed, "config_hash": config_hash(config)}
    facts = {
        "family": encoder.family,
        "base_sha256": encoder.identity.sha256,
        "revision": encoder.identity.revision,
        **encoder.identity.facts,
        "vectors": vectors,
        "trained_parameters": counted,
        "total_parameters": trees.count_params(encoder.params),
        "heads": config.heads,
        "precision": config.precision,
        "products": products(config.precision, jax.default_backend()),
        "manifests": {task.name: task.manifest for task in tasks if task.manifest},
        "cuts": {task.name: cuts for task in tasks if (cuts := _cuts(task))},
        "warnings": [line for task in tasks for line in task.warnings],
        "processes": processes.share()[1],
        "examples": tasks[0].modality,
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


def _cut_texts(encoder: Encoder, tasks: Sequence[data.Task]) -> dict[str, dict[str, int]]:
    """The texts that are longer than the encoder takes, by task and split where there are any."""
    if not isinstance(encoder.inputs, Tokenization):
        return {}
    counts = {
        task.name: {
            split: count
            for split, source in task.splits.items()
            if isinstance(source, TextSource) and (count := data.count_cut(source, encoder.inputs))
        }
        for task in tasks
    }
    return {task: of_splits for task, of_splits in counts.items() if of_splits}


def _about_cut_texts(encoder: Encoder, tasks: Sequence[data.Task], cut: Mapping[str, Mapping[str, int]]) -> str:
    assert isinstance(encoder.inputs, Tokenization)  # only texts are cut
    sizes = {task.name: sum(map(len, task.splits.values())) for task in tasks}
    shares = ", ".join(f"{sum(counts.values()) / sizes[task]:.0%} of {task}" for task, counts in cut.items())
    return f"Texts of more than {encoder.inputs.max_length} tokens are cut: {shares}"


def _check_base(setup: Setup) -> None:
    """Raises `ValueError` if the run was begun with another encoder under the same name."""
    earlier, present = setup.journal.find(Run), setup.encoder.identity.sha256
    if earlier and (base := earlier[0].get("base_sha256", present)) != present:
        raise ValueError(
            f"{setup.workdir} was begun with a model of sha256 {base}, but {setup.config.model} now "
            f"has {present}. Choose another --workdir, or pass --overwrite to replace that run."
        )


def _announce(setup: Setup) -> None:
    facts = setup.journal.facts
    of_processes = f" of {facts['processes']} processes" if processes.joined() else ""
    asked, rounded = setup.config.precision, facts["products"]
    exactly = "" if rounded == "float32" else f", precision {asked}: products of {rounded}"
    progress.say(f"{': '.join(runs.parameters(facts))}, on {setup.placement}{of_processes}{exactly}")

"""Where the task vectors of a run are from: trained here, reused from another run, or imported.

Imported are those of encoders that others fine-tuned, `config.checkpoints` against the base of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import jax
from jax import Array
from ml_collections import ConfigDict

import tajax
from tajax import data, host, processes, progress, trees, vector_files
from tajax.config import REGIMES, config_hash
from tajax.encoders.encoder import Encoder
from tajax.models.hub import locate, split_choice
from tajax.records import Checkpoint, Finetune, stage_of
from tajax.types import Head, JsonObject, Mask, Params
from tajax.workflows.setup import Setup
from tajax.workflows.stages import stages
from tajax.workflows.training import finetune_all
from tajax.workflows.workdir import vector_path

FAR = 0.5
"""‖τ‖/‖θ₀‖ from which an encoder is not taken for a fine-tuned copy of the base: fine-tuning moves weights by a few
percent, and independent trainings end about √2 apart."""


def source_of_vectors(config: ConfigDict) -> str:
    """Where a run has its task vectors from: `imported`, `reused`, `trained`, or `none` where it takes no vectors.

    Example:
        >>> from tajax.config import default_config
        >>> source_of_vectors(default_config())
        'trained'
    """
    sources = {"checkpoints": "imported", "vectors": "reused", stage_of(Finetune): "trained"}
    return next((sources[stage.name] for stage in stages(config) if stage.name in sources), "none")


def task_vectors(setup: Setup, heads: Mapping[str, Head]) -> dict[str, Params]:
    """The task vector of each task: of `config.checkpoints`, of the run `config.task_vectors`, or trained here.

    They are on the host (`tajax.host`): a stage puts on the devices what it needs of them.
    """
    match source_of_vectors(setup.config):
        case "imported":
            return dict(setup.imported)
        case "reused":
            with progress.stage("vectors", {task.name: 1 for task in setup.tasks}) as running:
                return {task.name: _reused_vector(setup, task) for task in running.each(setup.tasks)}
        case _:
            return finetune_all(setup, heads)


def _reused_vector(setup: Setup, task: data.Task) -> Params:
    path = vector_path(Path(setup.config.task_vectors).expanduser(), task.name)
    tau, made = vector_files.load_task_vector(path, setup.pretrained, base_sha256=setup.encoder.identity.sha256)
    _check_expansion(str(path), made, **expansion(setup.config))
    return tau


class Expansion(TypedDict):
    """Whether models are evaluated in the expansion around θ₀, and in which of the two."""

    linearized: bool
    through_norm: bool


def expansion(config: ConfigDict) -> Expansion:
    """That of a run."""
    return {
        "linearized": REGIMES[config.regime].evaluate_linearized,
        "through_norm": config.linearize_through_norm,
    }


def _check_expansion(place: str, made: JsonObject, *, linearized: bool, through_norm: bool) -> None:
    """Raises `ValueError` if a vector was trained in another expansion than the one it would be evaluated in."""
    through = made.get("through_norm", False)
    if made.get("linearized") and linearized:
        if through != through_norm:
            raise ValueError(
                f"{place} was trained in the expansion {'through' if through else 'before'} the norm of the features. "
                f"Give --config.linearize_through_norm={through}."
            )


class Imported(NamedTuple):
    """A task vector that was not trained here."""

    tau: Params
    """On the host, as of `tajax.host.fetch`."""
    length: float
    """‖τ‖/‖θ₀‖."""
    about: JsonObject
    """What was found at its place, for the record: the format, what was not read, and how much of τ is rounding. Empty
    where an earlier process of the run had found it."""
    linearized: bool = False
    """Whether it was trained in the expansion around the base, as far as its place says so."""


def read_vectors(
    config: ConfigDict, workdir: Path, encoder: Encoder, tasks: Sequence[data.Task], *, overwrite: bool = False
) -> dict[str, Imported]:
    """The task vector of each task, from a fine-tuned encoder or a task-vector file; nothing is written.

    What an earlier process of the run has put into `workdir/task_vectors` is read there.

    Args:
        config: `checkpoints` has a place for each task, or one with {task} in it: what `Encoder.load_finetuned` takes,
            or a file of `vector_files.save_task_vector`.
        workdir: of the run.
        encoder: the base.
        tasks: the opened tasks.
        overwrite: what is in `workdir` belongs to a run that will be replaced.

    Raises:
        FileNotFoundError, ValueError: a place that does not exist, a damaged file, another architecture, another base;
            parameters of a linearised encoder, and a regime that does not expand it. The message names the place.
    """
    vectors: dict[str, Imported] = {}
    given = places(config, tasks)
    with progress.stage("checkpoints", dict.fromkeys(given, 1)) as running:
        for task, place in running.each(given.items(), lambda place: place[0]):
            kept = vector_path(workdir, task)
            source = str(kept) if kept.exists() and not overwrite else place
            found = read_vector(source, encoder, **expansion(config), any_base=config.any_base)
            vectors[task] = found if source == place else found._replace(about={})
            progress.note({"‖τ‖/‖θ₀‖": found.length})
            if warning := vectors[task].about.get("warning"):
                progress.say(f"{source}: {warning}")
    return vectors


def keep_vectors(setup: Setup, vectors: Mapping[str, Imported]) -> None:
    """Writes and records those vectors that `workdir/task_vectors` lacks, without the leaves that did not move."""
    for task, place in places(setup.config, setup.tasks).items():
        tau, about = vectors[task].tau, vectors[task].about
        if about and not setup.journal.find(Checkpoint, task=task):
            setup.journal.record(Checkpoint, task=task, source=place, **about)
        path = vector_path(setup.workdir, task)
        if processes.is_first() and not path.exists():
            made = vector_files.vector_metadata(
                model=setup.config.model,
                base_sha256=setup.encoder.identity.sha256,
                revision=setup.encoder.identity.revision,
                family=setup.encoder.family,
                task=task,
                linearized=setup.regime.evaluate_linearized,
                config_hash=config_hash(setup.config),
            )
            mask = moved_mask([tau])
            vector_files.save_task_vector(path, tau, made | {"source": place}, mask=mask)


def moved_mask(vectors: Sequence[Params]) -> Mask:
    """The leaves that any of the vectors, on the host, moves."""
    moves = [jax.tree.map(host.moves, tau) for tau in vectors]
    return jax.tree.map(lambda *leaves: any(leaves), *moves)


def reused_count(config: ConfigDict, encoder: Encoder, tasks: Sequence[data.Task]) -> int | None:
    """How many numbers were trained for the vectors of the run `config.task_vectors`; None where they do not say it.

    Raises:
        FileNotFoundError: that run has no vector of one of the tasks.
        ValueError: a file is damaged.
    """
    run = Path(config.task_vectors).expanduser()
    for path in (vector_path(run, task.name) for task in tasks):
        if not path.exists():
            raise FileNotFoundError(
                f"config.task_vectors: no task vector {path}. Finish that run, or leave the field out."
            )
    made = vector_files.read_metadata(vector_path(run, tasks[0].name))
    if isinstance(count := made.get("trained_parameters"), int):
        return count
    if "trainable" not in made:
        return None
    rule, layers = made["trainable"], made.get("layers")
    assert isinstance(rule, str | list | dict) and isinstance(layers, list | None)  # which reading has checked
    chosen = (layers[0], layers[1]) if layers else None
    mask = trees.param_mask(encoder.params, rule, layers=chosen, rules=encoder.rules, stacked=encoder.stacked)
    return trees.count_params(encoder.params, mask)


def places(config: ConfigDict, tasks: Sequence[data.Task]) -> dict[str, str]:
    """What `config.checkpoints` names for each task."""
    given = config.checkpoints
    if len(given) == 1 and "{task}" in given[0]:
        return {task.name: given[0].replace("{task}", task.name) for task in tasks}
    return {task.name: place for task, place in zip(tasks, given, strict=True)}


def read_vector(
    place: str, encoder: Encoder, *, linearized: bool = False, through_norm: bool = False, any_base: bool = False
) -> Imported:
    """The task vector of an encoder that was fine-tuned from a base, or that a file holds.

    Args:
        place: what `Encoder.load_finetuned` takes, or a file of `vector_files.save_task_vector`.
        encoder: the base.
        linearized: whether it will be evaluated in the expansion around the base.
        through_norm: whether that goes through the norm of the features.
        any_base: take what was made from another base, too.

    Raises:
        FileNotFoundError, ValueError: as `read_vectors`; or it is the base itself.
    """
    found = _read(place, encoder, linearized=linearized, through_norm=through_norm, any_base=any_base)
    if found.length == 0:
        raise ValueError(f"{place} is the base itself, {encoder.identity.name}: its task vector is zero.")
    if found.length > FAR and not any_base:
        raise ValueError(
            f"{place} is no fine-tuned copy of {encoder.identity.name}: their weights lie {found.length:.2f} ‖θ₀‖ "
            "apart. Give the model that it was made from (--config.model=…), or insist with --config.any_base=True "
            "(tajax.merge: BASE, --any-base)."
        )
    return found


def _read(place: str, encoder: Encoder, *, linearized: bool, through_norm: bool, any_base: bool) -> Imported:
    pretrained, (path, which) = encoder.params, split_choice(place)
    path = locate(path)
    if vector_files.is_task_vector(path):
        if which:
            raise ValueError(
                f"{place}: {path} is a task vector, which has no models to choose from: remove '#{which}'."
            )
        sha256 = encoder.identity.sha256
        tau, made = vector_files.load_task_vector(path, pretrained, base_sha256=sha256, force=any_base)
        _check_expansion(place, made, linearized=linearized, through_norm=through_norm)
        return Imported(tau, float(_length(tau, pretrained)), {"format": "task vector"}, bool(made.get("linearized")))
    finetuned = encoder.load_finetuned(f"{path}#{which}" if which else str(path))
    trees.check_same_tree(pretrained, finetuned.params, what=("pretrained", "finetuned"))
    if finetuned.linearized and not linearized:
        names = ", ".join(name for name, regime in REGIMES.items() if regime.evaluate_linearized)
        raise ValueError(
            f"{place} holds parameters of a linearised encoder, which say nothing to the encoder itself. Choose a "
            f"regime that is evaluated in the expansion ({names}), such as --config.regime=linear."
        )
    about: JsonObject = {"format": finetuned.format, "notes": list(finetuned.notes)}
    if rounding := finetuned.rounding:
        about["rounding"] = {**rounding._asdict(), "share": rounding.share}
        about |= {"warning": str(rounding)} if rounding.matters else {}
    theta, linearized = trees.flatten_paths(finetuned.params), finetuned.linearized
    del finetuned  # so that each leaf is gone when it is subtracted from: two large models are in memory already
    flat = trees.flatten_paths(pretrained)
    moved = [host.fetch(tajax.task_vector(leaf, theta.pop(path))) for path, leaf in flat.items()]
    tau = jax.tree.unflatten(jax.tree.structure(pretrained), moved)
    return Imported(tau, float(_length(tau, pretrained)), about, linearized)


@jax.jit  # one pass, without an array of squares
def _length(tau: Params, pretrained: Params) -> Array:
    return tajax.norm(tau) / tajax.norm(pretrained)

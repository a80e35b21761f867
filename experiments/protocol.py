"""What all experiments share: benchmarks, regimes, seeds, and fine-tuning runs whose task vectors serve everybody.

Experiments are modules, run from the root of the repository: `python -m experiments.task_addition.run --help`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from tajax import results
from tajax.config import validate
from tajax.main import run as run_config
from tajax.results import Record

BENCHMARKS = ("bundled", "real", "b32", "b16", "l14")
"""The bundled tasks and eight sets of real images on the bundled model; OpenAI's CLIPs on the papers' eight tasks."""

REAL_TASKS = ("mnist", "gtsrb", "dtd10", "cars_body", "sun8", "rsscn7", "street_letters", "fashion_mnist")
REAL_CONTROL = "cifar10"

FEW_TASKS = {
    "bundled": ("shapes", "digits", "textures", "signs"),
    "real": ("mnist", "gtsrb", "sun8", "fashion_mnist"),
}
"""Of each small benchmark some tasks that are unlike one another, for experiments that need many models."""

# Regime, and the config file it is a delta of. Post-hoc linearises the vectors of standard.
REGIMES = {
    "standard": "standard",
    "posthoc": "posthoc",
    "attention": "attn",
    "attention_with_bias": "attn",
    "linear": "linear",
    "linear_attention": "linear_attn",
}


class Run(NamedTuple):
    """A finished run of a workflow."""

    config: ConfigDict
    directory: Path
    records: list[Record]


def arguments(description: str | None, *, regimes: tuple[str, ...] = tuple(REGIMES)) -> argparse.ArgumentParser:
    """The flags of every experiment; one may add its own. `regimes` are the default ones, none for no such flag."""
    command = f"python -m experiments.{Path(sys.argv[0]).resolve().parent.name}.run"
    parser = argparse.ArgumentParser(
        prog=command,
        description=description,
        epilog=f"example: {command} --benchmark=bundled --seeds 0 writes tables into its README, records and figures "
        "into results/. Exit codes: 0 done; 1 a run failed; 2 a wrong option.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="bundled", help="model and tasks")
    if regimes:
        known = f"what is compared, of {', '.join(REGIMES)}"
        parser.add_argument(
            "--regimes", nargs="+", choices=tuple(REGIMES), default=regimes, metavar="REGIME", help=known
        )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="of fine-tuning")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), metavar="DIR", help="folder of the real tasks' .npz files"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs live; finished ones are not repeated"
    )
    return parser


def make_config(options: argparse.Namespace, regime: str, seed: int, **fields: object) -> ConfigDict:
    """The config file of a regime on the chosen benchmark, with a seed and other fields by dotted name."""
    variant = options.benchmark if options.benchmark in ("b32", "b16", "l14") else "tiny"
    config = importlib.import_module(f"configs.{REGIMES[regime]}").get_config(variant)
    config.regime = regime
    config.seed = seed
    config.save.merged = False
    if options.benchmark == "real":
        config.tasks = tuple(str(options.data / f"{name}.npz") for name in REAL_TASKS)
        config.control = str(options.data / f"{REAL_CONTROL}.npz")
    config.update_from_flattened_dict(fields)
    return config


def finetuned(options: argparse.Namespace, regime: str, seed: int, *, label: str = "", **fields: object) -> Run:
    """The task-addition run of a regime, made now if it is not there yet.

    Args:
        options: from `arguments`.
        regime: a key of `REGIMES`.
        seed: of fine-tuning.
        label: names what `fields` change, in the name of the directory.
        **fields: fields of the config by dotted name, as in `**{"finetune.steps": 300}`.
    """
    config = make_config(options, regime, seed, **fields)
    if regime == "posthoc":
        config.task_vectors = str(finetuned(options, "standard", seed, label=label, **fields).directory)
    name = "_".join(filter(None, (regime, label, str(seed))))
    return _run(config, options.runs / options.benchmark / name)


def finetuned_on_few(options: argparse.Namespace, regime: str, seed: int, *, label: str = "", **fields: object) -> Run:
    """As `finetuned`, on `FEW_TASKS`, or all with real CLIP. Without fields the vectors are those of all tasks."""
    if options.benchmark not in FEW_TASKS:
        return finetuned(options, regime, seed, label=label, **fields)
    tasks = FEW_TASKS[options.benchmark]
    if options.benchmark == "real":
        tasks = tuple(str(options.data / f"{name}.npz") for name in tasks)
    if not fields:
        fields = {"task_vectors": str(finetuned(options, regime, seed).directory)}
    return finetuned(options, regime, seed, label="_".join(filter(None, ("few", label))), tasks=tasks, **fields)


def analysed(run: Run, name: str, *, label: str = "", **fields: object) -> Run:
    """Another workflow on the task vectors of a run, made now if it is not there yet.

    Args:
        run: from `finetuned`.
        name: of the workflow.
        label: names what `fields` change, in the name of the directory.
        **fields: fields of the config by dotted name.
    """
    config = run.config.copy_and_resolve_references()
    config.workflow = name
    if config.task_vectors is None:
        config.task_vectors = str(run.directory)
    config.update_from_flattened_dict(fields)
    return _run(config, run.directory.with_name("_".join(filter(None, (name, label, run.directory.name)))))


def untrained(
    options: argparse.Namespace, name: str, regime: str, seed: int, *, label: str = "", **fields: object
) -> Run:
    """A workflow that needs no task vectors, on the weights of a regime, made now if it is not there yet.

    Args:
        options: from `arguments`.
        name: of the workflow.
        regime: a key of `REGIMES`.
        seed: of what the workflow draws.
        label: names what `fields` change, in the name of the directory.
        **fields: fields of the config by dotted name.
    """
    config = make_config(options, regime, seed, workflow=name, **fields)
    return _run(config, options.runs / options.benchmark / "_".join(filter(None, (name, label, regime, str(seed)))))


def _run(config: ConfigDict, directory: Path) -> Run:
    validate(config)
    run_config(config, directory)
    return Run(config, directory, results.read(directory / "results.jsonl"))

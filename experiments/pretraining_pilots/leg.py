"""The next bundled model on its way: keeps what a leg of pre-training ended with, and measures what it knows."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments import summary
from experiments.pretraining_pilots.run import GROUPS, HERE, seconds_a_step, zero_shot
from tajax import report, results
from tajax.results import Record

MODEL = HERE / "model"
SPLITS = ("val", "test")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.pretraining_pilots.leg",
        description=__doc__,
        epilog="A run of configs/pretrain.py that ends gives its model to the next one by "
        f"--config.pretrain.initial_model=experiments/{HERE.name}/model; give each leg a seed of its own.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--runs", nargs="+", type=Path, required=True, metavar="DIR",
        help="of configs/pretrain.py, each gone on from the one before, the last of them finished",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR", help="folder of .npz files")
    options = parser.parse_args()
    kept = HERE / "results" / "legs.jsonl"
    legs = results.read(kept) if kept.exists() else []
    legs.append(measured(options))
    if MODEL.exists():
        shutil.rmtree(MODEL)
    shutil.copytree(options.runs[-1] / "model", MODEL)
    summary.write(HERE, "legs", [table(legs)], legs)


def measured(options: argparse.Namespace) -> Record:
    """The record of a leg, of one run or several: what it cost, and what the model that it ended with knows."""
    made: Record = {"steps": 0, "pairs": 0, "minutes": 0.0}
    for run in options.runs:
        records, config = results.read(run / "results.jsonl"), json.loads((run / "config.json").read_text("utf-8"))
        steps = results.find(records, stage="pretrain")
        done = steps[-1]["step"]
        made["steps"] += done
        made["pairs"] += done * config["pretrain"]["batch_size"]
        made["minutes"] += seconds_a_step(steps) * done / 60
    if done != (wanted := config["pretrain"]["steps"]):
        raise ValueError(f"{run} is at step {done} of {wanted}: finish it first.")
    origin, model = results.find(records, stage="run")[0], options.runs[-1] / "model"
    known = {
        split: {group: zero_shot(model, tasks, options, split) for group, tasks in GROUPS.items()} for split in SPLITS
    }
    return {
        "stage": "leg",
        "seed": config["seed"],
        "config_hash": steps[-1]["config_hash"],
        **{key: origin[key] for key in ("versions", "git_revision") if key in origin},
        **made,
        "loss": steps[-1]["loss"],
        "zero_shot": known,
    }


def table(legs: Sequence[Record]) -> report.Table:
    """One row a leg; of each group of tasks the mean on validation and on test."""
    columns = ("leg", "steps", "pairs so far", "minutes so far", "loss")
    columns += tuple(f"{group}, {split}" for group in GROUPS for split in SPLITS)
    rows, pairs, minutes = [], 0, 0.0
    for number, leg in enumerate(legs, start=1):
        pairs, minutes = pairs + leg["pairs"], minutes + leg["minutes"]
        means = [statistics.fmean(leg["zero_shot"][split][group].values()) for group in GROUPS for split in SPLITS]
        cost = (str(number), f"{leg['steps']:,}", f"{pairs:,}", f"{minutes:.0f}", f"{leg['loss']:.2f}")
        rows.append((*cost, *(f"{100 * mean:.1f}" for mean in means)))
    notes = (
        "Zero-shot top-1 in %, means over tasks. minutes: of two cores, at the pace of the fastest steps of each leg, "
        "so that what else ran beside it does not count. Losses of different batch sizes are not to be compared.",
    )
    return report.Table("Legs of the pre-training", columns, tuple(rows), notes)


if __name__ == "__main__":
    main()

"""The maps that two experiments look at: all pairs of tasks on a coarse grid, and three pairs on the papers' grid."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from experiments import protocol
from experiments.protocol import Run
from tajax import results
from tajax.disentanglement import equivalent_coefs, mean_over_square
from tajax.results import Record
from tajax.workflows.disentanglement import DEGREES

COARSE = (-1.0, -0.5, 0.0, 0.5, 1.0)
PAIRS = {  # the papers', and three of each other benchmark that share no task; chosen before anything was measured
    "bundled": (("textures", "digits"), ("shapes", "signs"), ("colors", "letters")),
    "real": (("gtsrb", "street_letters"), ("dtd10", "sun8"), ("cars_body", "rsscn7")),
    "text": (("ag_news", "trec"), ("movie_reviews", "banking77"), ("snips", "tweet_emotion")),
    **dict.fromkeys(("b32", "b16", "l14"), (("eurosat", "svhn"), ("dtd", "sun397"), ("cars", "resisc45"))),
}
DISTANCES = ("prediction", "symmetric_kl")

Runs = dict[str, list[Run]]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The flags of both experiments."""
    parser = protocol.arguments(description)
    parser.add_argument(
        "--images", type=int, default=128, help="images, or texts, of each task, evenly spread over its test split"
    )
    parser.add_argument(
        "--heads",
        choices=("zero_shot", "linear_probe"),
        help="default: linear_probe for real, whose images the bundled model cannot name, else zero_shot",
    )
    return parser


def heads(options: argparse.Namespace) -> str:
    """The kind of heads that the flags ask for."""
    return options.heads or ("linear_probe" if options.benchmark == "real" else "zero_shot")


def finetuned(options: argparse.Namespace, regime: str, seed: int) -> Run:
    """The run whose vectors are looked at."""
    chosen = heads(options)
    label = "" if chosen == "zero_shot" else chosen
    return protocol.finetuned(options, regime, seed, label=label, heads=chosen)


def all_pairs(options: argparse.Namespace) -> Runs:
    """Of each regime and seed the coarse maps of all pairs of tasks."""
    fields = {"disentanglement.coefs": COARSE, "disentanglement.images": options.images}
    return {
        regime: [
            protocol.analysed(finetuned(options, regime, seed), "disentanglement", **fields) for seed in options.seeds
        ]
        for regime in options.regimes
    }


def pairs(options: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """Those of `PAIRS`; with `--few` those that have both tasks there, or else its tasks two by two."""
    if not options.few:
        return PAIRS[options.benchmark]
    names = protocol.FEW_TASKS[options.benchmark]
    return tuple(pair for pair in PAIRS[options.benchmark] if set(pair) <= set(names)) or (names[:2], names[2:])


def fine_maps(options: argparse.Namespace) -> dict[str, Run]:
    """Of each regime the papers' 25×25 maps of `pairs`, with the first seed."""
    fields = {"disentanglement.pairs": pairs(options), "disentanglement.images": options.images}
    return {
        regime: protocol.analysed(
            finetuned(options, regime, options.seeds[0]), "disentanglement", label="maps", **fields
        )
        for regime in options.regimes
    }


def maps_of(run: Run, distance: str) -> list[Record]:
    """The records of one distance, in the order of the pairs."""
    return results.find(run.records, stage="disentanglement", distance=distance)


def values(run: Run, distance: str, key: str) -> np.ndarray:
    """`summary`, `relative` or `equivalent` of every pair; NaN where it does not exist."""
    read = equivalent if key == "equivalent" else lambda record: record[key]
    return np.array([np.nan if (value := read(r)) is None else value for r in maps_of(run, distance)])


def equivalent(record: Record) -> float:
    """The mean over the square of how much of the own vector would disturb as much as the other vector does.

    Raises:
        KeyError: the record has neither this mean nor the map that it is the mean of.
    """
    if "equivalent" in record:
        return float(record["equivalent"])
    curve, coefs = np.array(record["own_curve"]), record["coefs"]
    degree = DEGREES[record["distance"]]
    return mean_over_square(equivalent_coefs(record["terms"], coefs, curve, degree=degree), coefs)


def over_seeds(runs: Sequence[Run], distance: str, key: str) -> list[float]:
    """The mean over pairs of `values`, of each seed."""
    return [float(np.mean(values(run, distance, key))) for run in runs]


def without_map(record: Record, *, drawn: bool = False) -> Record:
    """A record without its map, for the results file; with `drawn` with the one number of it that a figure shows."""
    shown = {"equivalent": equivalent(record)} if drawn and "terms" in record else {}
    return {key: value for key, value in record.items() if key not in ("terms", "coefs")} | shown

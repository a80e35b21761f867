"""Merged against single-task accuracy over learning rates: one curve for each choice of what is trained."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import tajax
from experiments import destination, figures, protocol, summary
from experiments.protocol import Run
from tajax import encoders, report, results, vector_files
from tajax.report import Table
from tajax.results import Record

HERE = Path(__file__).resolve().parent
PLAIN_SUM = 1.0  # the coefficient of an addition that nobody tuned

CURVES: Mapping[str, tuple[str, dict[str, object]]] = {  # name: regime, and what else its config says
    "standard": ("standard", {}),
    "attention": ("attention", {}),
    "mlp": ("standard", {"trainable": "mlp"}),
    "linear": ("linear", {}),
}
RATES = {  # of each model; the published ones of real CLIP are 1e-5 for all
    "tiny": {
        "standard": (3e-5, 1e-4, 2e-4, 4e-4, 7e-4),
        "attention": (1e-4, 2e-4, 4e-4, 7e-4, 1e-3),
        "mlp": (5e-5, 1e-4, 2e-4, 4e-4, 7e-4),
        "linear": (1e-4, 3e-4, 1e-3),
    },
    "minilm": {
        "standard": (6e-5, 1e-4, 2e-4),
        "attention": (1e-4, 2e-4, 4e-4, 7e-4),
        "mlp": (6e-5, 1e-4, 2e-4, 4e-4),
        "linear": (3e-5, 1e-4, 2e-4),
    },
    "clip": dict.fromkeys(("standard", "attention", "mlp", "linear"), (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)),
}
MODELS = {"bundled": "tiny", "real": "tiny", "text": "minilm"}
LEVELS = {
    "tiny": (0.90, 0.92, 0.93, 0.94, 0.95, 0.96),
    "minilm": (0.83, 0.84, 0.85, 0.86),
    "clip": (0.90, 0.92, 0.93, 0.94, 0.95, 0.96),
}
"""Single-task accuracies at which the curves are compared."""


def main() -> None:
    parser = protocol.arguments(__doc__, regimes=())
    parser.add_argument("--curves", nargs="+", choices=tuple(CURVES), default=tuple(CURVES), help="what is trained")
    parser.add_argument("--rates", nargs="+", type=float, metavar="RATE", help="in place of those of each curve")
    parser.add_argument("--finished", action="store_true", help="make no runs: tables and figure of those there are")
    measure(parser, HERE, CURVES, RATES)


def measure(
    parser: argparse.ArgumentParser,
    folder: Path,
    curves: Mapping[str, tuple[str, dict[str, object]]],
    rates: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
    """Runs the curves and rates of the command line, or reads those that ended; writes tables, records and figure.

    Args:
        parser: with the flags of `protocol.arguments`, `--curves`, `--rates` and `--finished`.
        folder: of the experiment.
        curves: by name, the regime and what else its config says.
        rates: by model and curve, where none are given.
    """
    options = parser.parse_args()
    folder = destination.chosen(options, folder)
    model = MODELS.get(options.benchmark, "clip")
    runs = {
        (name, rate): [run for seed in options.seeds if (run := _run(options, name, *curves[name], rate, seed))]
        for name in options.curves
        for rate in options.rates or rates[model][name]
    }
    if not any(runs.values()):
        parser.error(f"no run of these rates and seeds has ended in {options.runs / options.benchmark}")
    records = [_measured(run, *point) for point, group in runs.items() for run in group]
    took = summary.took(run for group in runs.values() for run in group)
    shown = tables(records, protocol.tasks_in_words(options), LEVELS[model])
    shown[-1] = shown[-1]._replace(notes=(*shown[-1].notes, took))
    summary.write(folder, options.benchmark, shown, records)
    figures.save(draw(records), folder / "results" / f"{options.benchmark}.png")


def _run(
    options: argparse.Namespace, name: str, regime: str, fields: dict[str, object], rate: float, seed: int
) -> Run | None:
    """The run of one curve, rate and seed; with `--finished` None where there is none."""
    label = "_".join(([] if name == regime else [name]) + [f"lr{rate:g}"])
    make = protocol.kept if options.finished else protocol.finetuned
    return make(options, regime, seed, label=label, **fields, **{"finetune.learning_rate": rate})


def _length(run: Run) -> float:
    """‖τ‖/‖θ₀‖, the mean over tasks."""
    pretrained = encoders.load(run.config.model, family=run.config.family).params
    vectors = sorted((run.directory / "task_vectors").glob("*.safetensors"))
    norms = [float(tajax.norm(vector_files.load_task_vector(path, pretrained)[0])) for path in vectors]
    return statistics.fmean(norms) / float(tajax.norm(pretrained))


def _measured(run: Run, name: str, rate: float) -> Record:
    """What came of one curve, rate and seed: accuracies of each task on both splits."""

    def per_task(stage: str, split: str, **fields: object) -> dict[str, float]:
        return {str(r["task"]): float(r["top1"]) for r in results.find(run.records, stage=stage, split=split, **fields)}

    origin = results.find(run.records, stage="run")[0]
    kept = {key: origin[key] for key in ("seed", "config_hash", "versions", "git_revision") if key in origin}
    return {"stage": "learning_rate", "name": name, "learning_rate": rate, **kept} | {
        "scaling_coef": summary.mean(run, "task_addition", "scaling_coef"),
        "length": _length(run),
        "val_images": sum(r["count"] for r in results.find(run.records, stage="task_addition", split="val")),
        "normalized": summary.mean(run, "task_addition", "normalized_top1"),
        **{
            f"{key}_{split}": per_task(stage, split)
            for key, stage in (("single", "single_task"), ("merged", "task_addition"))
            for split in report.accuracy.SPLITS
        },
        "plain_sum_val": per_task("sweep", "val", scaling_coef=PLAIN_SUM),
    }


def _mean(key: str) -> Callable[[Record], float]:
    return lambda record: statistics.fmean(record[key].values()) if isinstance(record[key], dict) else record[key]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _points(records: Sequence[Record]) -> dict[str, dict[float, list[Record]]]:
    """For each curve its rates in order, and for each rate the records of its seeds."""
    points: dict[str, dict[float, list[Record]]] = {}
    for record in sorted(records, key=lambda r: r["learning_rate"]):
        points.setdefault(str(record["name"]), {}).setdefault(record["learning_rate"], []).append(record)
    return {name: points[name] for name in dict.fromkeys(str(r["name"]) for r in records)}


def chosen(rates: Mapping[float, Sequence[Record]]) -> float:
    """The smallest rate whose merged accuracy on validation is within one standard error of the best one.

    In absolute terms, the mean over tasks: normalised accuracy would choose the smallest rate of all, because the worse
    the single models, the less there is to lose. Where nothing speaks for a longer vector, the shorter one is taken.
    Rates are compared on the seeds that were run at all of them.
    """
    seeds = _seeds_of_all(rates)
    common = {rate: [r for r in records if r["seed"] in seeds] for rate, records in rates.items()}
    merged = {rate: statistics.fmean(map(_mean("merged_val"), records)) for rate, records in common.items()}
    best = max(merged, key=lambda rate: merged[rate])
    error = math.sqrt(merged[best] * (1 - merged[best]) / rates[best][0]["val_images"])
    return min(rate for rate in rates if merged[rate] >= merged[best] - error)


def _seeds_of_all(rates: Mapping[float, Sequence[Record]]) -> set[int]:
    return set.intersection(*({int(record["seed"]) for record in records} for records in rates.values()))


def at_level(curve: Sequence[tuple[float, float]], level: float) -> float | None:
    """Merged accuracy where a curve of (single-task, merged) points passes a single-task accuracy.

    Interpolated linearly between neighbouring rates; the highest where the curve passes it twice; None where it
    does not.

    Example:
        >>> at_level([(0.8, 0.5), (0.9, 0.6)], 0.85), at_level([(0.8, 0.5), (0.9, 0.6)], 0.95)
        (0.55, None)
    """
    passed = []
    for (a, low), (b, high) in zip(curve, curve[1:], strict=False):
        if min(a, b) <= level <= max(a, b):
            passed.append(low if a == b else low + (high - low) * (level - a) / (b - a))
    return max(passed, default=None)


def tables(records: Sequence[Record], where: str, levels: Sequence[float]) -> list[Table]:
    """The point of each curve that validation chooses, the curves at equal single-task accuracy, and every rate."""
    points = _points(records)
    columns = ("rate", "‖τ‖/‖θ₀‖", "single", "merged", "norm.", "coef.", "α = 1 (validation)")

    def cells(group: Sequence[Record]) -> tuple[str, ...]:
        keys = "length", "single_test", "merged_test", "normalized"
        percents = [summary.percents(map(_mean(k), group)) for k in keys]
        coef = report.spread([float(r["scaling_coef"]) for r in group], 2)
        return (f"{group[0]['learning_rate']:g}", *percents, coef, summary.percents(map(_mean("plain_sum_val"), group)))

    best = {name: chosen(rates) for name, rates in points.items()}
    ends = [name for name, rates in points.items() if best[name] in (min(rates), max(rates))]
    seeds = {len(points[name][rate]) for name, rate in best.items()}
    first = Table(
        f"The learning rate chosen on validation: {where}, mean test accuracy in %",
        ("trained", *columns),
        tuple((name, *cells(points[name][best[name]])) for name in points),
        (
            f"± is the deviation over seeds ({' or '.join(map(str, sorted(seeds)))} of them). Of each curve the "
            "smallest rate within one standard error of the best mean merged accuracy on validation; ‖τ‖/‖θ₀‖: in %, "
            "the mean over tasks; norm.: merged / single; coef.: α, tuned on validation; α = 1: the plain sum.",
            f"At an end of its rates: {', '.join(ends) or 'none'}.",
        ),
    )
    equal = Table(
        f"Merged where the single-task accuracy is equal: {where}, test accuracy in %",
        ("trained", *(f"{100 * level:.0f}" for level in levels)),
        tuple((name, *(_at_level(rates, level) for level in levels)) for name, rates in points.items()),
        ("Interpolated between neighbouring rates, of seeds run at all of them; –: a curve does not pass it.",),
    )
    every = Table(
        f"Every learning rate: {where}, mean test accuracy in %",
        ("trained", *columns),
        tuple((name, *cells(group)) for name, rates in points.items() for group in rates.values()),
    )
    return [first, equal, every]


def _at_level(rates: Mapping[float, Sequence[Record]], level: float) -> str:
    seeds = _seeds_of_all(rates)
    curves = [
        [
            (_mean("single_test")(r), _mean("merged_test")(r))
            for group in rates.values()
            for r in group
            if r["seed"] == s
        ]
        for s in sorted(seeds)
    ]
    merged = [at_level(curve, level) for curve in curves]
    return "–" if None in merged else summary.percents(merged)


def draw(records: Sequence[Record]) -> Figure:
    """Merged against single-task accuracy: with the tuned coefficient on test, as a plain sum on validation."""
    points = _points(records)
    figure = Figure(figsize=(9, 4.2 + 0.2 * (len(points) // 7)))
    left, right = figure.subplots(1, 2, sharex=True)
    panels = (left, "single_test", "merged_test"), (right, "single_val", "plain_sum_val")
    for axes, single, merged in panels:
        for index, (name, rates) in enumerate(points.items()):
            x, y = (
                np.array([100 * np.mean([_mean(k)(r) for r in g]) for g in rates.values()]) for k in (single, merged)
            )
            dx, dy = ([100 * _deviation([_mean(k)(r) for r in g]) for g in rates.values()] for k in (single, merged))
            color = figures.color(name, index)
            label = figures.words(name)
            axes.errorbar(x, y, xerr=dx, yerr=dy, color=color, label=label, marker="o", markersize=3, elinewidth=0.8)
            at = list(rates).index(chosen(rates))
            axes.plot(x[at], y[at], "o", markersize=9, markerfacecolor="none", markeredgecolor=color)
    left.set(xlabel="single-task accuracy, test, %", ylabel=r"merged at the tuned $\alpha$, test, %")
    right.set(xlabel="single-task accuracy, validation, %", ylabel=r"merged at $\alpha = 1$, validation, %")
    seeds = max(len(group) for rates in points.values() for group in rates.values())
    note = "along each line the learning rate grows; ringed: the one that validation chooses"
    if seeds > 1:
        note += f"; whiskers, where there are several seeds: one standard deviation, of up to {seeds}"
    figures.legend(figure, note, columns=7)
    return figure


if __name__ == "__main__":
    main()

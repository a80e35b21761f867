"""Task negation: how much of a task can its vector take away before a control task suffers?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from configs import negation
from experiments import destination, figures, protocol, published, summary
from experiments.protocol import Run
from tajax import report, results

HERE = Path(__file__).resolve().parent
THRESHOLD = 0.95  # of the control's pre-trained accuracy, as in the papers
Runs = dict[str, list[Run]]


def main() -> None:
    parser = protocol.arguments(__doc__)
    parser.add_argument(
        "--heads",
        choices=("zero_shot", "linear_probe"),
        help="default: linear_probe for real, whose images the bundled model cannot name, else zero_shot",
    )
    options = parser.parse_args()
    folder = destination.chosen(options, HERE)
    heads = options.heads or ("linear_probe" if options.benchmark == "real" else "zero_shot")
    label = "" if heads == "zero_shot" else heads
    variant = protocol.VARIANTS.get(options.benchmark, options.benchmark)
    grid = negation.get_config(variant).evaluate.scaling_coefs
    fields = {"evaluate.scaling_coefs": grid, "evaluate.control_threshold": THRESHOLD}
    runs = {
        regime: [
            protocol.analysed(
                protocol.finetuned(options, regime, seed, label=label, heads=heads), "task_negation", **fields
            )
            for seed in options.seeds
        ]
        for regime in options.regimes
    }
    every = [run for group in runs.values() for run in group]
    tables = [overview(runs, f"{protocol.tasks_in_words(options)}, {heads.replace('_', ' ')} heads"), per_task(runs)]
    tables[-1] = tables[-1]._replace(notes=(*tables[-1].notes, summary.took(every)))
    summary.write(folder, options.benchmark, tables, [r for run in every for r in _kept(run)])
    figures.save(draw(runs), folder / "results" / f"{options.benchmark}.png")
    ours = {(b, r): cell for b in published.MODELS for r, cell in _of_file(folder / "results" / f"{b}.jsonl").items()}
    beside = published.beside_ours("Real CLIP: negated task ↓ / control, in %", published.NEGATION, ours)
    summary.fill(folder / "README.md", "published", report.markdown([beside]).replace("## ", "### "))


def overview(runs: Runs, title: str) -> report.Table:
    """A line for each regime: means over tasks of both accuracies, on both splits, and of α."""
    first = next(iter(runs.values()))
    before = [
        summary.percents(summary.mean(run, stage, split=split) for run in first)
        for split in report.negation.SPLITS
        for stage in ("zero_shot", "control")
    ]
    rows = [("pre-trained", "", "", *before, "")]
    for regime, group in runs.items():
        after = [
            summary.percents(summary.mean(run, "task_negation", metric, split=split) for run in group)
            for split in report.negation.SPLITS
            for metric in ("top1", "control_top1")
        ]
        coefs = report.spread([summary.mean(run, "task_negation", "scaling_coef") for run in group], 2)
        kept = [r["satisfied"] for run in group for r in results.find(run.records, stage="task_negation", split="val")]
        rows.append((regime, str(len(group)), coefs, *after, f"{sum(kept)}/{len(kept)}"))
    notes = (
        f"θ₀ − ατ, mean over tasks ± deviation over seeds, in %. α is tuned for each task on validation: lowest task "
        f"accuracy among those that keep {THRESHOLD:.0%} of the control's; kept: how often one did.",
    )
    columns = ("regime", "seeds", "α", "test task ↓", "test control", "val task ↓", "val control", "kept")
    return report.Table(f"Negation: {title}", columns, tuple(rows), notes)


def per_task(runs: Runs) -> report.Table:
    """Test accuracy on each negated task / on the control, means over seeds."""
    tasks = _tasks(runs)

    def cells(groups: Sequence[dict[str, tuple[float, float]]]) -> tuple[str, ...]:
        means = np.mean([[group[task] for task in tasks] for group in groups], axis=0)
        return tuple(f"{on_task:.1f}/{on_control:.1f}" for on_task, on_control in 100 * means)

    first, rows = next(iter(runs.values())), []
    for run in first[:1]:
        on_control = summary.mean(run, "control")
        before = {
            r["task"]: (r["top1"], on_control) for r in results.find(run.records, stage="zero_shot", split="test")
        }
        rows.append(("pre-trained", *cells([before])))
    rows += [(regime, *cells([_chosen(run.records) for run in group])) for regime, group in runs.items()]
    return report.Table("Each task: test accuracy on it ↓ / on the control", ("regime", *tasks), tuple(rows))


def _tasks(runs: Runs) -> list[str]:
    records = next(iter(runs.values()))[0].records
    return [str(r["task"]) for r in results.find(records, stage="zero_shot", split="test")]


def _chosen(records: Sequence[results.Record]) -> dict[str, tuple[float, float]]:
    """Test accuracy at the chosen α, on each negated task and on the control."""
    return {
        r["task"]: (r["top1"], r["control_top1"]) for r in results.find(records, stage="task_negation", split="test")
    }


def _kept(run: Run) -> list[results.Record]:
    """What tables are made of, and the points of the figure's curve in place of the whole sweep."""
    records = summary.kept(run, "zero_shot", "control", "task_negation")
    source = {key: run.records[0][key] for key in ("regime", "model", "seed", "config_hash")}
    for coef, on_control, on_task in zip(run.config.evaluate.scaling_coefs, *_path(run), strict=True):
        point = {"scaling_coef": coef, "top1": round(on_task / 100, 6), "control_top1": round(on_control / 100, 6)}
        records.append({"stage": "negation_sweep_mean", "split": "val", **point, **source})
    return records


def _of_file(path: Path) -> dict[str, str]:
    """Task / control accuracy of the runs on real CLIP that somebody made, if there are any, by regime."""
    records = results.read(path)
    found = results.find(records, stage="task_negation", split="test")
    before = [results.find(records, stage=stage, split="test") for stage in ("zero_shot", "control")]
    cells = {}
    if all(before):
        cells["pre-trained"] = "/".join(f"{100 * np.mean([r['top1'] for r in group]):.1f}" for group in before)
    for regime in dict.fromkeys(str(record["regime"]) for record in found):
        values = [(r["top1"], r["control_top1"]) for r in results.find(found, regime=regime)]
        cells[regime] = "/".join(f"{100 * value:.1f}" for value in np.mean(values, axis=0))
    return cells


def draw(runs: Runs) -> Figure:
    """What forgetting costs: task against control along α; and the accuracy left of each task."""
    figure = Figure(figsize=(9, 3.7))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    for index, (regime, group) in enumerate(runs.items()):
        paths = np.mean([_path(run) for run in group], axis=0)
        left.plot(*paths, color=figures.color(regime, index), marker="o", markersize=2)
    first = next(iter(runs.values()))[0]
    required = 100 * THRESHOLD * summary.mean(first, "control", split="val")
    left.axvline(required, label=f"{THRESHOLD:.0%} of the control's accuracy, to be kept", **figures.BASELINE)
    left.set(xlabel="control, validation, %", ylabel="negated task, validation, %", ylim=(0, None))
    tasks = _tasks(runs)
    before = {r["task"]: 100 * r["top1"] for r in results.find(first.records, stage="zero_shot", split="test")}
    bars = {"pre-trained": [[before[task] for task in tasks]]}
    for regime, group in runs.items():
        bars[regime] = [[100 * _chosen(run.records)[task][0] for task in tasks] for run in group]
    figures.bars(right, tasks, bars)
    right.set(ylabel="negated task, test, %")
    seeds = len(next(iter(runs.values())))
    note = (
        "accuracies; "
        r"left: from top right to bottom left $\alpha$ of $\theta_0 - \alpha\tau$ grows, means over tasks and seeds"
        "\n"
        r"right: at the $\alpha$ chosen on validation; "
    )
    figures.legend(figure, note + figures.over_seeds("whiskers", seeds), columns=4)
    return figure


def _path(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Control and task accuracy at each α, means over tasks, in %: of the sweep, or as kept of it."""
    if kept := results.find(run.records, stage="negation_sweep_mean"):
        return tuple(np.array([100 * record[key] for record in kept]) for key in ("control_top1", "top1"))
    sweep = results.find(run.records, stage="negation_sweep")

    def mean(coef: float, *, on_control: bool) -> float:
        at = results.find(sweep, scaling_coef=coef)
        return 100 * float(np.mean([r["top1"] for r in at if (r["measured_on"] != r["task"]) == on_control]))

    grid = run.config.evaluate.scaling_coefs
    return tuple(np.array([mean(coef, on_control=on_control) for coef in grid]) for on_control in (True, False))


if __name__ == "__main__":
    main()

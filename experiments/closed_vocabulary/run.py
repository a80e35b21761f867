"""Closed vocabulary: task addition under heads fitted to the pre-trained features, beside heads from class names."""

from __future__ import annotations

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from experiments import destination, figures, protocol, summary
from experiments.protocol import Run
from tajax import report, results

HERE = Path(__file__).resolve().parent
HEADS = ("zero_shot", "linear_probe")
FINE = (0.0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
"""Coefficients under fitted heads, which are steeper than zero-shot ones: some are best between 0 and 0.05."""

COLUMNS = {  # title, and where the number is
    "pre-trained": ("zero_shot", "top1"),
    "single": ("single_task", "top1"),
    "merged": ("task_addition", "top1"),
    "norm.": ("task_addition", "normalized_top1"),
}

MARKS = {"merged": "o", "single": "^"}
"""What is drawn of each regime, and with which mark."""
GREY, POINTS, BESIDE = figures.NEUTRAL, "offset points", ("axes fraction", "data")
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # behind a number, where a line would cross it

Runs = dict[tuple[str, str], list[Run]]


def main() -> None:
    options = protocol.arguments(__doc__).parse_args()
    folder = destination.chosen(options, HERE)
    runs = {
        (heads, regime): [_finetuned(options, regime, seed, heads) for seed in options.seeds]
        for heads in HEADS
        for regime in options.regimes
    }
    fitted = [run for (heads, _), group in runs.items() if heads == "linear_probe" for run in group]
    tables = [_accuracies(runs, protocol.tasks_in_words(options)), _probes(fitted[0])]
    tables[0] = tables[0]._replace(notes=(*tables[0].notes, f"With linear-probe heads: {summary.took(fitted)}"))
    kept = [r for run in fitted for r in summary.kept(run, "head", "zero_shot", "single_task", "task_addition")]
    summary.write(folder, options.benchmark, tables, kept)
    figures.save(draw(runs), folder / "results" / f"{options.benchmark}.png")


def _finetuned(options, regime: str, seed: int, heads: str) -> Run:
    if heads == "zero_shot":
        return protocol.finetuned(options, regime, seed)
    run = protocol.finetuned(options, regime, seed, label=heads, heads=heads)
    return protocol.analysed(run, "task_addition", label="fine", **{"evaluate.scaling_coefs": FINE})


def _accuracies(runs: Runs, where: str) -> report.Table:
    rows = []
    for (heads, regime), group in runs.items():
        cells = [summary.percents(summary.mean(run, *where) for run in group) for where in COLUMNS.values()]
        coefs = [summary.mean(run, "task_addition", "scaling_coef") for run in group]
        rows.append((heads.replace("_", " "), regime, str(len(group)), *cells, report.spread(coefs, 3)))
    notes = (
        "± is the deviation over seeds; pre-trained: the frozen head on the model before fine-tuning; norm.: merged / "
        "single-task accuracy of the same regime and heads; coef.: α, tuned on validation.",
    )
    title = f"Test accuracy on {where} by kind of head, mean over tasks, in %"
    return report.Table(title, ("heads", "regime", "seeds", *COLUMNS, "coef."), tuple(rows), notes)


def _probes(run: Run) -> report.Table:
    """The fitted heads: the same ones in every run of a benchmark."""
    (table,) = report.heads.tables(run.records)
    test = {r["task"]: r["top1"] for r in results.find(run.records, stage="zero_shot", split="test")}
    rows = tuple((*row, report.percent(test[row[0]])) for row in table.rows)
    return table._replace(columns=(*table.columns, "test top1"), rows=rows, notes=table.notes[:1])


def draw(runs: Runs) -> Figure:
    """Under each kind of head the merged model between the pre-trained one, a line, and the single-task ones."""
    regimes = list(dict.fromkeys(regime for _, regime in runs))
    figure = Figure(figsize=(9, 3.2))
    titles = {"zero_shot": "heads from class names", "linear_probe": "heads fitted to the pre-trained features"}
    for axes, (heads, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        before = 100 * summary.mean(runs[heads, regimes[0]][0], *COLUMNS["pre-trained"])
        axes.axhline(before, label="pre-trained model", **figures.BASELINE)
        axes.annotate(f"{before:.1f}", (0, before), xytext=(2, 2), xycoords=BESIDE, textcoords=POINTS, color=GREY)
        for place, regime in enumerate(regimes):
            own, group = figures.color(regime), runs[heads, regime]
            found = {column: [100 * summary.mean(run, *COLUMNS[column]) for run in group] for column in MARKS}
            highest = max(found, key=lambda column: statistics.fmean(found[column]))
            for column, values in found.items():
                point = place, statistics.fmean(values)
                deviation = statistics.stdev(values) if len(values) > 1 else None
                look = {"fmt": MARKS[column], "markerfacecolor": own if column == "merged" else "none"}
                axes.errorbar(*point, yerr=deviation, color=own, elinewidth=1.0, markersize=6, **look)
                # The higher number above its mark, the lower below: two that are close leave each other alone.
                above = {"xytext": (0, 6), "va": "bottom"} if column == highest else {"xytext": (0, -6), "va": "top"}
                axes.annotate(f"{point[1]:.1f}", point, textcoords=POINTS, ha="center", fontsize=8, bbox=WHITE, **above)
        figures.categories(axes, [regime.replace("_", "\n") for regime in regimes], slant=False)
        axes.set_title(title)
        axes.margins(y=0.12)
    for column, mark in MARKS.items():
        face = GREY if column == "merged" else "none"
        label = "one merged model" if column == "merged" else "single-task models"
        axes.plot([], [], mark, color=GREY, markerfacecolor=face, label=label)
    figure.axes[0].set(ylabel="mean test accuracy, %")
    figures.legend(figure, figures.over_seeds("whiskers", len(next(iter(runs.values())))))
    return figure


if __name__ == "__main__":
    main()

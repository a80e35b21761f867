"""Closed vocabulary: task addition under heads fitted to the pre-trained features, beside heads from class names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import figures, protocol, summary
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

Runs = dict[tuple[str, str], list[Run]]


def main() -> None:
    options = protocol.arguments(__doc__).parse_args()
    runs = {
        (heads, regime): [_finetuned(options, regime, seed, heads) for seed in options.seeds]
        for heads in HEADS
        for regime in options.regimes
    }
    fitted = [run for (heads, _), group in runs.items() if heads == "linear_probe" for run in group]
    tables = [_accuracies(runs, protocol.tasks_in_words(options)), _probes(fitted[0])]
    tables[0] = tables[0]._replace(notes=(*tables[0].notes, f"With linear-probe heads: {summary.took(fitted)}"))
    kept = [r for run in fitted for r in summary.kept(run, "head", "zero_shot", "single_task", "task_addition")]
    summary.write(HERE, options.benchmark, tables, kept)
    figures.save(draw(runs), HERE / "results" / f"{options.benchmark}.png")


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
    """Merged and normalised accuracy of each regime under both kinds of head."""
    figure = Figure(figsize=(9, 3))
    regimes = list(dict.fromkeys(regime for _, regime in runs))
    names = {"zero_shot": "heads from class names", "linear_probe": "linear-probe heads"}
    for axes, title in zip(figure.subplots(1, 2), ("merged", "norm."), strict=True):
        series = {
            name: np.array([[summary.mean(run, *COLUMNS[title]) for run in runs[heads, r]] for r in regimes]).T * 100
            for heads, name in names.items()
        }
        figures.bars(axes, [regime.replace("_", "\n") for regime in regimes], series)
        axes.set(ylabel={"merged": "merged test accuracy, %", "norm.": "normalised test accuracy, %"}[title])
        axes.legend(fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


if __name__ == "__main__":
    main()

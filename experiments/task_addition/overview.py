"""The figure of the README, from the results that `run.py` kept: `python -m experiments.task_addition.overview`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import figures
from tajax import results
from tajax.results import Record

RESULTS = Path(__file__).resolve().parent / "results"
LABELS = {  # regime: what is written beside its curve, and how far above the curve's end
    "linear": ("tangent space", 1.5),
    "linear_attention": ("tangent space of attention", 0.5),
    "attention": ("attention only", 2.0),
    "standard": ("all parameters", -1.5),
}


def main() -> None:
    figures.save(draw(results.read(RESULTS / "bundled.jsonl")), RESULTS / "overview.png")


def draw(records: Sequence[Record]) -> Figure:
    """Accuracy of the merged model against α, mean over tasks, in %: a curve a regime, labelled where it ends."""
    figure = Figure(figsize=(6.4, 3.1))
    axes = figure.subplots()
    coefs = results.find(records, stage="sweep")[0]["scaling_coef"]
    figures.curves(axes, coefs, {regime: _of_seeds(records, regime) for regime in LABELS})
    for regime, (text, above) in LABELS.items():
        end = np.mean(_of_seeds(records, regime), axis=0)[-1]
        axes.text(1.02, end + above, text, color=figures.color(regime), va="center", fontsize=8.5)
    start = np.mean([record["top1"] for record in results.find(records, stage="zero_shot", split="val")]) * 100
    axes.hlines(start, 0, 1, color=figures.color("zero-shot"), linewidth=0.9, linestyle=(0, (4, 3)))
    axes.text(0.72, start - 1.8, "pre-trained model", color=figures.color("zero-shot"), fontsize=8)
    axes.set(xlim=(0, 1.42), xticks=np.linspace(0, 1, 6), xlabel="scaling coefficient α in θ₀ + α Σ τ")
    axes.set(ylabel="merged model's accuracy\non eight tasks, %")
    return figure


def _of_seeds(records: Sequence[Record], regime: str) -> list[list[float]]:
    """For each seed the mean over tasks, in percent, at each coefficient, on validation."""
    curves: Mapping[object, list[list[float]]] = {}
    for record in results.find(records, stage="sweep", split="val", regime=regime):
        curves.setdefault(record["seed"], []).append(record["top1"])
    return [(100 * np.mean(tasks, axis=0)).tolist() for tasks in curves.values()]


if __name__ == "__main__":
    main()

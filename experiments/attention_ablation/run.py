"""Which parameters to fine-tune: projections of the attention, MLP, norms, biases, halves of the layers, everything."""

from __future__ import annotations

import argparse
import functools
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments import cost, destination, figures, protocol, published, summary
from experiments.benchmarks import steps
from experiments.protocol import Run
from tajax import encoders, report, results
from tajax.report import Table
from tajax.results import Record

HERE = Path(__file__).resolve().parent

CHOICES = {  # name in the table: rule of `tajax.RULES`, and which half of the layers
    "all": ("all", None),
    "attention": ("attention", None),
    "attention with biases": ("attention_with_bias", None),
    "query": ("attention_query", None),
    "key": ("attention_key", None),
    "value": ("attention_value", None),
    "out": ("attention_out", None),
    "query, value": ("attention_query_value", None),
    "query, key, value": ("attention_query_key_value", None),
    "MLP": ("mlp", None),
    "all linear layers": ("linear_layers", None),
    "layer norms": ("layer_norms", None),
    "biases": ("biases", None),
    "attention, first half": ("attention", 0),
    "attention, last half": ("attention", 1),
}
SHARED = {"all": "standard", "attention": "attention", "attention_with_bias": "attention_with_bias"}
"""Rules that are regimes of their own: their runs are everybody's."""
DRAWN_AS = {"all": "standard", "attention": "attention", "attention with biases": "attention_with_bias", "MLP": "mlp"}
"""Choices that other figures show, and the name of their colour there."""

MAP = {"disentanglement.coefs": (-1.0, -0.5, 0.0, 0.5, 1.0), "disentanglement.images": 128}
"""A coarse grid on the square that the mean is taken over."""

COSTS = {"flops": "operations", "memory": "memory", "seconds": "time"}

PUBLISHED = (
    published.Row("attention", "OR, LoRA", ("74.0", "76.3", "87.1")),
    published.Row("all linear layers", "OR, LoRA", ("73.0", "75.2", "85.4")),
    published.Row("query, key, value", "OR, LoRA", ("70.1", "74.7", "85.0")),
    published.Row("MLP", "OR, LoRA", ("69.2", "71.2", "82.0")),
)
"""Absolute accuracy of addition with low-rank updates of these matrices: OrthoReg, arXiv 2604.17078."""


def main() -> None:
    parser = protocol.arguments(__doc__, regimes=())
    parser.add_argument(
        "--choices", nargs="+", choices=tuple(CHOICES), default=tuple(CHOICES), metavar="CHOICE", help="what is trained"
    )
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each choice; 0 only compiles")
    options = parser.parse_args()
    folder = destination.chosen(options, HERE)
    depth = _depth(options)
    halves = {None: None, 0: (0, depth // 2), 1: (depth // 2, depth)}
    chosen = {name: {"trainable": rule, "layers": halves[half]} for name, (rule, half) in CHOICES.items()}
    runs = {name: [_finetuned(options, name, seed, chosen[name]) for seed in options.seeds] for name in options.choices}
    analysed = functools.partial(protocol.analysed, name="disentanglement", label="coarse", **MAP)
    maps = {name: [analysed(run) for run in group] for name, group in runs.items()}
    configs = {"all": protocol.make_config(options, "standard", options.seeds[0])}  # what costs are relative to
    configs |= {name: group[0].config for name, group in runs.items()}
    records = cost.measure(cost.MODELS[options.benchmark], configs, repeats=options.repeats)
    records += [_measured(name, *pair) for name in runs for pair in zip(runs[name], maps[name], strict=True)]
    *shown, last = tables(records, f"{len(runs[options.choices[0]][0].config.tasks)} {options.benchmark} tasks")
    every = [run for group in (*runs.values(), *maps.values()) for run in group]
    last = last._replace(notes=(*last.notes, summary.took(every)))
    summary.write(folder, options.benchmark, [*shown, last], records)
    figures.save(draw(records), folder / "results" / f"{options.benchmark}.png")
    kept = {model: results.read(folder / "results" / f"{model}.jsonl") for model in published.MODELS}
    ours = {
        (model, r.regime): _percents(found, r.regime, "merged")
        for model, records in kept.items()
        for r in PUBLISHED
        if (found := results.find(records, stage="ablation", name=r.regime))
    }
    beside = published.beside_ours("Real CLIP, absolute accuracy of addition in %", PUBLISHED, ours)
    summary.fill(folder / "README.md", "published", report.markdown([beside]).replace("## ", "### "))


def _depth(options: argparse.Namespace) -> int:
    """Layers of the encoder of a benchmark."""
    if options.benchmark == "text":
        config = protocol.make_config(options, "standard", 0)
        text = encoders.load(config.model, family=config.family)
        return len(text.params[text.stacked]["ln_1"]["scale"])
    model = cost.MODELS[options.benchmark]
    vision = steps.GEOMETRIES[model] if model in steps.GEOMETRIES else steps.load_clip(model).config.vision
    return vision.num_hidden_layers


def _finetuned(options: argparse.Namespace, name: str, seed: int, fields: dict[str, object]) -> Run:
    heads = (
        {"heads": "linear_probe"} if options.benchmark == "real" else {}
    )  # the bundled model cannot name real images
    if not heads and fields["layers"] is None and fields["trainable"] in SHARED:
        return protocol.finetuned_on_few(options, SHARED[fields["trainable"]], seed)
    label = re.sub(r"\W+", "_", name.lower())
    return protocol.finetuned_on_few(options, "standard", seed, label=label, **fields, **heads)


def _measured(name: str, run: Run, maps: Run) -> Record:
    """What came of one choice and seed, with the values of each task and the map of each pair in one number."""

    def per_task(stage: str, metric: str = "top1") -> dict[str, float]:
        found = results.find(run.records, stage=stage, split="test")
        return {str(r["task"]): r[metric] for r in found if r[metric] is not None}

    def pairs(distance: str, key: str = "summary") -> dict[str, float]:
        found = results.find(maps.records, stage="disentanglement", distance=distance)
        return {" and ".join(r["tasks"]): r[key] for r in found if r[key] is not None}

    origin = results.find(run.records, stage="run")[0]
    kept = {
        key: origin[key]
        for key in ("seed", "config_hash", "trained_parameters", "versions", "git_revision")
        if key in origin
    }
    return {"stage": "ablation", "name": name, **kept} | {
        "scaling_coef": summary.mean(run, "task_addition", "scaling_coef"),
        "single": per_task("single_task"),
        "merged": per_task("task_addition"),
        "normalized": per_task("task_addition", "normalized_top1"),
        "heads": pairs("prediction"),
        "heads_relative": pairs("prediction", "relative"),
        "features": pairs("symmetric_kl"),
        "features_relative": pairs("symmetric_kl", "relative"),
    }


def _means(found: Sequence[Record], name: str, key: str) -> list[float]:
    """Of each seed the mean over tasks, or over pairs of tasks; NaN if there are none."""
    values = [list(record[key].values()) for record in results.find(found, name=name)]
    return [statistics.fmean(of_seed) if of_seed else math.nan for of_seed in values]


def _percents(found: Sequence[Record], name: str, key: str) -> str:
    return summary.percents(_means(found, name, key))


def tables(records: Sequence[Record], where: str) -> list[Table]:
    """A line for each choice: its size and accuracy; then its disentanglement and cost."""
    costs = {str(r["name"]): r for r in results.find(records, stage="cost")}
    found = results.find(records, stage="ablation")
    accuracy, rest = [], []
    for name in dict.fromkeys(str(r["name"]) for r in found):
        measured = [_percents(found, name, key) for key in ("single", "merged", "normalized")]
        coefs = [float(r["scaling_coef"]) for r in results.find(found, name=name)]
        accuracy.append((name, f"{costs[name]['trained']:,}", *measured, report.spread(coefs, 2)))
        heads = _percents(found, name, "heads"), report.spread(_means(found, name, "heads_relative"), 2)
        features = report.spread(_means(found, name, "features"), 3)
        features = features, report.spread(_means(found, name, "features_relative"), 2)
        rest.append((name, *heads, *features, *(cost.percent(costs[name], key) for key in COSTS)))
    seeds = f"± is the deviation over {len({r['seed'] for r in found})} seeds."
    return [
        Table(
            f"What is trained, and how it adds: {where}, test accuracy in %",
            ("trained", "parameters", "single", "merged", "norm.", "coef."),
            tuple(accuracy),
            (f"Mean over tasks; norm.: merged / single; coef.: α, tuned on validation. {seeds}",),
        ),
        Table(
            f"Disentanglement and cost of what is trained: {where}",
            ("trained", "ξ heads", "relative heads", "ξ features", "relative features", *COSTS.values()),
            tuple(rest),
            (
                "ξ: disentanglement error, half of ξ(α₁, α₂) in the mean over pairs of tasks and a 5×5 grid on "
                "[−1, 1]²: of predictions through the heads in %, of features as symmetric KL in nats; less is better. "
                "Relative: how far the other vector moves a task's outputs, by how far its own does.",
                "Operations, memory and time of a training step in % of that of all parameters.",
            ),
        ),
    ]


def draw(records: Sequence[Record]) -> Figure:
    """Merged and normalised accuracy of each choice; choices from the most trained parameters to the fewest."""
    sizes = {str(r["name"]): int(r["trained"]) for r in results.find(records, stage="cost")}
    found = results.find(records, stage="ablation")
    names = sorted(dict.fromkeys(str(r["name"]) for r in found), key=lambda name: sizes[name])
    figure = Figure(figsize=(9, 1.1 + 0.21 * len(names)))
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"merged": "merged test accuracy, %", "normalized": "normalised test accuracy, %"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        for place, name in enumerate(names):
            values = [100 * value for value in _means(found, name, key)]
            deviation = statistics.stdev(values) if values[1:] else None
            own = figures.COLORS.get(DRAWN_AS.get(name, ""), figures.NEUTRAL)
            point = statistics.fmean(values), place
            axes.errorbar(*point, xerr=deviation, fmt="o", markersize=5, color=own, elinewidth=1.2)
            if name == "all":
                axes.axvline(point[0], label="all parameters trained, as in the standard regime", **figures.BASELINE)
        axes.set(xlabel=title, ylim=(-0.6, len(names) - 0.4))
    panels[0].set_yticks(range(len(names)), [f"{name}  {_short(sizes[name])}" for name in names])
    seeds = len({r["seed"] for r in found})
    figures.legend(
        figure,
        f"right of each name: trained parameters; {figures.over_seeds('whiskers', seeds)}; in colour: choices that "
        "other figures show, too",
    )
    return figure


def _short(count: int) -> str:
    """A number of parameters with two figures: 1.8 M, 590 k, 3.8 k."""
    value, unit = (count / 1e6, "M") if count >= 1e6 else (count / 1e3, "k")
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


if __name__ == "__main__":
    main()

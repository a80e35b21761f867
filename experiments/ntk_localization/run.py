"""Do the leading eigenfunctions of the NTK live on a task's images? Pre-trained and random, all weights and some."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import destination, figures, protocol, summary
from experiments.protocol import Run
from tajax import report, results
from tajax.config.fields import INITIALIZATIONS, KERNEL_OUTPUTS
from tajax.results import Record

HERE = Path(__file__).resolve().parent
REGIMES = ("standard", "attention")
BLOCKS = {"text": 16, "b32": 16, "b16": 16, "l14": 4}  # images or texts; of the bundled model all at once
MEASURES = (  # title, reading, kernel, and key of the record
    ("share", "nystrom", "plain", "share"),
    ("reverse", "nystrom", "plain", "reverse_share"),
    ("cosine share", "nystrom", "cosine", "share"),
    ("cosine reverse", "nystrom", "cosine", "reverse_share"),
    ("separation", "nystrom", "plain", "separation"),
    ("in sample", "nystrom", "plain", "share_in_sample"),
    ("mixture excess", "mixture", "plain", "excess"),
    ("cosine excess", "mixture", "cosine", "excess"),
)
Setting = tuple[str, str]


def main() -> None:
    parser = protocol.arguments(__doc__, regimes=REGIMES)
    parser.add_argument("--images", type=int, default=64, help="images, or texts, of each task, and of the control")
    parser.add_argument("--eigenfunctions", type=int, default=16, help="leading ones")
    parser.add_argument("--output", choices=KERNEL_OUTPUTS, default="trace", help="what is kept of the outputs")
    parser.add_argument("--directions", type=int, default=8, help="of the features, at random; 0: all, exactly")
    options = parser.parse_args()
    folder = destination.chosen(options, HERE)
    runs = {
        (start, regime): [_run(options, start, regime, seed) for seed in options.seeds]
        for start in INITIALIZATIONS
        for regime in options.regimes
    }
    every = [run for group in runs.values() for run in group]
    tables = [_settings(options, runs, every), _tasks(options, runs)]
    summary.write(
        folder, options.benchmark, tables, [record for run in every for record in _kept(run, options.seeds[0])]
    )
    figures.save(draw(runs, protocol.examples(options.benchmark)), folder / "results" / f"{options.benchmark}.png")


def _run(options, start: str, regime: str, seed: int) -> Run:
    fields = {
        "initialization": start,
        "ntk.images": options.images,
        "ntk.eigenfunctions": options.eigenfunctions,
        "ntk.output": options.output,
        "ntk.directions": options.directions or None,
        "ntk.batch_size": BLOCKS.get(options.benchmark, 2 * options.images),
    }
    return protocol.untrained(options, "ntk", regime, seed, label=start, **fields)


def _settings(options, runs: dict[Setting, list[Run]], every: Sequence[Run]) -> report.Table:
    """A row for each initialisation and mask: means over tasks, deviations over seeds."""
    rows = []
    for setting, group in runs.items():
        numbers = [[_mean(run, *key) for run in group] for _, *key in MEASURES]
        cells = ["–" if None in column else report.spread(column, 2) for column in numbers]
        rows.append((", ".join(setting), str(len(group)), *cells))
    of = f"{options.directions} random directions of the features" if options.directions else "all features"
    notes = (
        "share: local energy on new images of the task / (that + on the control), ½ if none; reverse: task and control "
        "exchanged; separation: how often a new image has more than a control image. Nyström reading.",
        "in sample: the share with the images that the eigenfunctions were found on, where the energy is one each for "
        "any kernel.",
        "mixture: (2p − 1)² of the parts p of eigenfunctions on the task's side, beyond chance; at most 1.",
        f"Kernel: {options.output}, {of}; {options.images} images a side; {options.eigenfunctions} eigenfunctions; "
        "cosine: without the gradient norms of images. ± is the deviation over seeds: other images and directions, "
        "and for random another network.",
        summary.took(every),
    )
    columns = ("model, weights", "seeds", *(title for title, *_ in MEASURES))
    return report.Table(
        f"Localisation on {protocol.tasks_in_words(options)}, mean over tasks", columns, tuple(rows), notes
    )


def _tasks(options, runs: dict[Setting, list[Run]]) -> report.Table:
    """The share of each task."""
    names = list(dict.fromkeys(record["task"] for record in _records(next(iter(runs.values()))[0], "nystrom", "plain")))
    columns = {", ".join(setting): [_of_tasks(run) for run in group] for setting, group in runs.items()}
    rows = [(name, *(report.spread([s[name] for s in group], 2) for group in columns.values())) for name in names]
    title = f"Share of the local energy on each task of {protocol.tasks_in_words(options)}"
    return report.Table(title, ("task", *columns), tuple(rows), ("Nyström reading, new images, plain kernel.",))


def draw(runs: dict[Setting, list[Run]], examples: str) -> Figure:
    """Spectra, shares against the number of eigenfunctions, and local energies of images or texts for two models."""
    figure = Figure(figsize=(9, 6))
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    spectrum, share = above.subplots(1, 2)
    names = {f"{start}, {regime} weights": (start, regime) for start, regime in runs}
    spectra = {name: [_over_tasks(run, "eigenvalues", np.max) for run in runs[s]] for name, s in names.items()}
    shares = {name: [_over_tasks(run, "shares") for run in runs[s]] for name, s in names.items()}
    look = {
        "colors": {name: figures.color(regime) for name, (_, regime) in names.items()},
        "styles": {name: (0, (3, 2)) for name, (start, _) in names.items() if start == "random"},
    }
    figures.curves(spectrum, _counts(spectra), spectra, **look)
    spectrum.set(yscale="log", xlabel=r"eigenfunction $\rho$", ylabel=r"$\lambda_\rho / \lambda_1$, mean over tasks")
    counts = _counts(shares)
    figures.curves(share, counts, shares, **look)
    # Dotted, because dashes are of random models here.
    share.axhline(0.5, label="as much on the control", **figures.BASELINE | {"linestyle": ":"})
    share.set(ylim=(0, 1), xlabel="leading eigenfunctions", ylabel=f"share on new task {examples}")
    for axes, points in ((spectrum, _counts(spectra)), (share, counts)):
        axes.set_xticks(points if len(points) <= 8 else [1, *points[3::4]])
    figures.legend(above, figures.over_seeds("bands", max(map(len, runs.values()))), columns=3)
    regime = list(runs)[-1][1]
    panels = below.subplots(1, len(INITIALIZATIONS), sharex=True, sharey=True)
    ends = []
    for panel, start in zip(panels, INITIALIZATIONS, strict=True):
        ends += _histogram(panel, runs[start, regime][0], examples, figures.color(regime))
        panel.set_title(f"{start}, {regime} weights, all tasks, first seed")
    panels[0].set_xlim(min(ends), max(ends))
    panels[0].set_ylabel(f"part of the {examples}")
    figures.legend(below)
    return figure


def _histogram(axes: Axes, run: Run, examples: str, color: str) -> tuple[float, float]:
    """Local energies of single images or texts, for each task in units of its mean on both sides.

    Returns:
        Where the bins begin and end that something is in.
    """
    own = f"new {examples} of the task"
    control = f"{examples} of the control"
    sides: dict[str, list[float]] = {own: [], control: []}
    for record in _records(run, "nystrom", "plain"):
        new, other = record["energy_new"], record["energy_new_control"]
        unit = (statistics.fmean(new) + statistics.fmean(other)) / 2
        sides[own] += [value / unit for value in new]
        sides[control] += [value / unit for value in other]
    bins = np.geomspace(1e-2, 1e1, 31)
    for shade, (name, values) in zip((color, figures.NEUTRAL), sides.items(), strict=True):
        weights = np.full(len(values), 1 / len(values))
        clipped = np.clip(values, bins[0], bins[-1])
        axes.hist(clipped, bins, weights=weights, alpha=0.6, label=name, color=shade)
    axes.set_xscale("log")
    ticks = 0.01, 0.03, 0.1, 0.3, 1, 3, 10  # less than a decade may be seen
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="local energy, in units of the mean of both sides")
    filled = np.flatnonzero(np.histogram(np.clip(np.concatenate(list(sides.values())), bins[0], bins[-1]), bins)[0])
    return bins[filled[0]], bins[filled[-1] + 1]


def _records(run: Run, reading: str, kernel: str) -> list[Record]:
    return results.find(run.records, stage="ntk", reading=reading, kernel=kernel)


def _mean(run: Run, reading: str, kernel: str, key: str) -> float | None:
    found = [record[key] for record in _records(run, reading, kernel)]
    return statistics.fmean(found) if found else None  # the kernel of matrices is plain alone


def _of_tasks(run: Run) -> dict[str, float]:
    return {record["task"]: record["share"] for record in _records(run, "nystrom", "plain")}


def _over_tasks(run: Run, key: str, unit=lambda values: 1.0) -> list[float]:
    lists = [record[key] for record in _records(run, "nystrom", "plain")]
    length = min(map(len, lists))
    return np.mean([np.array(values[:length]) / unit(values) for values in lists], axis=0).tolist()


def _counts(series: dict[str, list[list[float]]]) -> list[int]:
    """1 … R, after every line is cut to the shortest."""
    length = min(len(values) for group in series.values() for values in group)
    for name, group in series.items():
        series[name] = [values[:length] for values in group]
    return list(range(1, length + 1))


def _kept(run: Run, seed: int) -> list[Record]:
    """Everything but the energies of single images, which are kept for the histograms alone."""
    records = summary.kept(run, "ntk")
    shown = {id(r) for r in _records(run, "nystrom", "plain") if r["seed"] == seed}
    return [
        {k: v for k, v in record.items() if id(record) in shown or not k.startswith("energy_")} for record in records
    ]


if __name__ == "__main__":
    main()

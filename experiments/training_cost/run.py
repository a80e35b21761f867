"""What a training step of each regime costs next to ordinary fine-tuning: operations, memory and time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments import cost, destination, figures, protocol, summary
from tajax import report, results
from tajax.report import Table
from tajax.results import Record

HERE = Path(__file__).resolve().parent

PUBLISHED = {"standard": ("100", "100"), "attention": ("80", "86"), "linear": ("178", "160")}
"""Time and memory of fine-tuning ViT-L/14 on Cars on one GPU, in % of the standard regime's 158 minutes and 42.6 GB:
OrthoReg, arXiv 2604.17078."""

SHOWN = {"flops": "operations", "temporary": "temporary memory", "memory": "all memory", "seconds": "time"}


def main() -> None:
    parser = protocol.arguments(__doc__, regimes=tuple(r for r in protocol.PAPERS if r != "posthoc"))  # as standard
    parser.add_argument("--batch-size", type=int, help=f"images, or texts, a step; default: {cost.BATCH_SIZES}")
    parser.add_argument("--repeats", type=int, default=9, help="rounds that are timed; 0 only compiles")
    options = parser.parse_args()
    if options.benchmark == "real":
        print("The real images are for the bundled model: its costs are those of --benchmark=bundled.")
        return
    folder = destination.chosen(options, HERE, also=["cost.png"])
    names = dict.fromkeys(("standard", *options.regimes))  # what the others are relative to comes first
    configs = {regime: protocol.make_config(options, regime, options.seeds[0]) for regime in names}
    model = cost.MODELS[options.benchmark]
    records = cost.measure(model, configs, batch_size=options.batch_size, repeats=options.repeats)
    summary.write(folder, options.benchmark, [table(records)], records)
    files = {name: Path("results") / f"{name}.jsonl" for name in protocol.BENCHMARKS}
    kept = {name: results.read(folder / file) or results.read(HERE / file) for name, file in files.items()}
    kept = {name: found for name, found in kept.items() if found}
    summary.fill(folder / "README.md", "published", report.markdown([beside(kept)]).replace("## ", "### "))
    figures.save(draw(kept), folder / "results" / "cost.png")


def table(records: Sequence[Record]) -> Table:
    """What each regime costs, absolutely and in percent of the first."""
    first = records[0]
    rows = [
        (
            str(r["name"]),
            f"{r['trained']:,}",
            f"{float(r['flops']) / 1e9:,.1f}",
            f"{int(r['memory']) / 1e6:,.0f}",
            "–" if r["seconds"] is None else f"{r['seconds']:.3g}",
            *(cost.percent(r, key) for key in SHOWN),
        )
        for r in records
    ]
    titles = ("regime", "trained", "GFLOP", "MB", "s", *(f"{what} %" for what in SHOWN.values()))
    where = f"{first['cpu_count']} cores, {first['device_kind']}, JAX {first['versions']['jax']}"
    notes = (
        "% of the standard regime's. Operations and memory as compiled, with all layers unrolled; all memory counts "
        "parameters, θ₀, moments and images, temporary memory activations and gradients.",
        f"s: median of {first['rounds']} steps, in turn with the others'; {where}." if first["rounds"] else where,
    )
    return Table(f"A step of {batch_in_words(first)}, {first['model']}", titles, tuple(rows), notes)


def batch_in_words(record: Record) -> str:
    """What a step is of: "32 images", or "32 texts of 24 tokens"."""
    texts = f"texts of {record['tokens']} tokens" if "tokens" in record else "images"
    return f"{record['batch_size']} {texts}"


def beside(kept: dict[str, list[Record]]) -> Table:
    """The published cost, and ours of every model that was measured."""
    keys = {"seconds": "time", "memory": "memory"}
    rows = []
    for regime, (time, memory) in PUBLISHED.items():
        found = [results.find(records, name=regime) for records in kept.values()]
        ours = (cost.percent(records[0], key) if records else "" for records in found for key in keys)
        rows.append((regime, "OR", time, memory, *ours))
    columns = (f"ours {name} {what} %" for name in kept for what in keys.values())
    titles = ("regime", "source", "L/14 time %", "L/14 memory %", *columns)
    notes = ("OR: whole runs on Cars, one GPU; 100 is 158 minutes and 42.6 GB. Ours: one step, as below.",)
    return Table("Cost in % of ordinary fine-tuning", titles, tuple(rows), notes)


def draw(kept: dict[str, list[Record]]) -> Figure:
    """For each model, what each regime costs in percent of the standard one."""
    figure = Figure(figsize=(max(4.5, 3 * len(kept)), 3.2))
    panels = figure.subplots(1, len(kept), sharey=True, squeeze=False)[0]
    for axes, records in zip(panels, kept.values(), strict=True):
        shown = [key for key in SHOWN if records[0][key] is not None]
        series = {str(r["name"]): [[100 * float(r[f"relative_{key}"]) for key in shown]] for r in records}
        figures.bars(axes, [SHOWN[key].replace(" ", "\n") for key in shown], series)
        axes.tick_params(axis="x", labelsize=7)
        axes.axhline(100, label="standard, what the others are compared with", **figures.BASELINE | {"zorder": 3})
        axes.set(title=f"{records[0]['model']}, {batch_in_words(records[0])}".replace(", ", ",\n"))
    panels[0].set_ylabel("% of standard")
    figures.legend(figure, "of one training step; no time where it was only compiled", columns=4)
    return figure


if __name__ == "__main__":
    main()

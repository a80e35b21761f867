"""Draws the figures anew from the committed records: `python -m experiments.redraw`. Nothing is run.

For a change of style, which is to reach every figure, and for whoever wants the figures elsewhere (`--out`).
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import figures, protocol
from experiments.benchmarks import growth_figure
from experiments.protocol import Run
from tajax import results
from tajax.config.fields import INITIALIZATIONS
from tajax.results import Record

HERE = Path(__file__).resolve().parent
Key = TypeVar("Key")
UNNAMED_STEPS = (0, 300, 1500, 3000)
"""The stages of `pretraining` in the order of its first records, which do not name them; later ones do."""


def runs(records: Iterable[Record]) -> list[Run]:
    """The runs whose records a results file keeps, in its order; without their configs, which it does not keep."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(str(record["config_hash"]), []).append(record)
    return [Run(ConfigDict(), Path(made_by), of_run) for made_by, of_run in found.items()]


def grouped(members: Iterable[Run], key: Callable[[Record], Key]) -> dict[Key, list[Run]]:
    """Runs by what the first of their records says; a run a seed."""
    groups: dict[Key, list[Run]] = {}
    for run in members:
        groups.setdefault(key(run.records[0]), []).append(run)
    return groups


def by_regime(records: Iterable[Record]) -> dict[str, list[Run]]:
    """The runs of each regime."""
    return grouped(runs(records), lambda record: str(record["regime"]))


def _of_records(module: ModuleType, records: list[Record], benchmark: str) -> Mapping[str, Figure]:
    return {"": module.draw(records)}


def _of_regimes(module: ModuleType, records: list[Record], benchmark: str) -> Mapping[str, Figure]:
    return {"": module.draw(by_regime(records))}


def _single_task(module: ModuleType, records: list[Record], benchmark: str) -> Mapping[str, Figure]:
    tasks = dict.fromkeys(str(r["task"]) for r in results.find(records, stage="single_task"))
    return {"": module.draw(by_regime(records), list(tasks))}


def _closed_vocabulary(module: ModuleType, records: list[Record], benchmark: str) -> Mapping[str, Figure]:
    """Heads from class names are those of task addition, whose file has their records."""
    fitted = by_regime(records)
    named = by_regime(results.read(HERE / "task_addition" / "results" / f"{benchmark}.jsonl"))
    both = {"zero_shot": named, "linear_probe": fitted}

    def of_seeds(of_regime: list[Run], as_in: list[Run]) -> list[Run]:
        seeds = {run.records[0]["seed"] for run in as_in}
        return [run for run in of_regime if run.records[0]["seed"] in seeds]

    return {"": module.draw({(h, r): of_seeds(both[h][r], fitted[r]) for h in module.HEADS for r in fitted})}


def _ntk_localization(module: ModuleType, records: list[Record], benchmark: str) -> Mapping[str, Figure]:
    starts = {r["config_hash"]: r["initialization"] for r in results.find(records, stage="ntk")}
    settings = grouped(runs(records), lambda record: (starts[record["config_hash"]], str(record["regime"])))
    ordered = {setting: settings[setting] for start in INITIALIZATIONS for setting in settings if setting[0] == start}
    return {"": module.draw(ordered, protocol.examples(benchmark))}


def _disentanglement_maps(module: ModuleType, records: list[Record], benchmark: str) -> Mapping[str, Figure]:
    """Records of the fine maps have their grid, and stand among those of the run of all pairs only by their hash."""
    fine = {r["config_hash"] for r in results.find(records, stage="disentanglement") if "coefs" in r}
    pairs = by_regime(r for r in records if r["config_hash"] not in fine)
    drawn = {"_pairs": module.draw_pairs(pairs)}
    maps = by_regime(r for r in records if r["config_hash"] in fine)
    return drawn | ({"_maps": module.draw_maps({regime: group[0] for regime, group in maps.items()})} if maps else {})


def _merging_methods(module: ModuleType, records: list[Record], benchmark: str) -> Mapping[str, Figure]:
    methods = {r["config_hash"]: str(r["method"]) for r in results.find(records, stage="task_addition")}
    found = grouped(runs(records), lambda record: (methods[record["config_hash"]], str(record["regime"])))
    return {"": module.draw(found, list(dict.fromkeys(regime for _, regime in found)))}


def _pretraining(module: ModuleType, records: list[Record], benchmark: str) -> Mapping[str, Figure]:
    mapped = {r["config_hash"] for r in results.find(records, stage="disentanglement")}
    halves: tuple[dict[tuple[str, int], list[Run]], ...] = ({}, {})
    for regime, of_regime in by_regime(records).items():
        for maps, half in enumerate(halves):
            members = [run for run in of_regime if (run.records[0]["config_hash"] in mapped) == bool(maps)]
            seeds = len({run.records[0]["seed"] for run in members})
            for place, run in enumerate(members):
                steps = run.records[0].get("pretraining_steps", UNNAMED_STEPS[place // seeds])
                half.setdefault((regime, int(steps)), []).append(run)
    return {"": module.draw(*halves)}


def _task_analogies(module: ModuleType, records: list[Record], benchmark: str) -> Mapping[str, Figure]:
    sources = {r["config_hash"]: str(r["task"]) for r in results.find(records, stage="task_analogy")}
    suffix = f"_second_{module.SUFFIXES[protocol.examples(benchmark)]}"

    def key(record: Record) -> tuple[str, str]:
        return sources[record["config_hash"]].removesuffix(suffix), str(record["regime"])

    return {"": module.draw(grouped(runs(records), key))}


DRAWINGS: Mapping[str, Callable[[ModuleType, list[Record], str], Mapping[str, Figure]]] = {
    "attention_ablation": _of_records,
    "closed_vocabulary": _closed_vocabulary,
    "disentanglement_maps": _disentanglement_maps,
    "geometry": _of_regimes,
    "kernel_behaviour": _of_regimes,
    "learning_rates": _of_records,
    "merging_methods": _merging_methods,
    "ntk_localization": _ntk_localization,
    "pretraining": _pretraining,
    "representation_vs_head": _of_regimes,
    "single_task": _single_task,
    "task_addition": _of_regimes,
    "task_analogies": _task_analogies,
    "task_negation": _of_regimes,
    "training_methods": _of_records,
}
"""How each experiment is drawn from its records, by what follows the benchmark in the names of the figures."""


def _growth() -> Mapping[str, Figure]:
    record = json.loads((HERE / "benchmarks" / "results" / "growth_tiny.json").read_text(encoding="utf-8"))
    return {"growth.png": growth_figure.draw(record["panels"], model=record["model"], images=record["images"])}


def _training_cost() -> Mapping[str, Figure]:
    found = {b: results.read(HERE / "training_cost" / "results" / f"{b}.jsonl") for b in protocol.BENCHMARKS}
    module = importlib.import_module("experiments.training_cost.run")
    return {"cost.png": module.draw({benchmark: records for benchmark, records in found.items() if records})}


OF_ALL: Mapping[str, Callable[[], Mapping[str, Figure]]] = {"benchmarks": _growth, "training_cost": _training_cost}
"""Those whose one figure shows several models."""


def draw(name: str, benchmark: str) -> Mapping[str, Figure]:
    """The figures of an experiment on a benchmark, by file name; none without records.

    Raises:
        KeyError: its records lack what the figure shows, as those of before that was kept.
    """
    records = results.read(HERE / name / "results" / f"{benchmark}.jsonl")
    if not records:
        return {}
    # Training methods are drawn as learning rates are, by the module they take everything from.
    module = importlib.import_module(f"experiments.{'learning_rates' if name == 'training_methods' else name}.run")
    return {f"{benchmark}{end}.png": figure for end, figure in DRAWINGS[name](module, records, benchmark).items()}


def main() -> None:
    known = sorted((*DRAWINGS, *OF_ALL))
    parser = argparse.ArgumentParser(prog="python -m experiments.redraw", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="EXPERIMENT", help="default: all")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write DIR/EXPERIMENT/FIGURE.png and change no figure")
    options = parser.parse_args()
    for name in options.only:
        drawn = dict(OF_ALL[name]()) if name in OF_ALL else {}
        for benchmark in protocol.BENCHMARKS if name in DRAWINGS else ():
            try:
                drawn |= draw(name, benchmark)
            except KeyError as missing:
                print(f"{name}, {benchmark}: the figure is left as it is, its records lack {missing}")
        folder = HERE / name / "results" if options.out is None else options.out / name
        for file, figure in drawn.items():
            if options.out or (folder / file).exists():  # which of them a README shows was decided by who ran it
                figures.save(figure, folder / file)


if __name__ == "__main__":
    main()

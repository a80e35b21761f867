"""Every benchmark, each in a process of its own, and the README's tables of what they measured."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import table

from experiments import destination

HERE = Path(__file__).resolve().parent
OF_EVERY_MODEL = ("sweep_linear", "disentanglement_map", "sweep_nonlinear")
OF_THE_LAST = ("train_step", "merge")
SHARED = ("images", "repeats", "data", "results")  # flags that are handed on to every script
DURATION = "about 45 minutes on 2 cores, with --toy four"
TOY = {"train_step": ["--batch-sizes", "4"], "growth": ["--models", "tiny"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny", "b32"], help="each as --model of the scripts")
    parser.add_argument("--task-vectors", help="a run of the first model whose task vectors to use")
    for flag in SHARED:
        parser.add_argument(f"--{flag}", help="as of the scripts" if flag != "results" else "leaves the README alone")
    parser.add_argument("--toy", action="store_true", help="tiny alone and few images, to see that everything runs")
    parser.add_argument("--yes", action="store_true", help="replace tables and records without a question")
    options = parser.parse_args()
    if options.results is None:
        print(f"This replaces the tables of README.md and results/*.json in {HERE}. It takes {DURATION}.")
        destination.confirm(options, elsewhere="--results=DIR")
    if options.toy:
        options.models, options.images, options.repeats = ["tiny"], 8, 1
    first, last = options.models[0], options.models[-1]
    for model in options.models:
        flags = [f"--model={model}"]
        if options.task_vectors and model == first:
            flags.append(f"--task-vectors={options.task_vectors}")
        for script in OF_EVERY_MODEL + (OF_THE_LAST if model == last else ()):
            start(script, options, flags)
    start("growth", options, [])
    records = table.read(Path(options.results or HERE / "results"))
    print(table.markdown(records))
    if options.results is None:
        table.write(records, HERE / "README.md")


def start(script: str, options: argparse.Namespace, flags: list[str]) -> None:
    """Runs a script with the shared flags and its own; stops everything if it fails."""
    shared = [f"--{flag}={value}" for flag in SHARED if (value := getattr(options, flag)) is not None]
    flags = [*flags, *shared, *(TOY.get(script, []) if options.toy else [])]
    print(f"\n== {script} {' '.join(flags)}", flush=True)
    subprocess.run([sys.executable, HERE / f"{script}.py", *flags], check=True)


if __name__ == "__main__":
    main()

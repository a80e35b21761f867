"""Every experiment on one benchmark, one after the other, and how long each took: `python -m experiments.everything`.

Flags that this program does not know, such as `--few` or `--runs DIR`, go to all of them. What would be replaced is
said, and asked, once, before the first one begins.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments import destination
from experiments.protocol import BENCHMARKS

HERE = Path(__file__).resolve().parent
FIRST = ("task_addition", "single_task")  # they make the task vectors that most others start from
APART = (
    "benchmarks",
    "precision",
    "pretraining_pilots",
    "pretraining",
    "scale",
)  # not of the papers; `pretraining` needs a pre-training's checkpoints, `scale` compilers for accelerators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=destination.Help)
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="bundled", help="model and tasks")
    parser.add_argument(
        "--pretraining", help="run of configs/pretrain.py with checkpoints; without it, one is left out"
    )
    parser.add_argument("--only", nargs="+", help="names of experiments; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="of fine-tuning")
    destination.add_flags(parser)
    options, rest = parser.parse_known_args()
    if options.pretraining and options.benchmark not in ("bundled", "real"):
        parser.error("--pretraining has stages of the bundled model: choose --benchmark=bundled or real")
    names = [path.parent.name for path in sorted(HERE.glob("*/run.py")) if path.parent.name not in (*FIRST, *APART)]
    names = [*FIRST, *names, *(["pretraining"] if options.pretraining else [])]
    if unknown := sorted(set(options.only or ()) - set(names)):
        parser.error(f"no experiment is called {', '.join(unknown)}; choose from {', '.join(names)}")
    chosen = options.only or names
    if options.out is None:
        _agree(options, chosen)
    took: dict[str, float] = {}
    for name in chosen:
        own = ["--pretraining", options.pretraining] if name == "pretraining" else []
        own += ["--yes"] if options.out is None else [f"--out={options.out / name}"]
        shared = [f"--benchmark={options.benchmark}", "--seeds", *map(str, options.seeds)]
        command = [sys.executable, "-m", f"experiments.{name}.run", *shared, *rest, *own]
        print(f"\n== {' '.join(command[1:])}", flush=True)
        started = time.monotonic()
        subprocess.run(command, check=True)
        took[name] = time.monotonic() - started
    print("\n" + "\n".join(f"{name:24} {seconds / 60:6.1f} min" for name, seconds in took.items()))
    print(f"{'together':24} {sum(took.values()) / 60:6.1f} min")


def _agree(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Says what all of them would replace and asks once, because hours later nobody is there."""
    shown = {name: destination.replaced(HERE / name, options.benchmark) for name in names}
    few = [why for name in names if (why := destination.fewer_seeds(HERE / name, options.benchmark, options.seeds))]
    if few:
        destination.refuse("\n".join([*few, "Name all of them with --seeds, or another place with --out=DIR."]))
    if any(shown.values()):
        print("\n".join(f"This replaces, in {name}:\n{files}" for name, files in shown.items() if files))
        destination.confirm(options)


if __name__ == "__main__":
    main()

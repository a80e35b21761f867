"""Every experiment on one benchmark, one after the other, and how long each took: `python -m experiments.everything`.

Flags that this program does not know, such as `--few`, `--seeds 0 1 2` or `--runs DIR`, go to all of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from experiments.protocol import BENCHMARKS

HERE = Path(__file__).resolve().parent
FIRST = ("task_addition", "single_task")  # they make the task vectors that most others start from
APART = (
    "benchmarks",
    "pretraining_pilots",
    "pretraining",
    "scale",
)  # not of the papers; `pretraining` needs a pre-training's checkpoints, `scale` compilers for accelerators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="bundled", help="model and tasks")
    parser.add_argument(
        "--pretraining", help="run of configs/pretrain.py with checkpoints; without it, one is left out"
    )
    parser.add_argument("--only", nargs="+", help="names of experiments; default: all")
    options, rest = parser.parse_known_args()
    if options.pretraining and options.benchmark not in ("bundled", "real"):
        parser.error("--pretraining has stages of the bundled model: choose --benchmark=bundled or real")
    names = [path.parent.name for path in sorted(HERE.glob("*/run.py")) if path.parent.name not in (*FIRST, *APART)]
    names = [*FIRST, *names, *(["pretraining"] if options.pretraining else [])]
    if unknown := sorted(set(options.only or ()) - set(names)):
        parser.error(f"no experiment is called {', '.join(unknown)}; choose from {', '.join(names)}")
    took: dict[str, float] = {}
    for name in options.only or names:
        own = ["--pretraining", options.pretraining] if name == "pretraining" else []
        command = [sys.executable, "-m", f"experiments.{name}.run", f"--benchmark={options.benchmark}", *rest, *own]
        print(f"\n== {' '.join(command[1:])}", flush=True)
        started = time.monotonic()
        subprocess.run(command, check=True)
        took[name] = time.monotonic() - started
    print("\n" + "\n".join(f"{name:24} {seconds / 60:6.1f} min" for name, seconds in took.items()))
    print(f"{'together':24} {sum(took.values()) / 60:6.1f} min")


if __name__ == "__main__":
    main()

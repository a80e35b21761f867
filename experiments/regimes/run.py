"""All regimes side by side on one benchmark, several seeds: `python experiments/regimes/run.py --help`."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

from ml_collections import ConfigDict

from tajax import report, results
from tajax.config import validate
from tajax.main import make_writable
from tajax.workflows import task_addition

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

REAL_TASKS = ("mnist", "gtsrb", "dtd10", "cars_body", "sun8", "rsscn7", "street_letters", "fashion_mnist")

# Regime, and the config file it is a delta of. Post-hoc comes after standard, whose task vectors it linearises.
REGIMES = {
    "standard": "standard",
    "posthoc": "posthoc",
    "attention": "attn",
    "attention_with_bias": "attn",
    "linear": "linear",
    "linear_attention": "linear_attn",
}


def make_config(regime: str, *, benchmark: str, seed: int, data: Path, steps: int | None) -> ConfigDict:
    """The config file of a regime on one benchmark, with a seed."""
    path = ROOT / "configs" / f"{REGIMES[regime]}.py"
    spec = importlib.util.spec_from_file_location(f"configs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("tiny")
    config.regime = regime
    config.seed = seed
    config.save.merged = False
    if benchmark == "real":
        config.tasks = tuple(str(data / f"{name}.npz") for name in REAL_TASKS)
    if steps is not None:
        config.finetune.steps = steps
    return config


def main() -> None:
    """Runs what is not finished yet, then writes the table of all that is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmark", choices=("bundled", "real"), default="bundled")
    parser.add_argument("--regimes", nargs="+", choices=tuple(REGIMES), default=tuple(REGIMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="optimiser steps a task; default: that of the config")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder of the real tasks' .npz files"
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/regimes"), help="where the runs live")
    options = parser.parse_args()
    root = options.workdir / options.benchmark
    for seed in options.seeds:
        for regime in options.regimes:
            config = make_config(regime, benchmark=options.benchmark, seed=seed, data=options.data, steps=options.steps)
            if regime == "posthoc":
                config.task_vectors = str(root / f"standard_{seed}")
            validate(config)
            workdir = root / f"{regime}_{seed}"
            make_writable(workdir)
            task_addition.run(config, workdir)
    summarise(root, HERE / "results" / f"{options.benchmark}")


def summarise(root: Path, target: Path) -> None:
    """Writes the comparison of all finished runs below `root` as Markdown, and their accuracies as JSON lines."""
    records = [r for path in sorted(root.glob("*/results.jsonl")) for r in results.read(path)]
    table = report.comparison(records)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".md").write_text(report.markdown([table]), encoding="utf-8")
    kept = [r for r in records if r["stage"] in ("run", "zero_shot", "single_task", "task_addition")]
    target.with_suffix(".jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
    report.show([table])


if __name__ == "__main__":
    main()

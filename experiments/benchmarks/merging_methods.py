"""Every merging method that needs no data, jitted, on drawn vectors of a model's image tower, some against PyTorch.

    python experiments/benchmarks/merging_methods.py --layers=1 --repeats=2     # of a ViT-B/32, one layer of twelve
    python experiments/benchmarks/merging_methods.py --growth --methods iso_c tsv_m

Times are of the merge alone, without compilation. Memory is what a merge needs beside θ₀ and the vectors: the largest
size of the process while it runs, over that before. --growth takes 2 to 20 vectors in place of --tasks, of tajax alone.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import merging_reference
import record
import reference
import workload
from timing import Contender, alternate

from tajax import trees
from tajax.merging import METHODS, compiled
from tajax.merging.matrices import in_layers
from tajax.rules import STACKED
from tajax.types import Params

GROWTH = (2, 4, 8, 14, 20)
VARIANTS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    name: (name, {}) for name, method in METHODS.items() if method.needs == "nothing"
} | {
    f"{name}, randomized": (name, {"svd": "randomized"}) for name, method in METHODS.items() if "svd" in method.options
}
"""What is measured: by name the method, and its options beside the defaults."""


def main() -> None:
    parser = workload.argument_parser(__doc__, repeats=3, model="b32")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tasks", type=int, default=8, help="task vectors")
    parser.add_argument("--layers", type=int, help="of the tower, from the input; default: all")
    parser.add_argument("--methods", nargs="+", choices=VARIANTS, metavar="METHOD", help="of METHODS; default: all")
    parser.add_argument("--growth", action="store_true", help=f"with {', '.join(map(str, GROWTH))} vectors")
    options = parser.parse_args()
    reference.use_all_cores()
    pretrained = some_layers(workload.load_clip(options.model).params["image"], options.layers)
    counts = GROWTH if options.growth else (options.tasks,)
    taus = workload.task_vectors(pretrained, max(counts), directory=options.task_vectors)
    chosen = {name: VARIANTS[name] for name in options.methods or VARIANTS}
    if options.growth:
        grown = {name: [ours(*chosen[name], pretrained, taus[:count], options) for count in counts] for name in chosen}
        record.write(options, [], layers=options.layers, tasks=counts, growth=grown)
        for name, found in grown.items():
            print(name, "|", " ".join(f"{each.get('median', float('nan')):.3g}" for each in found), "s", flush=True)
        return
    rows, alone = [], {}
    for name, (method, given) in chosen.items():
        if name in merging_reference.METHODS:
            rows.append(against(name, pretrained, taus, options))
        else:
            alone[name] = ours(method, given, pretrained, taus, options)
            print(f"{name}: {alone[name]}", flush=True)
    record.write(options, rows, layers=options.layers, tasks=options.tasks, alone=alone)
    for row in rows:
        ours_, other = (row["memory"][side] / 2**20 for side in ("tajax", "other"))
        print(f"{row['what']}: {ours_:,.0f} MiB beside the vectors, PyTorch {other:,.0f}; differs by {row['gap']}")


def some_layers(tree: Params, layers: int | None) -> Params:
    """The tree with the first layers alone."""
    flat = trees.flatten_paths(tree)
    return trees.unflatten_paths(
        {path: leaf[:layers] if in_layers(path, STACKED) else leaf for path, leaf in flat.items()}
    )


def merger(name: str, given: Mapping[str, object], pretrained: Params, taus: Sequence[Params]) -> Callable[[], Params]:
    """The compiled method on these vectors; each call merges."""
    method = METHODS[name]
    merge = functools.partial(method, **given) if method.eager else compiled(method, **given)
    drawn = {"key": jax.random.key(0)} if method.random else {}
    return lambda: jax.block_until_ready(merge(pretrained, taus, **drawn))


def ours(
    name: str, given: Mapping[str, object], pretrained: Params, taus: Sequence[Params], options: argparse.Namespace
) -> dict:
    """Seconds and memory of a method; or why it refuses so many vectors."""
    run = merger(name, given, pretrained, taus)
    try:
        timing = alternate({"tajax": Contender(run)}, repeats=options.repeats)["tajax"]
    except ValueError as error:
        return {"refused": str(error)}
    return {key: value for key, value in timing.record().items() if key != "runs"} | {"memory": growth_of_process(run)}


def against(name: str, pretrained: Params, taus: Sequence[Params], options: argparse.Namespace) -> dict:
    """A method and its reference in turn, as a row with what each needs in memory, and how far their models differ."""
    origin, states = merging_reference.state(pretrained), [merging_reference.state(tau) for tau in taus]
    runs = {
        "tajax": merger(name, {}, pretrained, taus),
        "PyTorch": lambda: merging_reference.merged_model(name, origin, states),
    }
    timings = alternate({side: Contender(run) for side, run in runs.items()}, repeats=options.repeats)
    row = record.faster(f"{name} of {len(taus)} vectors", timings["tajax"], timings["PyTorch"])
    merged = merging_reference.state(timings["tajax"].result)
    gap = max(float((merged[path] - leaf).abs().max()) for path, leaf in timings["PyTorch"].result.items())
    row["gap"] = None if METHODS[name].random else gap
    row["memory"] = {side: growth_of_process(runs[run]) for side, run in (("tajax", "tajax"), ("other", "PyTorch"))}
    print(record.describe(row), flush=True)
    return row


def growth_of_process(run: Callable[[], object]) -> int:
    """Bytes by which the process is larger while something runs than before, read each 2 ms, on Linux."""
    gc.collect()
    before, largest, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.is_set():
            largest = max(largest, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return max(0, largest - before)


def resident() -> int:
    """Bytes of the process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()

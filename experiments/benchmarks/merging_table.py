"""Every merging method on a line: its file, what it needs, how far it is from its oracle; of a size, what it costs.

    python -m experiments.benchmarks.merging_table                  # oracles alone
    python -m experiments.benchmarks.merging_table --size=b32       # and eight vectors of a ViT-B/32
    python -m experiments.benchmarks.merging_table --size=b32 --methods ties tsv_m

Oracles are those of tests/merging, NumPy in float64 without tajax, on the trees of the contract tests. The difference
is the largest of all entries of the merged model, computed in float64, too. What costs time is merged once, in a
process a method, from weights and vectors that are drawn.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import summary
from experiments.benchmarks.geometries import GEOMETRIES
from tajax import models, report, results, trees
from tajax.merging import METHODS, Method, compiled
from tajax.merging.matrices import is_matrix
from tajax.report import Table
from tajax.types import Params
from tests.merging import agreement

HERE = Path(__file__).resolve().parent
GIB = 2**30
SIZES = GEOMETRIES | {
    "toy": models.VisionConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=8,
    )
}
"""Image towers by name."""
DEVIATION = 0.02  # of θ₀
LENGTH = 0.05  # ‖τ‖ / ‖θ₀‖
LOW_RANK = {"core_space": 16}
"""Methods that are for the vectors of adapters, and the rank of the matrices that they get; the others' are noise."""
KEY = 20230522  # of the contract tests


class Cost(NamedTuple):
    """What one merge took in a process of its own."""

    tasks: int
    compile: float | None
    """Seconds; None of a method that is not compiled as a whole, whose parts are compiled within `merge`."""
    merge: float
    """Seconds."""
    before: int
    """Bytes of the process at most, until θ₀ and the vectors were there."""
    peak: int
    """Bytes at most in all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, help="also what a merge of so large vectors costs")
    parser.add_argument("--tasks", type=int, default=8, help="vectors; default: 8")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", default=METHODS, help="default: all")
    parser.add_argument("--write", action="store_true", help="put the table into README.md, and its numbers to results")
    parser.add_argument("--alone", choices=METHODS, help=argparse.SUPPRESS)  # in the process of one method
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(cost(options.alone, options.size, options.tasks)._asdict()))
        return
    costs = {name: in_a_process(name, options.size, options.tasks) for name in options.methods if options.size}
    found = differences(options.methods)
    table = tabulate(found, costs, options)
    report.show([table])
    if options.write:
        command = f"python -m experiments.benchmarks.merging_table {' '.join(sys.argv[1:])}"
        about = {"size": options.size, **results.provenance(), "command": command}
        kept = [
            {"method": name, "difference": difference, "cost": taken and taken._asdict(), **about}
            for name, difference, taken in ((name, found[name], costs.get(name)) for name in options.methods)
        ]
        text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in kept)
        (HERE / "results" / "merging_table.jsonl").write_text(text, encoding="utf-8")  # *.json are the tables of run.py
        _, _, without_heading = report.markdown([table]).partition("\n")
        summary.fill(HERE / "README.md", "merging_table", without_heading)


def differences(names: Sequence[str]) -> dict[str, float]:
    """Of each method the largest difference of an entry from its oracle, in float64."""
    theta, taus = agreement.draws(jax.random.key(KEY))
    found = {}
    with jax.enable_x64(True):
        for name in names:
            vectors = agreement.vectors_for(name, taus) / 7  # not exact in binary, as nothing is
            merge = jax.jit(functools.partial(METHODS[name], **agreement.ORACLES[name].options))
            pairs = agreement.both(name, theta, vectors, merge).values()
            found[name] = max(float(np.abs(np.asarray(got) - want).max(initial=0)) for got, want in pairs)
    return found


def in_a_process(name: str, size: str, tasks: int) -> Cost | None:
    """What `cost` finds of a method that needs no data, measured where nothing else has been; None of any other."""
    method = METHODS[name]
    if method.needs != "nothing":
        return None
    command = [sys.executable, "-m", "experiments.benchmarks.merging_table", f"--alone={name}"]
    command += [f"--size={size}", f"--tasks={_as_many(method, tasks)}"]
    done = subprocess.run(command, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True, check=True)
    found = Cost(**json.loads(done.stdout.splitlines()[-1]))
    print(f"{name}: {found.merge:.3g} s, {found.peak / GIB:.3g} GiB", file=sys.stderr, flush=True)
    return found


def _as_many(method: Method, tasks: int) -> int:
    """So many vectors, or two if the method takes no other number."""
    try:
        if method.check is not None:
            method.check(tasks, **{keyword: option.default for keyword, option in method.options.items()})
    except ValueError:
        return 2
    return tasks


def cost(name: str, size: str, tasks: int) -> Cost:
    """What it takes to merge drawn vectors once, in this process."""
    method, shapes = METHODS[name], tower(size)
    pretrained = drawn(shapes, seed=0, scale=DEVIATION)
    taus = [drawn(shapes, seed=seed, scale=LENGTH * DEVIATION, rank=LOW_RANK.get(name)) for seed in range(1, tasks + 1)]
    options = {"key": jax.random.key(0)} if method.random else {}
    before = _largest()
    start = time.perf_counter()
    program = method if method.eager else compiled(method).lower(pretrained, taus, **options).compile()
    ready = time.perf_counter()
    jax.block_until_ready(program(pretrained, taus, **options))
    done = time.perf_counter()
    return Cost(tasks, None if method.eager else ready - start, done - ready, before, _largest())


def tower(size: str) -> Params:
    """The shapes of an image tower."""
    vision = SIZES[size]
    images = jnp.zeros((1, vision.image_size, vision.image_size, 3))
    return jax.eval_shape(models.ImageEncoder(vision).init, jax.random.key(0), images)["params"]


def drawn(shapes: Params, *, seed: int, scale: float, rank: int | None = None) -> Params:
    """Normal entries; with a rank its matrices are products of that inner side, and nothing else moves."""
    generator, flat = np.random.default_rng(seed), {}

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, np.float32)

    for path, leaf in trees.flatten_paths(shapes).items():
        if rank is None:
            flat[path] = jnp.asarray(np.float32(scale) * normal(*leaf.shape))
        elif is_matrix(path, leaf):
            *stack, rows, columns = leaf.shape
            product = normal(*stack, rows, rank) @ normal(*stack, rank, columns)
            flat[path] = jnp.asarray(np.float32(scale / rank**0.5) * product)
        else:
            flat[path] = jnp.zeros(leaf.shape)
    return trees.unflatten_paths(flat)


def _largest() -> int:
    """Bytes of this process at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def tabulate(found: dict[str, float], costs: dict[str, Cost | None], options: argparse.Namespace) -> Table:
    columns = ["method", "file", "needs", "from its oracle"]
    columns += ["vectors", "compile, s", "merge, s", "peak, GiB", "beside the vectors, GiB"] if options.size else []
    rows = []
    for name, difference in found.items():
        file = Path(inspect.getfile(METHODS[name].merge)).name
        row = [name, f"`{file}`", METHODS[name].needs, f"{difference:.1e}"]
        rows.append((*row, *_cells(costs.get(name))) if options.size else tuple(row))
    notes = [
        "From its oracle: the largest difference of an entry, both in float64, of models with entries up to about 10. "
        "Methods that draw are held to it where their draws decide nothing; those that need data get what a fit might "
        "have found, which has tests of its own.",
    ]
    if options.size:
        notes += [
            f"{options.size}: drawn weights; one merge in a process of its own. Peak: the whole process, with θ₀ and "
            "the vectors; beside the vectors: what it grew by after those were there. Methods that need data are "
            "not measured: their time is that of their fit.",
            "Compile –: a method that reads its ranks from the vectors compiles its parts while it merges. "
            f"{', '.join(f'{name} gets matrices of rank {rank}' for name, rank in LOW_RANK.items())}.",
        ]
    return Table("Merging methods", tuple(columns), tuple(rows), tuple(notes))


def _cells(taken: Cost | None) -> tuple[str, ...]:
    if taken is None:
        return ("–",) * 5
    seconds = "–" if taken.compile is None else f"{taken.compile:.3g}"
    grown = (taken.peak - taken.before) / GIB
    return str(taken.tasks), seconds, f"{taken.merge:.3g}", f"{taken.peak / GIB:.3g}", f"{grown:.3g}"


if __name__ == "__main__":
    main()

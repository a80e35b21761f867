"""Where the time of one training step or one linearised evaluation goes: seconds, memory, and time by operation.

For trying things out: a dtype, layers scanned or unrolled, another revision, `XLA_FLAGS` in the environment.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import gzip
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import steps
import workload

from tajax import affine, models, trees
from tajax.config import REGIMES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="b32", help=f"{', '.join(steps.GEOMETRIES)}, or as `models.load`")
    parser.add_argument("--regime", default="standard", choices=[name for name in REGIMES if name != "posthoc"])
    parser.add_argument("--vectors", type=int, help="evaluate so many linearised task vectors in place of training")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="float32", help="of the computation")
    parser.add_argument("--scan", action="store_true", help="layers under a scan, not unrolled")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    run, memory = evaluation(options) if options.vectors else training(options)
    run()
    seconds = [timed(run) for _ in range(options.repeats)]
    print(
        f"{statistics.median(seconds):.3f} s ({min(seconds):.3f}–{max(seconds):.3f}), {memory / 1e6:,.0f} MB temporary"
    )
    kinds = traced(run)
    total = sum(spent for spent, _ in kinds.values())
    for kind, (spent, count) in sorted(kinds.items(), key=lambda item: -item[1][0])[:12]:
        print(f"{spent / 1e3:10.1f} ms {spent / total:6.1%}  {count:5} × {kind}")


def training(options: argparse.Namespace) -> tuple[Callable[[], object], int]:
    """Steps that go on from each other, and the temporary memory of one."""
    regime = REGIMES[options.regime]
    work = steps.of_images(model(options), options.batch_size)
    step = steps.compile_step(work, regime.trainable, linearized=regime.train_linearized)
    return step.runner(), step.temporary


def evaluation(options: argparse.Namespace) -> tuple[Callable[[], object], int]:
    """The scores of a batch along drawn task vectors, and the temporary memory they take."""
    clip = model(options)
    encode, (head, batch) = steps.encoder(clip), steps.noise(clip, options.batch_size)
    params, rule = clip.params["image"], REGIMES[options.regime].trainable
    mask = trees.param_mask(params, rule)
    taus = workload.task_vectors(params, options.vectors, directory=None, rule=rule)

    def scores(params, taus, head, images):
        return affine.affine_logits(encode, params, taus, head, images, mask=mask)

    program = jax.jit(scores).lower(params, taus, head, batch.inputs).compile()
    run = lambda: jax.block_until_ready(program(params, taus, head, batch.inputs))  # noqa: E731
    return run, program.memory_analysis().temp_size_in_bytes


def model(options: argparse.Namespace) -> models.LoadedClip:
    """The model, its dtype and its layers as the flags say."""
    clip = steps.load_clip(options.model)
    return dataclasses.replace(clip, dtype=jnp.dtype(options.dtype), unroll=1 if options.scan else True)


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def traced(run: Callable[[], object]) -> dict[str, tuple[float, int]]:
    """Microseconds and number of the operations of one run, by the kind that XLA names them."""
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            run()
        (path,) = Path(directory).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    spent, count = collections.Counter(), collections.Counter()
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            kind = re.sub(r"[.\d]+$", "", event["args"]["hlo_op"])
            spent[kind] += event["dur"]
            count[kind] += 1
    return {kind: (spent[kind], count[kind]) for kind in spent}


if __name__ == "__main__":
    main()

"""What it saves that memory is kept: processor time and page faults of a training step with `keep_memory` and without.

    python experiments/benchmarks/allocation.py
    python experiments/benchmarks/allocation.py --model=path/to/all-MiniLM-L6-v2 --family=text --steps=10

Processes of both kinds take turns, since what an allocator was told cannot be taken back.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys

KEPT, NOT_KEPT = "kept", "not kept"
BATCH_SIZE, CLASSES, TOKENS = 32, 10, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="as of `encoders.load`")
    parser.add_argument("--family", default="clip", help="of the model")
    parser.add_argument("--steps", type=int, default=40, help="in each process, after two that do not count")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind")
    parser.add_argument("--one", choices=(KEPT, NOT_KEPT), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    found: dict[str, list[dict[str, float]]] = {KEPT: [], NOT_KEPT: []}
    for _ in range(options.repeats):
        for how in found:
            command = [sys.executable, __file__, *sys.argv[1:], f"--one={how}"]
            found[how].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    for how, runs in found.items():
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(
            f"{how:9} {medians['user'] + medians['system']:.3f} processor seconds a step, "
            f"{medians['system']:.3f} of them the system's; {medians['faults']:,.0f} page faults"
        )


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Of a step in this process: seconds of the program and of the system, and page faults."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from tajax import encoders, finetune, optim, trees
    from tajax.allocation import keep_memory
    from tajax.parametrization import masked
    from tajax.types import Batch, Head, Preprocessing

    if options.one == KEPT and not keep_memory():
        sys.exit("the C library is not glibc")
    encoder, random = encoders.load(options.model, family=options.family), np.random.default_rng(0)
    if isinstance(encoder.inputs, Preprocessing):
        inputs = random.integers(0, 256, (BATCH_SIZE, encoder.inputs.size, encoder.inputs.size, 3), np.uint8)
    else:
        inputs = random.integers(1, 1000, (BATCH_SIZE, TOKENS), np.int32)
    trained = masked(trees.param_mask(encoder.params, "all", rules=encoder.rules, stacked=encoder.stacked))
    tx = optim.adamw(1e-5, weight_decay=0.1, clip_norm=1.0)
    step = finetune.make_train_step(encoder.apply, tx, trained)
    state = finetune.init_state(trained.init(encoder.params), tx)
    head = Head(jnp.asarray(random.normal(size=(encoder.feature_dim, CLASSES)), jnp.float32), jnp.int32(CLASSES))
    labels = random.integers(0, CLASSES, BATCH_SIZE, np.int32)
    batch = Batch(inputs, labels, np.ones(BATCH_SIZE, bool))

    def run(steps: int) -> resource.struct_rusage:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, encoder.params, head, batch)
        jax.block_until_ready(metrics)
        return resource.getrusage(resource.RUSAGE_SELF)

    before, after = run(2), run(options.steps)
    spent = {"user": after.ru_utime - before.ru_utime, "system": after.ru_stime - before.ru_stime}
    spent["faults"] = after.ru_minflt - before.ru_minflt
    return {key: value / options.steps for key, value in spent.items()}


if __name__ == "__main__":
    main()

"""A short training with checkpoints, for `resume` to kill: `python -m experiments.accelerator.resumed_training --help`.

It prints the loss of each step as a line of JSON, and leaves what it ends with in `DIR/NAME.npz`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import jax
import numpy as np

from experiments.accelerator import training_steps, workloads
from tajax import checkpoints, compilation, finetune
from tajax.checkpoints import Writer
from tajax.parallel import Replicated

STEPS, EVERY = 6, 2
HASH = "accelerator"  # there is no config that a checkpoint could be of


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.accelerator.resumed_training", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="where checkpoints and compiled programs are kept")
    parser.add_argument("name", metavar="NAME", help="of the run; its checkpoints are those it goes on from")
    parser.add_argument("--sizes", choices=workloads.SIZES, default="tiny", help="as of experiments.accelerator.check")
    parser.add_argument("--wait-at", type=int, default=STEPS + 1, help="wait for ever after this step")
    options = parser.parse_args()
    compilation.keep_programs(options.directory / "programs")  # as runs do: autotuning picks a kernel once
    train(options.directory, options.name, options.sizes, options.wait_at)


def train(directory: Path, name: str, sizes: str, wait_at: int) -> None:
    """Attention-only fine-tuning from the latest checkpoint, with other images at each step."""
    chosen = workloads.SIZES[sizes]
    clip = workloads.load(sizes, chosen.first)
    step, (state, pretrained, head, _) = training_steps.make(clip, "attention", chosen.resumed_batch)
    placement = Replicated(jax.local_devices()[:1])
    state = checkpoints.restore_latest(directory / name, state, config_hash=HASH).state
    _say(began=int(state.step))

    def log(done: int, metrics: dict[str, float]) -> None:
        _say(step=done, loss=metrics["loss"])
        if done == wait_at:
            writer.wait()  # what is to be resumed from is whole
            _say(waits=done)
            time.sleep(3600)

    with Writer(directory / name, config_hash=HASH) as writer:
        state = finetune.finetune(
            step,
            state,
            pretrained,
            head,
            (workloads.batch(clip, chosen.resumed_batch, seed=at) for at in itertools.count(int(state.step))),
            placement=placement,
            num_steps=STEPS,
            log_every=1,
            on_log=log,
            checkpoint_every=EVERY,
            on_checkpoint=lambda state, _: writer.save(state, step=int(state.step)),
        )
    leaves = jax.device_get(jax.tree.leaves(state))
    np.savez(directory / f"{name}.npz", *leaves)


def _say(**facts: float) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()

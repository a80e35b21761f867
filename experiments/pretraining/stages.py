"""Models along a pre-training, from the checkpoints it kept: Hugging Face directories that `models.load` opens."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from tajax import checkpoints, models, optim
from tajax.finetune import init_state


def export(pretraining: Path, step: int, directory: Path) -> Path:
    """The model of one checkpoint, both towers, written to `directory` unless it is there.

    Args:
        pretraining: directory of a finished run of `configs/pretrain.py`, with `checkpoints` and `model`.
        step: of pre-training, at which there is a checkpoint.
        directory: where to.

    Raises:
        FileNotFoundError: no such checkpoint, or no such run.
    """
    if not directory.exists():
        clip = models.load(pretraining / "model")
        tx = optim.adamw(optim.make_schedule(learning_rate=1e-3, num_steps=step + 1))
        state = checkpoints.restore(pretraining / "checkpoints", init_state(clip.params, tx), step=step).state
        made = clip.config, state.trained, clip.tokenizer, clip.preprocessing
        models.save_pretrained(directory, *made, dtype=jnp.float16)
    return directory

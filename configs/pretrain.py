"""Contrastive pre-training of a small CLIP, of the geometry of the bundled one, on more of the world.

    python -m tajax.main --config=configs/pretrain.py

8,000 steps of 256 pairs, 2 hours on two CPU cores at the 0.92 seconds of its first 100 steps; the run goes on where it
was stopped, and nobody has made it to its end yet. Which geometry is what `experiments/pretraining_pilots` found at
equal cost. The model in tajax/assets/tiny-clip is older: its card says what it was made from, 0.77 million pairs of
scenes and Tiny-ImageNet under single names.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run that makes the next bundled model; there is one variant, tiny."""
    config = with_variant(default_config(), variant, among=("tiny",))
    config.workflow = "pretrain"
    files = ("tinyimagenet50k", "domains")
    config.pretrain.natural = tuple(f"../shared/data/pretrain_{file}_jpeg.npz" for file in files)
    config.pretrain.natural_fraction = 0.6
    config.pretrain.steps = 8000
    config.pretrain.warmup_steps = 400
    config.pretrain.checkpoint_every = 80  # a hundredth: stages for experiments/pretraining
    config.pretrain.width = 192
    config.pretrain.layers = 4
    config.pretrain.heads = 3
    config.pretrain.text_layers = 2
    return config

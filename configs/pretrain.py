"""Contrastive pre-training of a small CLIP, of the geometry of the bundled one, on more of the world.

    python -m tajax.main --config=configs/pretrain.py

12,000 steps of 128 pairs, 1.54 million pairs in all. On two CPU cores of an AMD EPYC with AVX-512 they took 62 minutes
beside other work; at the 800 pairs a second of its first minutes they would be 32. The run goes on where it was
stopped. It made the model in tajax/assets/tiny-clip, whose card has sources, curve and what it knows. Geometry, batch
and rate are those that `experiments/pretraining_pilots` found best at equal cost.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run that makes the bundled model; there is one variant, tiny."""
    config = with_variant(default_config(), variant, among=("tiny",))
    config.workflow = "pretrain"
    files = ("tinyimagenet50k", "domains")
    config.pretrain.natural = tuple(f"../shared/data/pretrain_{file}_jpeg.npz" for file in files)
    config.pretrain.natural_fraction = 0.6
    config.pretrain.steps = 12_000
    config.pretrain.batch_size = 128
    config.pretrain.warmup_steps = 400
    config.pretrain.checkpoint_every = 120  # a hundredth: stages for experiments/pretraining
    config.pretrain.width = 192
    config.pretrain.layers = 4
    config.pretrain.heads = 3
    config.pretrain.text_layers = 2
    return config

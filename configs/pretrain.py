"""Contrastive pre-training of the bundled small CLIP.

The result stands in tajax/assets/tiny-clip; its card names sources, seed, time and loss curve:

    python -m tajax.main --config=configs/pretrain.py

41 minutes on two shared CPU cores; the loss goes from 5.40 (step 50) to 2.63 (step 3,000).
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run that made the bundled model; there is one variant, tiny."""
    config = with_variant(default_config(), variant, among=("tiny",))
    config.workflow = "pretrain"
    files = ("tinyimagenet50k", "domains")
    config.pretrain.natural = tuple(f"../shared/data/pretrain_{file}_jpeg.npz" for file in files)
    config.pretrain.natural_fraction = 0.6
    config.pretrain.steps = 3000
    config.pretrain.width = 192
    config.pretrain.layers = 4
    config.pretrain.heads = 3
    config.pretrain.text_layers = 2
    return config

"""Task addition of sharpness-aware fine-tuning (SAFT): the loss stays low around the minimum that is found.

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise); then a sentence encoder
and eight sets of texts, which must lie in DIR as tajax/docs/start.md says:

    python -m tajax.main --config=configs/saft.py
    python -m tajax.main --config=configs/saft.py:b32
    python -m tajax.main --config=configs/saft.py:minilm --config.data_dir=DIR

`--config.finetune.radius` is ρ, how far up the gradient a step takes its gradient.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14, minilm, and of the twenty tasks b32_20, b16_20, l14_20."""
    config = default_config()
    config.regime = "saft"
    return with_variant(config, variant)

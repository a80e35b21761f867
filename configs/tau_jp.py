"""Task addition in the tangent space with τJp: a task vector must not move the features of other tasks' images.

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise); then a sentence encoder
and eight sets of texts, which must lie in DIR as tajax/docs/start.md says:

    python -m tajax.main --config=configs/tau_jp.py
    python -m tajax.main --config=configs/tau_jp.py:b32
    python -m tajax.main --config=configs/tau_jp.py:minilm --config.data_dir=DIR

`--config.finetune.penalty_strength` is λ, 0.1 if not given; `--config.finetune.others=all` sees images of all other
tasks in every step instead of one task's in turn.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14, minilm, and of the twenty tasks b32_20, b16_20, l14_20."""
    config = default_config()
    config.regime = "tau_jp"
    return with_variant(config, variant)

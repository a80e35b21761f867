"""Task addition with TaLoS: a tenth of all entries is trained, those that predictions are least sensitive to.

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise); then a sentence encoder
and eight sets of texts, which must lie in DIR as tajax/docs/start.md says:

    python -m tajax.main --config=configs/talos.py
    python -m tajax.main --config=configs/talos.py:b32
    python -m tajax.main --config=configs/talos.py:minilm --config.data_dir=DIR

`--config.finetune.density` is the share of entries that is trained, chosen by `scored` examples of a task in `rounds`.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14, minilm, and of the twenty tasks b32_20, b16_20, l14_20."""
    config = default_config()
    config.regime = "talos"
    return with_variant(config, variant)

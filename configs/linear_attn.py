"""Task addition in the tangent space of the attention weights alone.

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise); then a sentence encoder
and eight sets of texts, which must lie in DIR as tajax/docs/start.md says:

    python -m tajax.main --config=configs/linear_attn.py
    python -m tajax.main --config=configs/linear_attn.py:b32
    python -m tajax.main --config=configs/linear_attn.py:minilm --config.data_dir=DIR

Bundled tasks, test top-1 in %, seed 0, protocol 1, at the rate of configs/linear.py: zero-shot 65.1,
single-task 90.3, merged 80.1, normalised 88.5.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14, minilm, and of the twenty tasks b32_20, b16_20, l14_20."""
    config = default_config()
    config.regime = "linear_attention"
    return with_variant(config, variant)

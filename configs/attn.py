"""Task addition with attention-only fine-tuning: W_q, W_k, W_v and W_o move (Jin et al. 2024).

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise):

    python -m tajax.main --config=configs/attn.py
    python -m tajax.main --config=configs/attn.py:b32

Bundled tasks, test top-1 in %, mean ± deviation over seeds 0, 1, 2 (`experiments/learning_rates`): zero-shot 65.1,
single-task 94.4 ± 0.0, merged 78.7 ± 0.5, normalised 83.1 ± 0.6.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14."""
    config = default_config()
    config.regime = "attention"
    return with_variant(config, variant)

"""Task addition with ordinary fine-tuning: every parameter of the encoder moves.

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise); then a sentence encoder
and eight sets of texts, which must lie in DIR as tajax/docs/start.md says:

    python -m tajax.main --config=configs/standard.py
    python -m tajax.main --config=configs/standard.py:b32
    python -m tajax.main --config=configs/standard.py:minilm --config.data_dir=DIR

Bundled tasks, test top-1 in %, mean ± deviation over seeds 0 and 1 (`experiments/learning_rates`): zero-shot 65.1,
single-task 96.1 ± 0.3, merged 79.5 ± 0.1, normalised 82.5 ± 0.3.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14, minilm, and of the twenty tasks b32_20, b16_20, l14_20."""
    config = default_config()
    config.regime = "standard"
    return with_variant(config, variant)

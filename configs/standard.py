"""Task addition with ordinary fine-tuning: every parameter of the image encoder moves.

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise):

    python -m tajax.main --config=configs/standard.py
    python -m tajax.main --config=configs/standard.py:b32

Bundled tasks, test top-1 in %, mean ± deviation over seeds 0, 1, 2 (`experiments/learning_rates`): zero-shot 65.1,
single-task 95.9 ± 0.2, merged 78.9 ± 0.9, normalised 81.9 ± 1.0.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14."""
    config = default_config()
    config.regime = "standard"
    return with_variant(config, variant)

"""Task addition in the tangent space: the encoder's first-order expansion is trained and evaluated.

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise):

    python -m tajax.main --config=configs/linear.py
    python -m tajax.main --config=configs/linear.py:b32

Bundled tasks, test top-1 in %, mean ± deviation over seeds 0, 1, 2 (`experiments/learning_rates`): zero-shot 65.1,
single-task 93.5 ± 0.1, merged 79.9 ± 0.3, normalised 85.2 ± 0.4.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14."""
    config = default_config()
    config.regime = "linear"
    return with_variant(config, variant)

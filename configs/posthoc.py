"""Task addition of ordinary task vectors, evaluated in the tangent space (post-hoc linearisation).

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise); then a sentence encoder
and eight sets of texts, which must lie in DIR as tajax/docs/start.md says:

    python -m tajax.main --config=configs/posthoc.py
    python -m tajax.main --config=configs/posthoc.py:b32
    python -m tajax.main --config=configs/posthoc.py:minilm --config.data_dir=DIR

Bundled tasks, test top-1 in %, mean ± deviation over seeds 0, 1, 2, on vectors of configs/standard.py by
protocol 1: zero-shot 65.1, single-task 82.9 ± 0.1, merged 74.8 ± 0.5, normalised 91.9 ± 1.1.

The vectors are ordinary ones: `--config.task_vectors=runs/standard_tiny` reuses those of that run.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14, minilm, and of the twenty tasks b32_20, b16_20, l14_20."""
    config = default_config()
    config.regime = "posthoc"
    return with_variant(config, variant)

"""Task addition of ordinary task vectors, evaluated in the tangent space (post-hoc linearisation).

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise):

    python -m tajax.main --config=configs/posthoc.py
    python -m tajax.main --config=configs/posthoc.py:b32

Bundled tasks, test top-1 in %, mean ± deviation over seeds 0, 1, 2 (`experiments/task_addition`): zero-shot 44.0,
single-task 65.2 ± 1.3, merged 51.9 ± 0.6, normalised 79.0 ± 0.6.

The vectors are ordinary ones: `--config.task_vectors=runs/standard_tiny` reuses those of that run.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14."""
    config = default_config()
    config.regime = "posthoc"
    return with_variant(config, variant)

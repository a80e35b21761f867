"""Task addition of ordinary models, each led by a teacher in the tangent space that leaves other tasks alone (DELTA).

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise); then a sentence encoder
and eight sets of texts, which must lie in DIR as tajax/docs/start.md says:

    python -m tajax.main --config=configs/delta.py
    python -m tajax.main --config=configs/delta.py:b32
    python -m tajax.main --config=configs/delta.py:minilm --config.data_dir=DIR

The curvature of the tasks is made at the beginning, or given, as for configs/tak.py:

    python -m tajax.main --config=configs/delta.py --config.finetune.curvature=runs/curvature

`--config.finetune.drift`, `distill` and `student_drift` weigh the teacher's drift, the student's distance to it and the
student's drift.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14, minilm, and of the twenty tasks b32_20, b16_20, l14_20."""
    config = default_config()
    config.regime = "delta"
    return with_variant(config, variant)

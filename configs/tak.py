"""Task addition in the tangent space with TAK: factors of their curvature keep other tasks' features where they are.

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise); then a sentence encoder
and eight sets of texts, which must lie in DIR as tajax/docs/start.md says:

    python -m tajax.main --config=configs/tak.py
    python -m tajax.main --config=configs/tak.py:b32
    python -m tajax.main --config=configs/tak.py:minilm --config.data_dir=DIR

The factors of all tasks are made at the beginning and kept in the run's directory. Made once, they serve other runs,
and tasks whose images nobody has any more:

    python -m tajax.main --config=configs/tak.py --config.workflow=curvature --workdir=runs/curvature
    python -m tajax.main --config=configs/tak.py --config.finetune.curvature=runs/curvature

`--config.finetune.penalty_strength` is β, 100 if not given, of energies relative to that of the features.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14, minilm, and of the twenty tasks b32_20, b16_20, l14_20."""
    config = default_config()
    config.regime = "tak"
    return with_variant(config, variant)

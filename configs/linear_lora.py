"""Task addition with low-rank factors in their tangent space: B of A₀B moves, for every task beside the same A₀.

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise); then a sentence encoder
and eight sets of texts, which must lie in DIR as tajax/docs/start.md says:

    python -m tajax.main --config=configs/linear_lora.py
    python -m tajax.main --config=configs/linear_lora.py:b32
    python -m tajax.main --config=configs/linear_lora.py:minilm --config.data_dir=DIR

B wants a larger learning rate than kernels: mean single-task top-1 in % of two bundled tasks, seed 0, with
`--config.workflow=single_task`, `--config.tasks="('digits', 'signs')"` and `--config.finetune.learning_rate=RATE`:

    2e-3    validation 86.8    test 85.2
    6e-3               89.7         88.3    that of `tiny`; larger ones were not tried

The rates of the other variants are those of `standard`, and not chosen.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14, minilm, and of the twenty tasks b32_20, b16_20, l14_20."""
    config = default_config()
    config.regime = "linear_lora"
    return with_variant(config, variant)

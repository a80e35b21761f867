"""Task addition with low-rank factors: A B of rank 16 is added to W_q, W_k, W_v and W_o, and they alone move.

Bundled model and tasks; then OpenAI's ViT-B/32 and the papers' eight tasks (b16, l14 likewise); then a sentence encoder
and eight sets of texts, which must lie in DIR as tajax/docs/start.md says:

    python -m tajax.main --config=configs/lora.py
    python -m tajax.main --config=configs/lora.py:b32 --config.trainable=linear_layers --config.finetune.rank=8
    python -m tajax.main --config=configs/lora.py:minilm --config.data_dir=DIR

Beside each vector the factors lie in `adapters/TASK`, which PEFT opens. Factors want a larger learning rate than
kernels: mean single-task top-1 in % of two bundled tasks, seed 0, with `--config.workflow=single_task`,
`--config.tasks="('digits', 'signs')"` and `--config.finetune.learning_rate=RATE`:

    2e-4    validation 85.1    test 84.8
    2e-3               96.1         94.8
    6e-3               96.9         96.2    that of `tiny`; larger ones were not tried
    4e-4               95.8         95.6    configs/attn.py, its own

The rates of the other variants are those of `standard`, and not chosen.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14, minilm, and of the twenty tasks b32_20, b16_20, l14_20."""
    config = default_config()
    config.regime = "lora"
    return with_variant(config, variant)

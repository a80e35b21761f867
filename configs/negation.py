"""Task negation with attention-only fine-tuning: θ₀ − ατ forgets one task and leaves a control task alone.

The control is the bundled task "objects"; with OpenAI's models (b32, b16, l14) it is ImageNet, and the tasks are the
papers' eight; with the sentence encoder (minilm) it is clinc150, which must lie in DIR beside the eight sets of texts:

    python -m tajax.main --config=configs/negation.py
    python -m tajax.main --config=configs/negation.py:b32 --config.regime=standard
    python -m tajax.main --config=configs/negation.py:minilm --config.data_dir=DIR
    python -m tajax.main --config=configs/negation.py --config.task_vectors=runs/attn_tiny

The papers' grid of α has steps of 0.05 and ends at 1. Attention-only vectors of OpenAI's models often have their best α
there: for them it goes on to 2. For the bundled model small α are closer, of the sentence encoder 0.4 to 1 are best.
"""

from ml_collections import ConfigDict

from tajax.config import default_config, with_variant


def get_config(variant: str = "tiny") -> ConfigDict:
    """The run for one of the variants tiny, b32, b16, l14, minilm, and of the twenty tasks b32_20, b16_20, l14_20."""
    config = default_config()
    config.workflow = "task_negation"
    config.regime = "attention"
    coefs = config.evaluate.scaling_coefs
    with_variant(config, variant)
    if variant == "tiny":
        fine = tuple(round(0.01 * k, 2) for k in range(0, 30, 2))
        config.evaluate.scaling_coefs = fine + tuple(coef for coef in coefs if coef >= 0.3)
    elif variant == "minilm":  # the variant's own steps of 0.1, and half of them up to 0.5
        fine = tuple(coef for coef in coefs if coef < 0.5)
        config.evaluate.scaling_coefs = fine + tuple(coef for coef in config.evaluate.scaling_coefs if coef >= 0.5)
    else:
        config.evaluate.scaling_coefs = coefs + tuple(round(1 + 0.1 * k, 1) for k in range(1, 11))
    return config

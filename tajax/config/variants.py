"""Presets: one model and its tasks, the part of a command after the colon."""

from __future__ import annotations

from collections.abc import Iterable

from ml_collections import ConfigDict

from tajax.config.choices import one_of
from tajax.config.fields import BUNDLED_TASKS, PROTOCOL_TASKS, SUITE_TASKS, TEXT_TASKS

TINY_RATES = {"attention": 4e-4, "attention_with_bias": 4e-4, "linear": 3e-4, "linear_attention": 3e-4}
TINY_RATES |= {"lora": 6e-3, "linear_lora": 6e-3}
"""Of the bundled model where it is not that of `standard`: by `experiments/learning_rates`, on validation; those of the
low-rank regimes by single-task validation accuracy on two tasks, the largest of the few that were tried."""


def _tiny(config: ConfigDict) -> None:
    """The bundled model and tasks; a small model learns in few and large steps. The rate is that of the regime."""
    config.model = "tiny"
    config.tasks = BUNDLED_TASKS
    config.control = "objects"
    config.finetune.learning_rate = TINY_RATES.get(config.regime, 2e-4)
    config.finetune.steps = 200
    config.finetune.batch_size = 32


def _protocol(
    config: ConfigDict, model: str, *, tasks: tuple[str, ...] = PROTOCOL_TASKS, accumulation_steps: int = 1
) -> None:
    """The eight tasks, or others, and the hyper-parameters of the papers, as in the default."""
    config.model = model
    config.tasks = tasks
    config.control = "imagenet"
    config.finetune.warmup_steps = 500
    config.finetune.accumulation_steps = accumulation_steps


MINILM_RATES = {"attention": 4e-4, "attention_with_bias": 4e-4, "linear_attention": 2e-4}
"""Of the sentence encoder where it is not that of `standard`: by `experiments/learning_rates`, on validation; that of
`linear_attention` lies between linear's and attention's and was not chosen so."""


def _minilm(config: ConfigDict) -> None:
    """A sentence encoder and eight sets of real texts, which lie as `NAME.npz` in the data directory."""
    config.family = "text"
    config.model = "sentence-transformers/all-MiniLM-L6-v2"
    config.tasks = TEXT_TASKS
    config.control = "clinc150"
    config.max_tokens = 24
    config.finetune.learning_rate = MINILM_RATES.get(config.regime, 1e-4)
    config.finetune.steps = 100
    config.finetune.batch_size = 32
    config.evaluate.batch_size = 128
    config.evaluate.scaling_coefs = tuple(round(0.1 * k, 1) for k in range(11))


_B32, _B16, _L14 = (f"openai/clip-vit-{size}" for size in ("base-patch32", "base-patch16", "large-patch14"))

VARIANTS = {
    "tiny": _tiny,
    "b32": lambda config: _protocol(config, _B32),
    "b16": lambda config: _protocol(config, _B16),
    "l14": lambda config: _protocol(config, _L14, accumulation_steps=2),
    "b32_20": lambda config: _protocol(config, _B32, tasks=SUITE_TASKS),
    "b16_20": lambda config: _protocol(config, _B16, tasks=SUITE_TASKS),
    "l14_20": lambda config: _protocol(config, _L14, tasks=SUITE_TASKS, accumulation_steps=2),
    "minilm": _minilm,
}


def with_variant(config: ConfigDict, name: str, *, among: Iterable[str] = tuple(VARIANTS)) -> ConfigDict:
    """`config` set up for one model and its tasks: the part after the colon in `configs/attn.py:b32`.

    Args:
        config: changed in place.
        name: `tiny` (bundled model and tasks), `minilm` (a sentence encoder, eight sets of texts), `b32`, `b16`, `l14`
            (OpenAI CLIP, the papers' eight tasks), or these with `_20` behind (the suite of twenty tasks).
        among: the variants that this config file offers.

    Returns:
        `config`.

    Raises:
        ValueError: `name` is not one of `among`.
    """
    VARIANTS[one_of("variant", name, among)](config)
    config.variant = name
    return config

"""The regimes: what is trained, and where the Taylor expansion stands in for the encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Regime(NamedTuple):
    """How one copy of the encoder is fine-tuned and then evaluated (papers: TTA §3–4, ATT §3)."""

    name: str
    trainable: str | Sequence[str] | Mapping[str, bool]  # for tajax.trees.param_mask: what moves
    train_linearized: bool  # fine-tune the first-order Taylor expansion around the pre-trained parameters
    evaluate_linearized: bool  # evaluate in that expansion


REGIMES: Mapping[str, Regime] = {
    regime.name: regime
    for regime in (
        Regime("standard", "all", False, False),
        Regime("attention", "attention", False, False),
        Regime("attention_with_bias", "attention_with_bias", False, False),
        Regime("linear", "all", True, True),
        Regime("linear_attention", "attention", True, True),
        Regime("posthoc", "all", False, True),
    )
}

"""The regimes: what is trained, where the Taylor expansion stands in for the encoder, and how each is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Regime(NamedTuple):
    """How one copy of the encoder is fine-tuned and then evaluated (papers: TTA §3–4, ATT §3).

    Attributes:
        name: in configs, records and figures.
        trainable: for tajax.trees.param_mask: what moves.
        train_linearized: fine-tune the first-order Taylor expansion around the pre-trained parameters.
        evaluate_linearized: evaluate in that expansion.
        color: of its curves, told apart by readers with any kind of colour vision (Okabe and Ito 2008); empty: of the
            text around them.
        penalty: the module with what is added to the loss (`tajax.penalties`); empty: nothing.
    """

    name: str
    trainable: str | Sequence[str] | Mapping[str, bool]
    train_linearized: bool = False
    evaluate_linearized: bool = False
    color: str = ""
    penalty: str = ""


REGIMES: Mapping[str, Regime] = {
    regime.name: regime
    for regime in (
        Regime("standard", "all"),
        Regime("attention", "attention", color="#d55e00"),
        Regime("attention_with_bias", "attention_with_bias", color="#e69f00"),
        Regime("linear", "all", True, True, color="#0072b2"),
        Regime("linear_attention", "attention", True, True, color="#009e73"),
        Regime("posthoc", "all", evaluate_linearized=True, color="#56b4e9"),
    )
}

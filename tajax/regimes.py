"""The regimes: what is trained, where the Taylor expansion stands in for the encoder, and how each is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from tajax.options import Option

_RADIUS = Option(
    0.05,
    "how far up the gradient the gradient of a step is taken, ρ",
    lambda v: 0 <= v < math.inf,
    "a finite number, 0 or more",
)
_SPARSE = MappingProxyType(
    {
        "density": Option(
            0.1,
            "share of the entries that are trained, those the model is least sensitive to",
            lambda v: 0 < v <= 1,
            "a share above 0, at most 1",
        ),
        "scored": Option(128, "examples of a task by which sensitivity is measured", lambda v: v >= 1, "1 or more"),
        "rounds": Option(
            4, "rounds of measuring it and dropping the most sensitive entries", lambda v: v >= 1, "1 or more"
        ),
    }
)
_NONE: Mapping[str, Option] = MappingProxyType({})
_LOW_RANK: Mapping[str, Option] = MappingProxyType(
    {
        "rank": Option(16, "r, columns of the factors that low-rank regimes train", lambda v: v >= 1, "1 or more"),
        "alpha": Option(
            16.0,
            "the product of these factors is scaled by alpha / rank",
            lambda v: 0 < v < math.inf,
            "a finite number above 0",
        ),
    }
)

_CURVATURE: Mapping[str, Option] = MappingProxyType(
    {
        "curvature": Option(
            "",
            "of tak and delta: the workdir of a run of the workflow curvature; empty: made at the beginning, and kept",
        ),
        "factors": Option(
            "summed",
            "of tak and delta: one pair of factors for all other tasks, or an exact sum, whose memory grows with them",
            choices=("summed", "per_task"),
        ),
        "weighting": Option(
            "paper",
            "of tak and delta: how leaves count, as in its paper or by how far they move features",
            choices=("paper", "response"),
        ),
    }
)
_WEIGHT: tuple[Callable[[float], object], str] = (lambda v: 0 <= v < math.inf, "a finite number, 0 or more")
_DELTA: Mapping[str, Option] = MappingProxyType(
    {
        **_CURVATURE,
        "drift": Option(100.0, "of delta: times the drift of the teacher on other tasks, β", *_WEIGHT),
        "distill": Option(1.0, "of delta: times the distance of the student's features to the teacher's, β₁", *_WEIGHT),
        "student_drift": Option(100.0, "of delta: times the drift of the student, β₂", *_WEIGHT),
    }
)


class Regime(NamedTuple):
    """How one copy of the encoder is fine-tuned and then evaluated (papers: TTA §3–4, ATT §3).

    Attributes:
        name: in configs, records and figures.
        trainable: for tajax.trees.param_mask: what moves.
        train_linearized: fine-tune the first-order Taylor expansion around the pre-trained parameters.
        evaluate_linearized: evaluate in that expansion.
        color: of its curves, told apart by readers with any kind of colour vision (Okabe and Ito 2008, then
            of Tol's muted scheme); empty: of the text around them.
        method: the module in `tajax.training` of what it does besides; empty: nothing.
        strength: what its penalty is multiplied by, if `config.finetune.penalty_strength` does not say it; None: it has
            no penalty.
        options: what else it leaves open, by the name of the field in `config.finetune`.
        help: one line on it.
    """

    name: str
    trainable: str | Sequence[str] | Mapping[str, bool]
    train_linearized: bool = False
    evaluate_linearized: bool = False
    color: str = ""
    method: str = ""
    strength: float | None = None
    options: Mapping[str, Option] = _NONE
    help: str = ""


REGIMES: Mapping[str, Regime] = {
    regime.name: regime
    for regime in (
        Regime("standard", "all", help="all of the encoder"),
        Regime("attention", "attention", color="#d55e00", help="the attention's four projections, without biases"),
        Regime("attention_with_bias", "attention_with_bias", color="#e69f00", help="these, with biases"),
        Regime("linear", "all", True, True, color="#0072b2", help="all, in the tangent space"),
        Regime("linear_attention", "attention", True, True, color="#009e73", help="attention, in the tangent space"),
        Regime(
            "tau_jp",
            "all",
            True,
            True,
            color="#cc79a7",
            method="tajax.training.tau_jp",
            strength=0.1,
            options={
                "others": Option(
                    "cycle",
                    "whose images a step of tau_jp sees: of one other task in turn, or of all",
                    choices=("cycle", "all"),
                ),
                "others_images": Option(
                    16, "images of each other task that such a step sees", lambda v: v >= 1, "1 or more"
                ),
            },
            help="linear, and other tasks' features kept where they are (τJp)",
        ),
        Regime(
            "tak",
            "all",
            True,
            True,
            color="#aa4499",
            method="tajax.training.tak",
            strength=100.0,
            options=_CURVATURE,
            help="linear, and other tasks' features kept where they are, by factors instead of images (TAK)",
        ),
        Regime(
            "delta",
            "all",
            True,
            color="#117733",
            method="tajax.training.delta",
            strength=1.0,
            options=_DELTA,
            help="an ordinary model, led by a teacher in the tangent space that leaves other tasks alone (DELTA)",
        ),
        Regime("posthoc", "all", evaluate_linearized=True, color="#56b4e9", help="as standard, evaluated linearised"),
        Regime(
            "lora",
            "attention",
            color="#882255",
            method="tajax.training.low_rank",
            options=_LOW_RANK,
            help="low-rank factors added to the attention's projections",
        ),
        Regime(
            "linear_lora",
            "attention",
            True,
            True,
            color="#332288",
            method="tajax.training.linear_low_rank",
            options=_LOW_RANK,
            help="such factors, in the tangent space",
        ),
        Regime(
            "orthoreg",
            "all",
            color="#8c510a",
            method="tajax.training.orthoreg",
            strength=0.1,
            help="all, dense kernels drawn to orthogonal task vectors",
        ),
        Regime(
            "saft",
            "all",
            color="#999933",
            method="tajax.training.saft",
            options=MappingProxyType({"radius": _RADIUS}),
            help="all, by sharpness-aware steps",
        ),
        Regime(
            "talos",
            "all",
            color="#7f7f7f",
            method="tajax.training.talos",
            options=_SPARSE,
            help="the tenth of all entries that predictions are least sensitive to",
        ),
    )
}


def regime_options() -> dict[str, Option]:
    """What regimes leave open, by the name of the field in `config.finetune`; regimes may share a field."""
    return {name: option for regime in REGIMES.values() for name, option in regime.options.items()}

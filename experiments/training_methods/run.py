"""How to fine-tune what is merged later: merged against single-task accuracy, one curve for each training method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments import protocol
from experiments.learning_rates.run import measure

HERE = Path(__file__).resolve().parent

CURVES: Mapping[str, tuple[str, dict[str, object]]] = {  # name: regime, and what else its config says
    **{name: (name, {}) for name in protocol.REGIMES if name not in ("posthoc", "attention_with_bias")},
    "through_norm": ("linear", {"linearize_through_norm": True}),
    "muon": ("standard", {"finetune.optimizer": "muon"}),
}
RATES = {
    "tiny": dict.fromkeys(CURVES, (1e-4, 2e-4, 4e-4, 7e-4, 1e-3)),
    "minilm": dict.fromkeys(CURVES, (3e-5, 6e-5, 1e-4, 2e-4, 4e-4)),
    "clip": dict.fromkeys(CURVES, (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)),
}


def main() -> None:
    parser = protocol.arguments(__doc__, regimes=())
    parser.add_argument("--curves", nargs="+", choices=tuple(CURVES), default=tuple(CURVES), help="training methods")
    parser.add_argument("--rates", nargs="+", type=float, metavar="RATE", help="in place of those of each curve")
    parser.add_argument("--finished", action="store_true", help="make no runs: tables and figure of those there are")
    measure(parser, HERE, CURVES, RATES)


if __name__ == "__main__":
    main()

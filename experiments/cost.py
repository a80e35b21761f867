"""What a training step costs next to another one: parameters, operations, memory and time, of one model and batch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments.benchmarks import steps
from experiments.benchmarks.timing import Contender, alternate
from tajax import encoders, results
from tajax.config import config_hash, regime
from tajax.results import Record

MODELS = {"bundled": "tiny", "real": "tiny", "text": "minilm", "b32": "b32", "b16": "b16", "l14": "l14"}
"""The model of each benchmark of `experiments.protocol`; CLIP's geometries have drawn weights here."""

BATCH_SIZES = {"tiny": 32, "minilm": 32, "b32": 16, "b16": 8, "l14": 4}
"""Images or texts a step of each model: of the bundled one and of the sentence encoder as in their fine-tuning, of the
others what fits beside other work."""


def measure(
    model: str, configs: Mapping[str, ConfigDict], *, batch_size: int | None = None, repeats: int
) -> list[Record]:
    """A record for each config: what its training step costs, and the share of what the first one's costs.

    Args:
        model: a key of `BATCH_SIZES`; an image tower is that one and not the config's.
        configs: what is trained, and whether in the tangent space, by name.
        batch_size: images or texts a step; `BATCH_SIZES` by default. Texts are of the config's `max_tokens`.
        repeats: rounds in which every step runs once, after a first that does not count. 0 only compiles.

    Returns:
        Records with `flops`, bytes of `temporary` and of all `memory`, and `seconds`, the median over rounds or None;
        each with `relative_…`, where time is the median over rounds of the ratio within a round.
    """
    batch_size = batch_size or BATCH_SIZES[model]
    first, plain = next(iter(configs.items()))
    base = {"stage": "cost", "model": model, "batch_size": batch_size}
    if plain.family == "text":
        text = encoders.load(plain.model, family=plain.family)
        base["tokens"] = plain.max_tokens
        work = steps.of_texts(text, batch_size, tokens=plain.max_tokens)
    else:
        work = steps.of_images(steps.unrolled(steps.load_clip(model)), batch_size)
    compiled = {
        name: steps.compile_step(
            work,
            regime(config).trainable,
            layers=config.layers,
            linearized=regime(config).train_linearized,
        )
        for name, config in configs.items()
    }
    timings = {}
    if repeats:
        timings = alternate({name: Contender(step.runner()) for name, step in compiled.items()}, repeats=repeats)
    runs = {name: timings[name].runs if repeats else None for name in compiled}
    records = []
    for name, step in compiled.items():
        cost = {"flops": step.flops, "temporary": step.temporary, "memory": step.memory}
        reference = compiled[first]
        shares = [cost[key] / getattr(reference, key) for key in cost]
        records.append(
            base
            | {"name": name, "seed": configs[name].seed, "config_hash": config_hash(configs[name])}
            | {"trained": step.trained, **cost}
            | {f"relative_{key}": share for key, share in zip(cost, shares, strict=True)}
            | {"seconds": statistics.median(runs[name]) if repeats else None}
            | {"relative_seconds": _ratio(runs[name], runs[first]) if repeats else None, "rounds": repeats}
            | results.provenance()
        )
    return records


def percent(record: Record, key: str) -> str:
    """A share of the first step's cost, in percent; a dash for what was not measured."""
    value = record[f"relative_{key}"]
    return "–" if value is None else f"{100 * float(value):.0f}"


def _ratio(ours: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))

"""Eight vectors of an image tower merged on one device. Last of all parts: singular values may take a card long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.accelerator import workloads
from experiments.accelerator.timing import peak_bytes, timed
from tajax.merging import METHODS, compiled
from tajax.types import JsonObject

CHOSEN = ("task_arithmetic", "ties", "iso_c", "tsv_m")


def measure(sizes: str, known: Mapping[str, Any]) -> Iterator[JsonObject]:
    """A row for each method; `moved` is how far its model lies from θ₀, relative to the length of θ₀.

    Raises:
        ArithmeticError: a merged model is not finite, or did not move.
    """
    chosen = workloads.SIZES[sizes]
    params = workloads.load(sizes, chosen.first).params["image"]
    pretrained, taus = jax.device_put((params, workloads.task_vectors(params, workloads.VECTORS)))
    for name in CHOSEN:
        merge, merged = compiled(METHODS[name]), None

        def run() -> None:
            nonlocal merged
            merged = jax.block_until_ready(merge(pretrained, taus))  # noqa: B023  # it runs within the loop's turn

        timing = timed(run, chosen.repeats)
        moved = _length(jax.device_get(merged), params) / _length(params)
        yield (
            {"model": chosen.first, "method": name, "vectors": len(taus), "moved": moved}
            | timing
            | {"peak_bytes": peak_bytes()}
        )
        if not 0 < moved < np.inf:
            raise ArithmeticError(f"{name} gives a model at {moved} ‖θ₀‖ from θ₀")


def _length(tree: Any, origin: Any = None) -> float:
    """‖tree − origin‖ over all leaves, in float64."""
    leaves = jax.tree.leaves(tree)
    others = [0.0] * len(leaves) if origin is None else jax.tree.leaves(origin)
    squares = (np.sum(np.square(np.asarray(a, np.float64) - b)) for a, b in zip(leaves, others, strict=True))
    return float(np.sqrt(sum(squares)))

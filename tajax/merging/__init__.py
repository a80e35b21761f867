"""Merging methods: many task vectors, one model. Each is `(pretrained, taus, *, ...) -> params`, pure and jittable."""

from __future__ import annotations

from collections.abc import Mapping

from tajax.merging.dare import dare
from tajax.merging.task_arithmetic import task_arithmetic
from tajax.merging.ties import ties
from tajax.merging.weight_average import weight_average
from tajax.types import MergeFn

__all__ = ["METHODS", "dare", "task_arithmetic", "ties", "weight_average"]

METHODS: Mapping[str, MergeFn] = {
    "dare": dare,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "weight_average": weight_average,
}
"""Every method by the name that configs and records use."""

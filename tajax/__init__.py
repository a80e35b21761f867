"""Task arithmetic in JAX: task vectors as pytrees, tangent-space and attention-only fine-tuning.

`import tajax` brings the core, pure functions over parameter trees. `tajax.models`, `tajax.data` and the
rest are imported when first used.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from tajax import affine, merging, scaling
from tajax.disentanglement import disentanglement_error
from tajax.gap import relative_feature_gap
from tajax.linearization import linear_responses, linearize
from tajax.ntk import empirical_ntk, ntk_vector_product
from tajax.task_vectors import (
    analogy,
    apply_task_vector,
    combine,
    cosine_similarity,
    dot,
    negate,
    norm,
    task_vector,
)
from tajax.trees import param_mask

if TYPE_CHECKING:  # `_ON_DEMAND`, as `__getattr__` would hide every misspelt name from a type checker
    from tajax import checkpoints as checkpoints
    from tajax import config as config
    from tajax import data as data
    from tajax import encoders as encoders
    from tajax import evaluate as evaluate
    from tajax import finetune as finetune
    from tajax import models as models
    from tajax import optim as optim
    from tajax import parallel as parallel
    from tajax import report as report
    from tajax import results as results
    from tajax import sharing as sharing
    from tajax import vector_files as vector_files
    from tajax import workflows as workflows

__version__ = "0.1.0"

__all__ = [
    "affine",
    "analogy",
    "apply_task_vector",
    "combine",
    "cosine_similarity",
    "disentanglement_error",
    "dot",
    "empirical_ntk",
    "linear_responses",
    "linearize",
    "merging",
    "negate",
    "norm",
    "ntk_vector_product",
    "param_mask",
    "relative_feature_gap",
    "scaling",
    "task_vector",
]

_ON_DEMAND = frozenset(
    {
        "checkpoints",
        "config",
        "data",
        "encoders",
        "evaluate",
        "finetune",
        "models",
        "optim",
        "parallel",
        "report",
        "results",
        "sharing",
        "vector_files",
    }
    | {"workflows"}
)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> ModuleType:
        if name in _ON_DEMAND:
            return importlib.import_module(f"tajax.{name}")
        raise AttributeError(f"module 'tajax' has no attribute {name!r}")


def __dir__() -> list[str]:
    rooms = (name for name, value in globals().items() if getattr(value, "__name__", "") == f"tajax.{name}")
    return sorted({"__version__", *__all__, *_ON_DEMAND, *rooms})

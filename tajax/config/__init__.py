"""The fields of a run, their defaults and presets, and every check between them.

A config is a locked `ConfigDict`. `default_config` lists every field with its unit and its reader (`fields.py`); files
in `configs/` are a short delta over it and take a variant (`with_variant`); `validate` refuses what cannot run before
any work starts. `workflows` unpack it: nothing below them sees a `ConfigDict`.
"""

from tajax.config.checks import validate, warmup_steps
from tajax.config.choices import one_of, regime
from tajax.config.comments import field_comments
from tajax.config.fields import (
    BUNDLED_TASKS,
    HEADS,
    INITIALIZATIONS,
    OPERATIONAL,
    PROTOCOL_TASKS,
    SUITE_TASKS,
    WORKFLOWS,
    default_config,
)
from tajax.config.identity import config_hash, counts, diff, flatten, reads
from tajax.config.variants import VARIANTS, with_variant
from tajax.regimes import REGIMES, Regime

__all__ = [
    "BUNDLED_TASKS",
    "HEADS",
    "INITIALIZATIONS",
    "OPERATIONAL",
    "PROTOCOL_TASKS",
    "REGIMES",
    "SUITE_TASKS",
    "VARIANTS",
    "WORKFLOWS",
    "Regime",
    "config_hash",
    "counts",
    "default_config",
    "diff",
    "field_comments",
    "flatten",
    "one_of",
    "reads",
    "regime",
    "validate",
    "warmup_steps",
    "with_variant",
]

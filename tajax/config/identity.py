"""Which config this is: its fields by name, its hash, and how it differs from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TypeAlias

from ml_collections import ConfigDict

from tajax.config.fields import OPERATIONAL

Fields: TypeAlias = ConfigDict | Mapping[str, object]


def flatten(config: Fields) -> dict[str, object]:
    """Fields by dotted name, in the order of definition; of a config or of what `json.loads` made of one.

    Example:
        >>> from tajax.config import default_config
        >>> flatten(default_config())["finetune.weight_decay"]
        0.1
    """
    flat: dict[str, object] = {}
    for field, value in config.items():
        if isinstance(value, (ConfigDict, Mapping)) and field != "trainable":  # its keys are patterns
            flat.update({f"{field}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[field] = value
    return flat


def config_hash(config: Fields) -> str:
    """Twelve hexadecimal digits that name what a config computes.

    Fields in `OPERATIONAL` do not count, nor whether a whole number is written 1 or 1.0.
    """
    fields = {name: _canonical(value) for name, value in flatten(config).items() if name not in OPERATIONAL}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def diff(config_a: Fields, config_b: Fields) -> dict[str, tuple[object, object]]:
    """Fields in which two configs differ, with both values; None where a config lacks the field.

    Example:
        >>> from tajax.config import default_config, with_variant
        >>> diff(default_config(), with_variant(default_config(), "l14"))["finetune.accumulation_steps"]
        (1, 2)
    """
    a, b = flatten(config_a), flatten(config_b)
    return {
        field: (a.get(field), b.get(field))
        for field in dict.fromkeys((*a, *b))
        if _canonical(a.get(field)) != _canonical(b.get(field))
    }


def _canonical(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (tuple, list)):
        return [_canonical(item) for item in value]
    if isinstance(value, Mapping):
        return [[key, _canonical(item)] for key, item in value.items()]  # the first matching pattern wins
    return value

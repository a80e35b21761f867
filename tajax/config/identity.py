"""Which config this is: its fields by name, its hash, and how it differs from another."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import TypeAlias

from ml_collections import ConfigDict

from tajax.config.fields import COUNT_ANYWAY, FORMERLY, OPERATIONAL, READERS, RENAMED, default_config

Fields: TypeAlias = ConfigDict | Mapping[str, object]

_FORMER = {name: former for former, name in RENAMED.items()}


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

    A hash of the fields that `counts` names and that are not as in `default_config`: a field that a later version adds
    leaves the runs of an earlier one as they are, unless they did something else (`FORMERLY`). Whether a whole number
    is written 1 or 1.0 makes no difference.
    """
    flat, default = _whole(config), _default()
    fields = {name: _canonical(value) for name, value in flat.items() if counts(name, flat.get("workflow"))}
    own = {name: value for name, value in fields.items() if name not in default or value != default[name]}
    own = {_FORMER.get(name, name): value for name, value in own.items()}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]


def counts(field: str, workflow: object) -> bool:
    """Whether a field has a say in which run a run is: not if it is `OPERATIONAL`, or read by other workflows alone.

    Example:
        >>> counts("finetune.log_every", "task_addition"), counts("ntk.images", "task_addition")
        (False, False)
        >>> counts("finetune.steps", "task_addition"), counts("ntk.images", "ntk")
        (True, True)
    """
    anyway = field in COUNT_ANYWAY or field.split(".")[0] in COUNT_ANYWAY
    return field not in OPERATIONAL and (anyway or reads(workflow, field))


def reads(workflow: object, field: str) -> bool:
    """Whether a workflow reads a field.

    Example:
        >>> reads("task_addition", "merging.method"), reads("task_addition", "ntk.images"), reads("pretrain", "tasks")
        (True, False, False)
    """
    readers = READERS.get(field) or READERS.get(field.split(".")[0])
    return readers is None or workflow in readers


def diff(config_a: Fields, config_b: Fields) -> dict[str, tuple[object, object]]:
    """Fields in which two configs differ, with both values.

    A config that an earlier version wrote lacks the fields that came later: there it has their defaults, or what that
    version did.

    Example:
        >>> from tajax.config import default_config, with_variant
        >>> diff(default_config(), with_variant(default_config(), "l14"))["finetune.accumulation_steps"]
        (1, 2)
    """
    default = flatten(default_config())
    a, b = (default | _whole(config) for config in (config_a, config_b))
    return {
        field: (a.get(field), b.get(field))
        for field in dict.fromkeys((*default, *a, *b))
        if _canonical(a.get(field)) != _canonical(b.get(field))
    }


def _whole(config: Fields) -> dict[str, object]:
    """The fields, and what an earlier version did where the config that it wrote lacks one."""
    flat = {RENAMED.get(name, name): value for name, value in flatten(config).items()}
    methods = {flat.get("merging.method"), flat.get("merging.svc.merge")}
    did = {
        name: value
        for name, value in FORMERLY.items()
        if reads(flat.get("workflow"), name) and (not name.startswith("merging.") or name.split(".")[1] in methods)
    }
    return did | flat


@functools.cache
def _default() -> dict[str, object]:
    return {name: _canonical(value) for name, value in flatten(default_config()).items()}


def _canonical(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (tuple, list)):
        return [_canonical(item) for item in value]
    if isinstance(value, Mapping):
        return [[key, _canonical(item)] for key, item in value.items()]  # the first matching pattern wins
    return value

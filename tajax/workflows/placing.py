"""The placement that a config asks for, on the devices that it names."""

from __future__ import annotations

from ml_collections import ConfigDict

from tajax import parallel


def placed(config: ConfigDict, *, rule: str, local: bool = False) -> parallel.Placement:
    """Where arrays of a run live.

    Args:
        config: a validated config.
        rule: which leaves are divided, of `parallel.Sharded`.
        local: on devices of this process alone.

    Raises:
        ValueError: more devices than there are, or groups that do not divide them; the field is named.
    """
    try:
        devices = (parallel.local_devices if local else parallel.devices_of_all)(config.devices)
    except ValueError as error:
        raise ValueError(f"{error} That is --config.devices=NUMBER.") from error
    try:
        return parallel.PLACEMENTS[config.placement](devices, rule=rule, fsdp=config.fsdp)
    except ValueError as error:
        raise ValueError(f"{error} That is --config.fsdp=NUMBER.") from error

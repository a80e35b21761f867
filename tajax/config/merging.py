"""Checks of `config.merging`: whether the method can merge what the run has, and reads what it is given."""

from __future__ import annotations

from ml_collections import ConfigDict

from tajax.config.choices import one_of, regime
from tajax.config.fields import default_config
from tajax.config.identity import reads
from tajax.merging import METHODS, PREPARATIONS
from tajax.regimes import REGIMES


def check_merging(config: ConfigDict) -> None:
    """Raises `ValueError` where a method, its options or its examples do not go with the rest of a config."""
    name, method = config.merging.method, METHODS[config.merging.method]
    prepare = config.merging.prepare
    for preparation in prepare:
        one_of("merging.prepare", preparation, PREPARATIONS)
    if len(set(prepare)) < len(prepare):
        raise ValueError(f"merging.prepare is {prepare!r}, want each preparation once at most: it has one section.")
    if not reads(config.workflow, "merging"):
        return
    if prepare and method.needs != "nothing":
        raise ValueError(
            f"merging.prepare is {prepare!r}, but merging.method {name!r} is fitted to the vectors as they are, and "
            "what it finds would not be of those that it merges. Leave one of the two out."
        )
    default = default_config().merging
    for field in ("images", "split"):
        if method.needs == "nothing" and config.merging[field] != default[field]:
            raise ValueError(
                f"merging.{field} is {config.merging[field]!r}, but merging.method {name!r} sees no example. Leave it "
                "out."
            )
    if method.needs == "labels" and config.merging.split == "test":
        raise ValueError(
            f"merging.split is 'test', but merging.method {name!r} reads labels, and those of the test split are for "
            "measuring alone. Give --config.merging.split=val, or train."
        )
    linearized = regime(config).evaluate_linearized
    if method.models == ("ordinary" if linearized else "linearized"):
        names = ", ".join(other for other, row in REGIMES.items() if row.evaluate_linearized != linearized)
        raise ValueError(
            f"merging.method {name!r} merges {method.models} models alone, and regime {config.regime!r} is evaluated "
            f"{'linearised' if linearized else 'as it is'}. Regimes that it takes: {names}."
        )
    for other, row in METHODS.items():
        for keyword in row.settings if other != name else ():
            if config.merging[other][keyword] != default[other][keyword]:
                raise ValueError(
                    f"merging.{other}.{keyword} is {config.merging[other][keyword]!r}, but merging.method {name!r} "
                    f"does not read it. Leave it out, or give --config.merging.method={other}."
                )
    for other, preparation in PREPARATIONS.items():
        for keyword in preparation.options if other not in prepare else ():
            if config.merging[other][keyword] != default[other][keyword]:
                raise ValueError(
                    f"merging.{other}.{keyword} is {config.merging[other][keyword]!r}, but merging.prepare is "
                    f"{prepare!r}. Leave it out, or give --config.merging.prepare={(*prepare, other)!r}."
                )
    if method.check is not None:
        try:
            method.check(len(config.tasks), **{keyword: config.merging[name][keyword] for keyword in method.options})
        except ValueError as error:
            raise ValueError(f"merging.method {name!r} cannot merge these tasks: {error}.") from None
    if config.evaluate.exact and not method.scaled:
        raise ValueError(
            f"evaluate.exact finds the best α, but merging.method {name!r} has none: it is measured as it is. "
            "Give evaluate.exact=False, or task_arithmetic for a tuned α."
        )
    if config.evaluate.exact and not method.affine:
        raise ValueError(
            f"evaluate.exact finds the best α along one vector, θ₀ + αg, but merging.method {name!r} makes another "
            "model for each α. Give evaluate.exact=False: the grid is then measured point by point."
        )

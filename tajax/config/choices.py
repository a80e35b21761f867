"""What a config chooses by name: one of several, or an error that names the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ml_collections import ConfigDict

from tajax.regimes import REGIMES, Regime


def one_of(what: str, value: object, choices: Iterable[str], *, way_out: str = "") -> str:
    """`value` if it is one of `choices`, else a `ValueError` that names the nearest, all of them, and a way out.

    Of choices in sections, those of the nearest one's section are named.

    Example:
        >>> one_of("config field", "steps", ("seed", "ntk.split", "ntk.steps"))
        Traceback (most recent call last):
        ...
        ValueError: unknown config field 'steps'. Did you mean 'ntk.steps'? Choices: ntk.split, ntk.steps.
    """
    choices = tuple(choices)
    if isinstance(value, str) and value in choices:
        return value
    near = [choice for choice in choices if choice.rpartition(".")[2] == value]
    near = near or difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    sections = {choice.rpartition(".")[0] for choice in near}
    named = ", ".join(choice for choice in choices if not near or choice.rpartition(".")[0] in sections)
    raise ValueError(f"unknown {what} {value!r}.{hint} Choices: {named}.{way_out and ' ' + way_out}")


def regime(config: ConfigDict) -> Regime:
    """The regime a config asks for, with `config.trainable` in place of its rule where given.

    Example:
        >>> from tajax.config import default_config
        >>> config = default_config()
        >>> config.trainable = "mlp"
        >>> regime(config).trainable
        'mlp'
    """
    chosen = REGIMES[one_of("regime", config.regime, REGIMES)]
    if config.trainable is None:
        return chosen
    return chosen._replace(trainable=config.trainable)

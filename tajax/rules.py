"""The rules that choose which leaves are trained: names, path patterns, and what each of them claims."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

RULES: Mapping[str, str] = MappingProxyType(
    {
        "all": r".*",
        "attention": r"attn/(query|key|value|out)/kernel",
        "attention_with_bias": r"attn/(query|key|value|out)/(kernel|bias)",
        "attention_query": r"attn/query/kernel",
        "attention_key": r"attn/key/kernel",
        "attention_value": r"attn/value/kernel",
        "attention_out": r"attn/out/kernel",
        "attention_query_value": r"attn/(query|value)/kernel",
        "attention_query_key_value": r"attn/(query|key|value)/kernel",
        "mlp": r"mlp/(fc_in|fc_out)/kernel",
        "linear_layers": r"attn/(query|key|value|out)/kernel|mlp/(fc_in|fc_out)/kernel",
        "biases": r"bias",
        "layer_norms": r"ln_[^/]+/(scale|bias)",
    }
)
"""Named rules for `param_mask`. `attention` and what begins with it, `mlp` and `linear_layers` are kernels without
biases, unless the name says so; `biases` are all of them, those of layer norms included."""

STACKED = "blocks"
"""The node whose leaves stack layers along their leading axis, in the trees that `RULES` are patterns of."""


DIVIDED = r"(kernel|embedding)$"
"""Leaves that devices may divide among them (`tajax.parallel.Sharded`), of trees with such names: all but vectors."""


def claim_paths(
    rule: str | Sequence[str] | Mapping[str, bool], paths: Sequence[str], rules: Mapping[str, str] = RULES
) -> dict[str, bool]:
    """What a rule says of the paths that it claims; `param_mask` has the reading of rules, and the errors.

    Example:
        >>> claim_paths(["mlp/.*", "ln_1/scale"], ["ln_1/scale", "mlp/fc_in/kernel", "projection/kernel"])
        {'mlp/fc_in/kernel': True, 'ln_1/scale': True}
    """
    if isinstance(rule, str):
        verdicts = {rules.get(rule, rule): True}
    elif isinstance(rule, Mapping):
        verdicts = dict(rule)
    elif isinstance(rule, Sequence) and all(isinstance(pattern, str) for pattern in rule):
        verdicts = dict.fromkeys(rule, True)
    else:
        raise TypeError(f"a trainable rule is a string, strings, or a mapping from string to bool; got {rule!r}")
    if not all(isinstance(verdict, bool) for verdict in verdicts.values()):
        raise TypeError(f"a trainable rule maps each pattern to True or False; got {rule!r}")
    if not verdicts:
        raise ValueError(f"the trainable rule is empty; choose one of {', '.join(rules)}, or give path patterns")

    total = isinstance(rule, Mapping)
    claims: dict[str, bool] = {}
    for pattern, verdict in verdicts.items():
        matched = _matching(pattern, paths)
        claimed = [path for path in matched if path not in claims] if total else matched
        if not claimed:
            raise ValueError(
                _no_match(rule if isinstance(rule, str) else pattern, paths, rules, shadowed=bool(matched))
            )
        claims.update(dict.fromkeys(claimed, verdict))
    unclaimed = [path for path in paths if path not in claims]
    if total and unclaimed:
        raise ValueError(
            f"the trainable rule says nothing about {unclaimed[0]!r} ({len(unclaimed)} of {len(paths)}"
            " parameters are unclaimed); end it with '.*': False to freeze the rest"
        )
    return claims


def nearest(
    word: str,
    choices: Sequence[str] | Mapping[str, object],
    lead: str,
    *,
    count: int = 2,
    end: str = "",
    quote: bool = False,
) -> str:
    """`lead`, the `count` choices that are most like a word, and `end`; nothing if none is like it.

    Example:
        >>> nearest("atention", RULES, "Did you mean ", count=1, end="?")
        'Did you mean attention?'
    """
    found = difflib.get_close_matches(word, list(choices), n=count, cutoff=0.5)
    return lead + ", ".join(repr(name) if quote else name for name in found) + end if found else ""


def _matching(pattern: str, paths: Sequence[str]) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"trainable rule {pattern!r} is not a valid regular expression: {error}") from error

    def matches(path: str) -> bool:
        starts = [0, *(slash.end() for slash in re.finditer("/", path))]
        return any(compiled.fullmatch(path, start) for start in starts)

    return [path for path in paths if matches(path)]


def _no_match(rule: str, paths: Sequence[str], rules: Mapping[str, str], *, shadowed: bool) -> str:
    if shadowed:
        return f"trainable rule {rule!r} claims nothing: patterns before it match the same leaves. Move it up"
    pattern = f" ({rules[rule]})" if rule in rules else ""
    message = f"trainable rule {rule!r}{pattern} matches none of the {len(paths)} parameters."
    message += nearest(rule, paths, "\nNearest paths: ", end=".") or f"\nPaths here: {_some(paths)}."
    if rule not in rules:
        parts = dict.fromkeys(part for path in paths for part in path.split("/"))
        message += nearest(rule, [*rules, *parts], "\nDid you mean ", count=1, end="?", quote=True)
    return message + f"\nNamed rules: {', '.join(rules)}."


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:4]) + (f", … and {len(paths) - 4} more" if len(paths) > 4 else "")

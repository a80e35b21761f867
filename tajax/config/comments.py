"""What the fields of a config are for: the comments in `fields.py`, and the help of options, by field."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import re
import tokenize
from collections.abc import Mapping

from tajax.config import fields
from tajax.encoders import FAMILIES
from tajax.parallel import PLACEMENTS
from tajax.regimes import REGIMES


@functools.cache
def field_comments() -> Mapping[str, str]:
    """The comment beside each field and section of `default_config`, by dotted name: unit, choices, reader.

    A name in capitals that is a table of choices is replaced by the choices.

    Example:
        >>> field_comments()["finetune.batch_size"]
        'examples an optimiser step, all devices together; data.load'
        >>> field_comments()["ntk.split"], field_comments()["heads"].partition(":")[0]
        ('whose examples', 'one of zero_shot, linear_probe')
    """
    source = inspect.getsource(fields.default_config)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    comments = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or (comment := by_line.get(node.end_lineno or 0)) is None:
            continue
        target = node.targets[0]
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            section = "" if target.value.id == "config" else f"{target.value.id}."
            comments[section + target.attr] = re.sub(r"\b[A-Z]{2,}[A-Z_]+\b", _choices, comment)
    for field, option in fields.options().items():
        comments[field] = f"one of {', '.join(option.choices)}: {option.help}" if option.choices else option.help
    sections = [field.partition(".")[0] for field in comments]
    return dict(sorted(comments.items(), key=lambda item: sections.index(item[0].partition(".")[0])))


def _choices(name: re.Match[str]) -> str:
    table = {"FAMILIES": FAMILIES, "PLACEMENTS": PLACEMENTS, "REGIMES": REGIMES, **vars(fields)}.get(name[0])
    return ", ".join(table) if isinstance(table, tuple | Mapping) else name[0]

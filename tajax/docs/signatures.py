"""Signatures in the reference as they stand in the source: `Float[Array, "B D"]` and not what the names stand for."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

REFERENCE = Path(__file__).resolve().parent / "reference"
NAME = re.compile(r"(?<![\w.\"'])[A-Z]\w+(?![\w.\"'=])")


def public_modules() -> list[str]:
    """The modules that the pages of the reference document."""
    pages = sorted(REFERENCE.glob("*.rst"))
    return [name for page in pages for name in re.findall(r"^\.\. automodule:: (\S+)", page.read_text(), re.MULTILINE)]


@functools.cache
def _types() -> dict[str, str]:
    """Our own classes and aliases by the short name that signatures use, with the module that documents them."""
    found = {}
    for name in public_modules():
        module = importlib.import_module(name)
        for short in getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]:
            value = getattr(module, short)
            if inspect.isclass(value) and value.__module__.startswith(name):
                found[short] = f"{name}.{short}"
    return found


def as_written(
    app: Sphinx,
    what: str,
    name: str,
    obj: Callable[..., object],
    options: object,
    signature: str | None,
    returned: str | None,
) -> tuple[str, str | None] | None:
    """Sphinx's `autodoc-process-signature`: a function with the names of the source, a class without types.

    Names of our own types become links. The types of a class stand beside its attributes.
    """
    from sphinx.util.inspect import stringify_signature  # the tests import this file without Sphinx

    if what not in ("class", "function", "method") or signature is None:
        return None
    full = inspect.signature(obj)
    hidden = {"self", "cls"} if what == "method" else {"parent", "name"} if hasattr(obj, "setup") else set()
    full = full.replace(parameters=[p for p in full.parameters.values() if p.name not in hidden])
    if what == "class":
        untyped = [p.replace(annotation=p.empty) for p in full.parameters.values()]
        return stringify_signature(full.replace(parameters=untyped), show_return_annotation=False), ""
    result = full.return_annotation if isinstance(full.return_annotation, str) else returned
    return _linked(stringify_signature(full, show_return_annotation=False)), result and _linked(result)


def texts_hold_no_types(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Sphinx's `autodoc-process-docstring`: "The mean: over tasks" is prose, though Napoleon reads a type in it."""
    text = "\n".join(lines)
    text = re.sub(r"^:returns: (.*?)\n:rtype: ([^\n]*)$", r":returns: \2: \1", text, flags=re.M | re.S)
    text = re.sub(r"\A(.*?)\n\n:type: ([^\n]*)\s*\Z", r"\2: \1", text, flags=re.S)
    lines[:] = text.split("\n")


def _linked(text: str) -> str:
    return NAME.sub(lambda match: _types().get(match[0], match[0]), text)

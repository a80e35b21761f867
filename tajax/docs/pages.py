"""What the build adds to pages as they are read: navigation, links to the reference, the table of fields."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tajax import config
from tajax.config.comments import field_comments

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LINK = re.compile(r"^- \[[^\]]+\]\(([^)#:]+)\.(?:md|rst|ipynb)\)", re.MULTILINE)
NAME = re.compile(r"(?<![\[`])`(tajax\.[\w.]+)`(?![\]`])")


def add(app: Sphinx, page: str, source: list[str]) -> None:
    """Sphinx's `source-read`: changes the text of a page before it is parsed."""
    if page.startswith("tajax/docs/") and app.env.doc2path(page).suffix == ".md":
        source[0] = with_links(source[0])
    if page == "tajax/docs/index":
        source[0] += navigation(source[0])
    if page == "tajax/docs/reference/config":
        source[0] += field_tables()


def navigation(index: str) -> str:
    r"""A hidden table of contents for each section of the index, with the pages that its list links to, in order.

    So the index is plain Markdown on GitHub, too, and a page that it forgets is a page that the build complains of.

    Example:
        >>> print(navigation("## Guides\n\n- [Tasks](tasks.md): of your own\n"))
        ```{toctree}
        :hidden:
        :caption: Guides
        <BLANKLINE>
        tasks
        ```
    """
    made = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        caption, _, text = section.partition("\n")
        if pages := LINK.findall(text):
            made.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]))
    return "\n" + "\n\n".join(made)


def with_links(text: str) -> str:
    r"""Guides in which names of the reference are links, so that the build complains of a name that is none.

    Example:
        >>> with_links("`tajax.norm` of\n```python\n# `tajax.norm`\n```\n")
        '{py:obj}`tajax.norm` of\n```python\n# `tajax.norm`\n```\n'
    """
    parts = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)  # every other one is a block of code
    return "".join(part if index % 2 else NAME.sub(r"{py:obj}`\1`", part) for index, part in enumerate(parts))


def field_tables() -> str:
    """A table of each section of `tajax.config.default_config`: field, default, and what the comment beside it says."""
    about, values = field_comments(), config.flatten(config.default_config())
    made: list[str] = []
    for section in dict.fromkeys(field.rpartition(".")[0] for field in values):
        title = f"``{section}``" if section else "The run"
        made += ["", title, "~" * len(title), ""]
        made += [_escaped(about[section]).capitalize() + ".", ""] if section in about else []
        made += [".. list-table::", "   :header-rows: 1", "   :widths: 28 22 50", ""]
        made += _row("field", "default", "what it is, unit; who reads it")
        for field, value in values.items():
            if field.rpartition(".")[0] == section:
                made += _row(f"``{field}``", f"``{_shown(field, value)}``", _escaped(about.get(field, "")))
    return "\n".join(made) + "\n"


def _shown(field: str, value: object) -> str:
    if field == "data_dir":
        return "~/.cache/tajax"  # unless the environment says otherwise
    if isinstance(value, tuple) and len(value) > 8:
        return f"({value[0]}, {value[1]}, …, {value[-1]})"
    return repr(value)


def _row(*cells: str) -> list[str]:
    return [f"   {'* -' if column == 0 else '  -'} {cell}" for column, cell in enumerate(cells)]


def _escaped(comment: str) -> str:
    return re.sub(r"([*|_@`])", r"\\\1", comment)

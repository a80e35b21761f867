"""Formulas as MathML, which browsers draw themselves: Sphinx's own renderers load a script from the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from docutils.nodes import math, math_block
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator


def add(app: Sphinx) -> None:
    """Sphinx's `setup` of the renderer `mathml`."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))


def inline(translator: HTML5Translator, node: math) -> None:
    """A formula within a sentence."""
    _append(translator, node, "{}", as_block=False)


def block(translator: HTML5Translator, node: math_block) -> None:
    """A formula on lines of its own."""
    _append(translator, node, '<div class="math">{}</div>\n', as_block=True)


def _append(translator: HTML5Translator, node: math | math_block, around: str, *, as_block: bool) -> NoReturn:
    from docutils.nodes import SkipNode  # the tests import this file without Sphinx and docutils
    from docutils.utils.math.latex2mathml import tex2mathml

    translator.body.append(around.format(tex2mathml(node.astext(), as_block=as_block)))
    raise SkipNode

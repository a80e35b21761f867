"""Tables for papers: LaTeX with the rules of booktabs, every name in it as text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from tajax.report.tables import Table

_ESCAPED = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "≤": r"$\leq$",
    "→": r"$\to$",
    "‖": r"$\|$",
    "√": r"$\surd$",
    "½": r"$\frac{1}{2}$",
    "′": "$'$",
    "²": "$^2$",
    "₀": "$_0$",
    "₁": "$_1$",
    "₂": "$_2$",
    "α": r"$\alpha$",
    "θ": r"$\theta$",
    "λ": r"$\lambda$",
    "ξ": r"$\xi$",
    "τ": r"$\tau$",
}
_SPECIAL = re.compile("|".join(map(re.escape, _ESCAPED)))
_UNSEEN = re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")  # marks of direction and of no width


PREAMBLE = r"% needs \usepackage[T1]{fontenc}, \usepackage{booktabs} and \usepackage{graphicx}"


def latex(tables: Iterable[Table]) -> str:
    r"""The tables as LaTeX, each at most as wide as the text; the first line says which packages they need.

    Titles of columns that begin with the same word stand below it, as test and validation do.

    Example:
        >>> print(latex([Table("Top1", ("task", "test a", "test b"), (("a_b", "50.0±1.0", "–"),), of="tiny")]))
        % needs \usepackage[T1]{fontenc}, \usepackage{booktabs} and \usepackage{graphicx}
        \begin{table}
          \centering
          \caption{Top1: tiny}
          \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
          \begin{tabular}{lrr}
            \toprule
             & \multicolumn{2}{c}{test} \\
            \cmidrule(lr){2-3}
            task & a & b \\
            \midrule
            a\_b & 50.0$\pm$1.0 & -- \\
            \bottomrule
          \end{tabular}}
        \end{table}
        <BLANKLINE>
    """
    return "\n".join([PREAMBLE, *map(_table, tables)])


def escape(text: str) -> str:
    r"""A text as LaTeX sets it.

    Example:
        >>> print(escape("50% of a_b"))
        50\% of a\_b
    """
    seen = " ".join(_UNSEEN.sub("", text).split())
    return _SPECIAL.sub(lambda found: _ESCAPED[found[0]], seen)


def _table(table: Table) -> str:
    lines = [r"\begin{table}", r"  \centering", rf"  \caption{{{escape(table.heading)}}}"]
    lines.append(r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%")
    lines += [rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"    \toprule", *_head(table.columns)]
    lines.append(r"    \midrule")
    for index, row in enumerate(table.rows):
        if table.means and index == len(table.rows) - table.means and index:
            lines.append(r"    \midrule")
        cells = map(escape, row)
        lines.append(_row(rf"\textbf{{{cell}}}" for cell in cells) if index in table.best else _row(cells))
    lines += [r"    \bottomrule", r"  \end{tabular}}"]
    if table.notes:
        lines.append(r"  \par\smallskip\parbox{\linewidth}{\footnotesize " + " ".join(map(escape, table.notes)) + "}")
    return "\n".join([*lines, r"\end{table}", ""])


def _head(columns: Sequence[str]) -> Iterator[str]:
    """The titles of columns; neighbours that begin with the same word below that word."""
    groups = [
        (word, len(list(group))) for word, group in itertools.groupby(title.partition(" ")[0] for title in columns)
    ]
    begins = itertools.accumulate((size for _, size in groups), initial=1)
    spans = [(word, begin, size) for (word, size), begin in zip(groups, begins, strict=False)]
    wide = [(word, begin, size) for word, begin, size in spans if size > 1 and begin > 1]
    wide = [span for span in wide if all(" " in title for title in columns[span[1] - 1 : span[1] - 1 + span[2]])]
    if not wide:
        yield _row(map(escape, columns))
        return
    above = (rf"\multicolumn{{{s[2]}}}{{c}}{{{escape(s[0])}}}" if s in wide else " & " * (s[2] - 1) for s in spans)
    yield _row(above)
    yield "    " + " ".join(rf"\cmidrule(lr){{{begin}-{begin + size - 1}}}" for _, begin, size in wide)
    inside = {begin + n for _, begin, size in wide for n in range(size)}
    yield _row(escape(t.partition(" ")[2] if n in inside else t) for n, t in enumerate(columns, start=1))


def _row(cells: Iterable[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"

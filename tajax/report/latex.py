"""Tables for papers: LaTeX with the rules of booktabs, every name in it as text."""

from __future__ import annotations

import re
from collections.abc import Iterable

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


def latex(tables: Iterable[Table]) -> str:
    r"""The tables as LaTeX; the preamble needs `\usepackage{booktabs}`, and `textquotedbl` the T1 encoding.

    Example:
        >>> print(latex([Table("Top1", ("task", "test %"), (("a_b", "50.0±1.0"),))]))
        \begin{table}
          \centering
          \caption{Top1}
          \begin{tabular}{lr}
            \toprule
            task & test \% \\
            \midrule
            a\_b & 50.0$\pm$1.0 \\
            \bottomrule
          \end{tabular}
        \end{table}
        <BLANKLINE>
    """
    return "\n".join(map(_table, tables))


def escape(text: str) -> str:
    r"""A text as LaTeX sets it.

    Example:
        >>> print(escape("50% of a_b"))
        50\% of a\_b
    """
    seen = " ".join(_UNSEEN.sub("", text).split())
    return _SPECIAL.sub(lambda found: _ESCAPED[found[0]], seen)


def _table(table: Table) -> str:
    lines = [r"\begin{table}", r"  \centering", rf"  \caption{{{escape(table.title)}}}"]
    lines += [rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"    \toprule", _row(table.columns)]
    lines.append(r"    \midrule")
    for index, row in enumerate(table.rows):
        if table.means and index == len(table.rows) - table.means and index:
            lines.append(r"    \midrule")
        lines.append(_row(row))
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    lines += [rf"  \par\smallskip\footnotesize {escape(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def _row(cells: Iterable[str]) -> str:
    return f"    {' & '.join(map(escape, cells))} \\\\"

"""Reports from the records of runs: tables for the terminal, `report.md`, and `report.html` with figures.

Needs no devices. What draws figures and fills the page is imported when that is done.
"""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from tajax import atomic, results
from tajax.report import (
    accuracy,
    disentanglement,
    facts,
    geometry,
    heads,
    kernel,
    negation,
    ntk,
    page,
    plain,
    runs,
    sections,
    tuning,
    words,
)
from tajax.report.accuracy import comparison
from tajax.report.tables import Table, markdown, percent, show, spread

__all__ = ["SHOWN", "WRITTEN", "Table", "comparison", "markdown", "percent", "show", "spread", "write"]

# Functions from the records of one config to tables. What is shown in the terminal is written to `report.md`, too.
SHOWN = (
    accuracy.accuracy_tables,
    heads.tables,
    tuning.tables,
    disentanglement.tables,
    negation.tables,
    kernel.tables,
    geometry.tables,
    ntk.tables,
    plain.tables,
)
WRITTEN = (*SHOWN, accuracy.curve_tables, negation.curves, kernel.curves, geometry.modules)


def write(workdir: str | Path, *, file: TextIO | None = None) -> None:
    """Prints the tables of a run; writes `report.md` with these and the sweeps, and `report.html`, into its directory.

    Args:
        workdir: directory with `results.jsonl`.
        file: where to print; standard output by default.

    Raises:
        ValueError: there is nothing to report.
    """
    workdir = Path(workdir)
    with runs.understood([workdir]):
        _write(workdir, file)


def _write(workdir: Path, file: TextIO | None) -> None:
    records = runs.legible(results.read(workdir / "results.jsonl"))
    groups = list(results.by_config(records).values())
    shown, written = (
        [table for tables in kind for group in groups for table in words.fitting(tables(group), group)]
        for kind in (SHOWN, WRITTEN)
    )
    if not written:
        raise ValueError(f"nothing to report: {workdir / 'results.jsonl'} holds no measured accuracy or loss.")
    atomic.write(workdir / "report.md", markdown(written, notices=facts.warnings(records)))
    show(shown or written, file=file)
    atomic.write(workdir / "report.html", page.html(sections.compose(runs.read(workdir))))

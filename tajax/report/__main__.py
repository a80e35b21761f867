"""`python -m tajax.report RUN…`: the report of a run, or of several side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tajax import atomic
from tajax.report import latex, page, playground, runs, sections, style
from tajax.report.tables import show

EXAMPLES = """\
examples:
  python -m tajax.report runs/attn_tiny
      writes runs/attn_tiny/report.html
  python -m tajax.report runs/standard_* runs/attn_* --out compared.html
      regimes side by side; runs that differ in the seed alone are averaged; without --out the
      page is ./report.html
  python -m tajax.report runs/attn_tiny --figures paper/ --format pdf --latex > tables.tex
      every figure as a file of its own, as wide as a column of 3.3 inches or a page of 6.9,
      and the tables for a paper; a comment at their top says which packages they need

  python -m tajax.report runs/linear_tiny --at=0.3,0.3,0.3,0.3,0.3,0.3,0.3,0.3
      prints what the playground of the page shows at these coefficients, and writes nothing

exit codes: 0 done; 2 a run cannot be read or compared, or a wrong option.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tajax.report",
        description=(
            "Writes one self-contained HTML page from the results.jsonl of one run or several, and prints the tables."
        ),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a run (its --workdir)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page; by default report.html in the directory of the run, for several runs report.html here; a "
        "report that is there is replaced, any other file is kept",
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="also write every figure to a file in DIR")
    parser.add_argument("--format", choices=style.FORMATS, default="pdf", help="of --figures (default: %(default)s)")
    parser.add_argument("--latex", action="store_true", help="print the tables as LaTeX instead of as text")
    parser.add_argument(
        "--at",
        metavar="C,C,…",
        help="print the accuracies at these coefficients, one for each task vector, or α alone where the page "
        "interpolates; of one run, and nothing is written",
    )
    options = parser.parse_args(arguments)
    if options.at is not None:
        return _print_at(options.runs, options.at)
    if options.out and options.out.is_dir():
        parser.error(f"--out {options.out} is a directory; name the file, {options.out / 'report.html'}")
    out = (options.out or (options.runs[0] if len(options.runs) == 1 else Path()) / "report.html").absolute()
    try:
        if out.is_file() and not page.is_page(out):
            raise ValueError(
                f"{out} is not a report of tajax and would be lost. Delete it, or name another file, --out."
            )
        with runs.understood(options.runs):
            composed = sections.compose([run for workdir in options.runs for run in runs.read(workdir)])
            tables, content = sections.tables(composed), page.html(composed)
            for directory in (out.parent, *([options.figures] if options.figures else [])):
                directory.mkdir(parents=True, exist_ok=True)  # all that is asked for is written, or nothing
            drawn = {
                options.figures / f"{figure.name}.{options.format}": style.drawn(figure, format=options.format)
                for figure in (sections.figures(composed) if options.figures else ())
            }
        atomic.write(out, content)
        for path, picture in drawn.items():
            atomic.write(path, picture)
    except (ValueError, OSError) as error:
        print(f"python -m tajax.report: {error}", file=sys.stderr)
        return 2
    if options.latex:
        print(latex.latex(tables))
    else:
        show(table for section in composed.sections for table in section.tables)
    for notice in composed.notices:
        print(f"note: {notice}", file=sys.stderr)
    print(f"report: {out}", file=sys.stderr)
    for path in drawn:
        print(f"figure: {path}", file=sys.stderr)
    return 0


def _print_at(workdirs: Sequence[Path], text: str) -> int:
    """Prints what the playground of a run shows at some coefficients; returns the exit code."""
    try:
        with runs.understood(workdirs):
            found = [run for workdir in workdirs for run in runs.read(workdir)]
            if len(found) != 1:
                raise ValueError(f"--at is of one run, and {', '.join(map(str, workdirs))} hold {len(found)}.")
            play = playground.of_run(found[0])
            if play is None:
                raise ValueError(
                    f"{workdirs[0]} has no playground: neither scores, which linearised runs keep "
                    "(config.save.playground), nor a measured grid of α."
                )
            made = playground.table(play, playground.parsed(play, text))
    except (ValueError, OSError) as error:
        print(f"python -m tajax.report: {error}", file=sys.stderr)
        return 2
    show([made])
    return 0


if __name__ == "__main__":
    sys.exit(main())

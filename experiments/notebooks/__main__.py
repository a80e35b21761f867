"""`python -m experiments.notebooks [NAME …]`: executes notebooks and writes outputs into them."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import nbformat

from experiments.notebooks import execution


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.notebooks", description=__doc__)
    names = ", ".join(execution.NAMES)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {names}; all by default")
    parser.add_argument("--quick", action="store_true", help="as the tests do; nothing is written")
    options = parser.parse_args()
    unknown = set(options.names) - set(execution.NAMES)
    if unknown:
        parser.error(f"no notebook {sorted(unknown)[0]!r}; choose from {names}")
    for name in options.names or execution.NAMES:
        notebook = execution.read(name)
        if options.quick:
            notebook = execution.with_parameters(notebook, execution.QUICK[name])
        with tempfile.TemporaryDirectory() as directory:
            started = time.monotonic()
            executed = execution.execute(notebook, Path(directory))
            seconds = time.monotonic() - started
        if not options.quick:
            path = execution.HERE / f"{name}.ipynb"
            nbformat.write(execution.kept(executed, seconds=seconds), path)
        print(f"{name}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()

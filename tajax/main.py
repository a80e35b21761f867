"""`python -m tajax.main`, or `tajax`: one config, one workflow, one directory; `--help` shows how."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from tajax import interrupts, processes, progress
from tajax.allocation import keep_memory
from tajax.command_line import parse, show_help
from tajax.compilation import keep_programs
from tajax.workflows.faults import EXPLAINED, explained
from tajax.workflows.workdir import hold
from tajax.workflows.workflow import named

PROGRAMS = "programs"
"""The folder of `config.data_dir` that has compiled programs."""


def workflow(name: str) -> Callable[..., object]:
    """The program `run(config, workdir, *, overwrite)` of that name; imported late, so that a typo costs little."""
    return named(name).run


def run(config: ConfigDict, workdir: Path, overwrite: bool = False, quiet: bool = False) -> None:
    """Runs the workflow of a validated config in a directory that no other process uses meanwhile."""
    keep_memory()
    if config.keep_programs:
        keep_programs(Path(os.path.expanduser(config.data_dir)) / PROGRAMS)
    with progress.shown(quiet=quiet or not processes.is_first()), explained(config), hold(workdir):
        workflow(config.workflow)(config, workdir, overwrite=overwrite)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one config, or shows a page of help; returns the exit code, which `--help` explains."""
    argv = list(sys.argv if argv is None else argv)
    try:
        if show_help(argv):
            return 0
        with interrupts.handled():
            run(*parse(argv))
    except KeyboardInterrupt as stop:
        print("\nInterrupted; all that was done is kept. The same command goes on from there.", file=sys.stderr)
        return processes.leave(interrupts.exit_code(stop), str(stop))
    except EXPLAINED as error:
        shown = traceback.format_exc() if "--debug" in argv else "(--debug shows where this was raised)"
        print(f"{type(error).__name__}: {error}\n{shown}", file=sys.stderr)
        return processes.leave(2, f"{type(error).__name__}: {error}")
    except Exception as error:
        return processes.lost(error)
    return processes.leave(0, "done")


if __name__ == "__main__":
    sys.exit(main())

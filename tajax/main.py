"""tajax: fine-tune CLIP per task, keep the difference as a task vector, add the vectors.

python -m tajax.main --config=configs/attn.py[:VARIANT] [--workdir=DIR] [--config.FIELD=VALUE ...]
Fields and their defaults stand in tajax/config/fields.py. On several hosts, the same command on each and --distributed,
or --coordinator=HOST:PORT --processes=N --process=I where no TPU pod, SLURM or Open MPI tells.

Exit codes: 0 done; 2 bad input or luck; 6 another process of the run has ended; 75 (SIGTERM), 130 (Ctrl-C) stopped, all
is kept and the same command goes on. A second signal ends at once (143, 130); what came after a checkpoint is lost.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from tajax import config as configuration
from tajax import interrupts, processes
from tajax.workflows.faults import EXPLAINED, explained
from tajax.workflows.workdir import hold


def workflow(name: str) -> Callable[..., object]:
    """The program `run(config, workdir, *, overwrite)` of that name; imported late, so that a typo costs little."""
    return importlib.import_module(f"tajax.workflows.{name}").run


def define_flags(argv: Sequence[str]) -> flags.FlagValues:
    """The command's flags, in a set of their own so that one process can parse several command lines."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "FILE or FILE:VARIANT.", flag_values=values, sys_argv=list(argv))
    flags.DEFINE_string("workdir", None, "The run's directory; runs/CONFIG_VARIANT.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace a finished run in the way.", flag_values=values)
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this text.", short_name="h", flag_values=values)
    return processes.define_flags(values)


def parse(argv: Sequence[str]) -> tuple[ConfigDict, Path, bool]:
    """Config, directory of the run and whether to overwrite it, from the command line; nothing is written."""
    found = ", ".join(sorted(map(str, Path("configs").glob("*.py")))) or "none in ./configs"
    for arg in argv:
        if override := re.match(r"--?config\.([^=]+)", arg):
            configuration.one_of("config field", override[1], configuration.flatten(configuration.default_config()))
        if (file := re.match(r"--?config=([^:]+)", arg)) and not Path(file[1]).is_file():
            raise FileNotFoundError(f"no config file {file[1]!r}. Config files here: {found}.")
    try:
        values = define_flags(argv)
        rest = values(argv)
    except (flags.Error, SyntaxError) as error:  # an error inside a config file arrives with its traceback in the text
        raise ValueError(re.split(r"\n\s*\w+Error: ", str(error))[-1].strip()) from error
    if rest[1:] or values.config is None:
        problem = f"unexpected argument {rest[1]!r}" if rest[1:] else "no config given"
        raise ValueError(f"{problem}. Usage: tajax --config=FILE[:VARIANT]. Config files here: {found}.")
    configuration.validate(config := values.config)
    stem = Path(values["config"].config_filename.split(":")[0]).stem
    chosen = config.workflow if any("config.workflow" in arg for arg in argv) else ""
    named = Path("runs", "_".join(filter(None, (stem, config.variant, chosen))))
    processes.join(values)
    return config, Path(os.path.expanduser(values.workdir or named)), values.overwrite


def run(config: ConfigDict, workdir: Path, overwrite: bool = False) -> None:
    """Runs the workflow of a validated config in a directory that no other process uses meanwhile."""
    with explained(config), hold(workdir):
        workflow(config.workflow)(config, workdir, overwrite=overwrite)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one config; returns the exit code, as the module says."""
    argv = list(sys.argv if argv is None else argv)
    if {"--help", "-h", "--helpfull"} & set(argv):
        variants, workflows = map(", ".join, (configuration.VARIANTS, configuration.WORKFLOWS))
        print(f"{__doc__}\n{define_flags(argv).get_help()}\nVariants: {variants}\nWorkflows: {workflows}")
        return 0
    try:
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

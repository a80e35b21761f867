"""Proof on the machine: does tajax compute on this GPU or TPU what it computes on a CPU, how fast, in how much memory?

Needs JAX, Flax (with which Optax and Orbax come), jaxtyping and safetensors: no data set, no download. Weights are
drawn from a seed in the geometries of CLIP's B/32 and L/14, images are drawn, too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.accelerator import tables
from experiments.accelerator.kept import Kept
from experiments.accelerator.parts import PARTS, Start, device, in_own_process
from experiments.accelerator.workloads import SIZES
from tajax import results

HERE = Path(__file__).resolve().parent
MINUTES = 8.0
GRACE = 2.0
"""Times the minutes: a part that still runs then is ended, and what it measured is kept."""

PAGE = """\
example, on a machine with an accelerator, from the root of the repository:
  python -m experiments.accelerator.check
      all parts; prints each number as it is measured, keeps them in experiments/accelerator/results/DEVICE.json,
      and writes the tables of experiments/accelerator/README.md
  python -m experiments.accelerator.check
      again: goes on with the parts that failed or were not run
  python -m experiments.accelerator.check --parts parity resume --again
  JAX_PLATFORMS=cpu python -m experiments.accelerator.check --sizes tiny --out /tmp/check
      shows on any machine that the command works

Each part runs in a process of its own. One that fails is recorded with its error, and the next begins.

exit codes: 0 all that was asked for is measured; 1 a part failed; 2 a wrong option, or no device; 3 parts were not
run because the minutes were over, which are named.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.accelerator.check",
        description=__doc__,
        epilog=PAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", choices=SIZES, default="real", help="real, the question; tiny, to try the command")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=tuple(PARTS),
        metavar="PART",
        help=f"of {', '.join(PARTS)}, in this order; all by default",
    )
    parser.add_argument("--again", action="store_true", help="measure parts that are done, too")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="begin no part after so many (%(default)s)")
    parser.add_argument(
        "--what", nargs="+", choices=("parts", "tables"), default=("parts", "tables"), help="run, or write tables; both"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR", help="folder of the JSON files")
    options = parser.parse_args(arguments)
    code = 0
    if "parts" in options.what:
        try:
            kept = Kept(options.out, *device(), options.sizes)
        except (RuntimeError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
        wanted = [part for part in PARTS if part in options.parts and (options.again or not kept.done(part))]
        code = run(kept, wanted, options.sizes, minutes=options.minutes)
        _say(f"kept in {kept.path}")
    if "tables" in options.what:
        tables.write(options.out, HERE / "README.md" if options.out == HERE / "results" else None)
    return code


def run(
    kept: Kept,
    wanted: Sequence[str],
    sizes: str,
    *,
    minutes: float = MINUTES,
    start: Start = in_own_process,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Measures parts and keeps every row as it comes.

    Args:
        kept: what is there, and where it goes.
        wanted: which parts.
        sizes: a row of `workloads.SIZES`.
        minutes: no part begins later.
        start: how a part is run.
        clock: seconds.

    Returns:
        0, or 1 if a part failed, or 3 if there was no time for one.
    """
    begun, failed = clock(), False
    for place, part in enumerate(wanted):
        passed = clock() - begun
        if passed > 60 * minutes:
            _say(f"not run, because {minutes:g} minutes are over: {', '.join(wanted[place:])}")
            return 1 if failed else 3
        _say(f"{PARTS[part].title} ({part}) …")
        failed |= not _run(kept, part, sizes, start, GRACE * 60 * minutes - passed, clock)
    return int(failed)


def _run(kept: Kept, part: str, sizes: str, start: Start, seconds: float, clock: Callable[[], float]) -> bool:
    """Measures one part; whether it came to its end."""
    begun = clock()
    found = results.origin() | {"state": "unfinished", "rows": []}
    try:
        for row in start(part, sizes, kept.parts, seconds):
            found["rows"].append(row)
            kept.write(part, found)
            _say(f"  {tables.in_words(row)}")
        found["state"] = "done"
    except Exception as error:  # of whatever kind: the parts after it are not its business
        own = isinstance(error, RuntimeError)  # of `in_own_process`, whose text names the kind of error
        found |= {"state": "failed", "error": str(error) if own else f"{type(error).__name__}: {error}"}
        _say(f"  FAILED: {found['error'][:300]}")
    kept.write(part, found | {"elapsed_seconds": round(clock() - begun, 1)})
    return found["state"] == "done"


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""What differs between the records of two runs: `python -m experiments.compare_records BEFORE AFTER`.

For changes that must not change a number: both are workdirs, or files of records. When and by whom a record was made
(`NOT_COMPARED`) is left out. Exit codes: 0, no difference; 1, what differs is printed; 2, a file cannot be read.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tajax import results
from tajax.results import Record

NOT_COMPARED = ("elapsed_seconds", "time", "command", "git_revision")
_ABSENT = "absent"


def differences(before: Sequence[Record], after: Sequence[Record]) -> Iterator[str]:
    """A line for each field of each record that one of the two has otherwise or not at all, in the order of the runs.

    Example:
        >>> list(differences([{"stage": "sweep", "top1": 0.5}], [{"stage": "sweep", "top1": 0.25}]))
        ['record 1 (sweep): top1 0.5 → 0.25']
    """
    for number, (old, new) in enumerate(itertools.zip_longest(before, after, fillvalue={}), start=1):
        named = " ".join(str(value) for field in ("stage", "task", "split") if (value := (old or new).get(field)))
        for field in (field for field in {**old, **new} if field not in NOT_COMPARED):
            if field not in old or field not in new or old[field] != new[field]:
                yield f"record {number} ({named}): {field} {old.get(field, _ABSENT)} → {new.get(field, _ABSENT)}"


def records_of(run: Path) -> list[Record]:
    """The records of a workdir or of a file.

    Raises:
        ValueError: there are none, or a line is no record.
    """
    path = run / "results.jsonl" if run.is_dir() else run
    if not (found := results.read(path)):
        raise ValueError(f"{path} is absent or empty: name the workdir of a run, or a file of records.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.compare_records", description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args(arguments)
    try:
        found = list(differences(records_of(options.before), records_of(options.after)))
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print("\n".join(found) or f"no difference between {options.before} and {options.after}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

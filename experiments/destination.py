"""Where an experiment writes: into its own folder, after it said what is replaced there, or into another one."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from tajax import results

WRONG_OPTION = 2
"""The exit code of argparse for a wrong option."""


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help with each default as one types it, and none where there is nothing to type."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, bool):
            return action.help
        text = super()._get_help_string(action)
        if text and isinstance(action.default, list | tuple):
            typed = shlex.join(map(str, action.default)).replace("%", "%%")
            text = text.replace("%(default)s", typed)
        return text


def add_flags(parser: argparse.ArgumentParser) -> None:
    """`--out` and `--yes`."""
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write README.md and results/ there and leave the experiment's alone"
    )
    parser.add_argument(
        "--yes", action="store_true", help="replace what is shown without a question; needed where there is no terminal"
    )


def chosen(
    options: argparse.Namespace,
    folder: Path,
    *,
    name: str | None = None,
    seeds: Collection[int] | None = None,
    also: Collection[str] = (),
) -> Path:
    """The folder to write to: `--out`, or that of the experiment if its tables may be replaced.

    Args:
        options: with `out` and `yes` of `add_flags`; with `benchmark` and `seeds` where they are not given below.
        folder: of the experiment.
        name: what its README and its records call what is measured.
        seeds: that it is measured with.
        also: files in `results` that are written besides those named after what is measured.

    Raises:
        SystemExit: fewer seeds than those of the table that would be replaced; or somebody said no, or nobody was
            there to ask.
    """
    name = options.benchmark if name is None else name
    seeds = options.seeds if seeds is None else seeds
    if options.out is not None and options.out.resolve() != folder.resolve():
        _make_room(options.out, folder, name)
        return options.out
    if few := fewer_seeds(folder, name, seeds):
        refuse(f"{few} Name all of them with --seeds, or another place with --out=DIR.")
    if shown := replaced(folder, name, also):
        print(f"This replaces, in {os.path.relpath(folder)}:\n{shown}")
        confirm(options)
    return folder


def confirm(options: argparse.Namespace, *, elsewhere: str = "--out=DIR") -> None:
    """Goes on with `--yes`, or asks; refuses where there is nobody to ask, because a question would wait for ever.

    Args:
        options: with `yes`.
        elsewhere: the flag that leaves everything as it is.

    Raises:
        SystemExit: the answer was no, or nobody was there.
    """
    if options.yes:
        return
    if not sys.stdin.isatty():
        refuse(f"there is no terminal to ask in: give --yes to replace it, or {elsewhere} to write elsewhere.")
    if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        print("Nothing was changed.")
        raise SystemExit(1)


def refuse(why: str) -> NoReturn:
    """Ends the command as a wrong option does."""
    print(f"error: {why}", file=sys.stderr)
    raise SystemExit(WRONG_OPTION)


def replaced(folder: Path, name: str, also: Collection[str] = ()) -> str:
    """What a command would replace of one benchmark, and how long it took to make; empty if there is nothing."""
    table, kept = _table(folder, name), folder / "results" / f"{name}.jsonl"
    if not table and not kept.exists():
        return ""
    files = [kept, *sorted(kept.parent.glob(f"{name}*.png")), *(kept.parent / file for file in also)]
    seeds = sorted(_seeds(folder, name))
    published = ["  the table of published figures, with ours beside them"] if _table(folder, "published") else []
    lines = [
        f"  the tables between <!-- {name} --> and <!-- /{name} --> of README.md"
        + (f", of seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}" if seeds else ""),
        *(f"  results/{path.name}" for path in files if path.exists()),
        *published,
    ]
    return "\n".join([*lines, f"It takes {_duration(table, kept)}; runs that are there already are not repeated."])


def fewer_seeds(folder: Path, name: str, seeds: Collection[int]) -> str:
    """Says so if a table of more seeds would be replaced; else empty."""
    before = _seeds(folder, name)
    if len(set(seeds)) >= len(before):
        return ""
    return (
        f"the tables of {name} in {folder.name} are of {len(before)} seeds and would be replaced by {len(set(seeds))}."
    )


def _seeds(folder: Path, name: str) -> set[int]:
    return {int(r["seed"]) for r in results.read(folder / "results" / f"{name}.jsonl") if "seed" in r}


def _table(folder: Path, name: str) -> str:
    """What the README shows of a benchmark."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    return text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0].strip()


def _duration(table: str, kept: Path) -> str:
    """How long the runs of a table took: by its own note, or at least, by the clocks of the records that are kept."""
    found = re.findall(r"(\d+) minutes of runs \(([^)]*)\)", table)
    if not found:
        timed = [record for record in results.read(kept) if "elapsed_seconds" in record]
        seconds = results.seconds(timed) if timed else 0.0
        return f"{max(seconds / 60, 1):.0f} minutes or more" if seconds else "a time that nobody noted"
    return " and ".join(f"about {minutes} minutes ({where})" for minutes, where in found)


def _make_room(out: Path, folder: Path, name: str) -> None:
    """A README in another place, with the lines that tables are put between."""
    out.mkdir(parents=True, exist_ok=True)
    readme = out / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else f"# {folder.name}\n"
    for part in (name, "published"):
        if f"<!-- {part} -->" not in text:
            text += f"\n<!-- {part} -->\n<!-- /{part} -->\n"
    readme.write_text(text, encoding="utf-8")

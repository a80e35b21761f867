"""Which tasks are ready: `python -m tajax.data --check [TASK …]`, and `--prepare TASK …` for those that are not."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tajax import progress
from tajax.data import captions, leaks, readiness
from tajax.data.readiness import Readiness
from tajax.data.tasks import open_task

_COLOURS = {"ready": "green", "on first use": "green", "to prepare": "yellow", "differs": "yellow"}
_WIDTH = 110  # columns where the output is no terminal
_LISTED = 3  # overlaps of a task

_TENSORFLOW = (
    "Builders of TFDS prepare with TensorFlow, which is not installed here (pip install 'tajax[prepare]'); "
    "those called tajax_… do without."
)

_EPILOG = """\
TASK is a name of the table (cars, dtd, mnist, …); a group (protocol: the eight tasks and ImageNet; suite: the twenty;
bundled: those drawn on this machine; texts: the eight tasks of texts and their control); the path of a folder or .npz
file of images or texts, or of a .csv, .tsv or .jsonl file of texts, whose columns may be chosen
(reviews.csv#text=review,label=stars); or the name of what lies in DIR or of a TFDS data set. Without one, every task of
the table is looked at.

examples:
  python -m tajax.data --check protocol
      what is there, what is missing, and how to get it
  python -m tajax.data --check dtd --overlap
      whether the same images stand in two splits of DTD
  python -m tajax.data --check texts './reviews.csv#label=stars' --overlap
      which tasks of texts are there, and whether a text of theirs stands in two splits
  python -m tajax.data --check bundled ./birds --corpus pretrain.npz
      whether their validation and test images stand in files that configs/pretrain.py trains on
  python -m tajax.data --prepare gtsrb mnist
      reads archives, or downloads what is public

exit codes: 0 all that was asked for is ready; 1 something is not, or stands in two splits or in the corpus; 2 a wrong
option.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tajax.data",
        description="Says which tasks are ready, or prepares their images or texts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--check", nargs="*", metavar="TASK", help="say which tasks are ready; changes nothing, asks no network"
    )
    what.add_argument("--prepare", nargs="+", metavar="TASK", help="prepare those that are not, then check")
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("TAJAX_DATA_DIR", "~/.cache/tajax"),
        metavar="DIR",
        help="prepared data sets; files fetched by hand go into DIR/downloads/manual "
        "(default: $TAJAX_DATA_DIR or ~/.cache/tajax)",
    )
    parser.add_argument(
        "--overlap",
        action="store_true",
        help="look for images in two splits by their pixels, and for texts by their characters; decodes every image",
    )
    parser.add_argument(
        "--corpus",
        nargs="+",
        default=(),
        metavar="FILE.npz",
        help="look for images of val and test, exact or nearly, in these files and in tajax's own captioned scenes, "
        "which are drawn if they are not there",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    data_dir = Path(options.data_dir).expanduser()
    try:
        names = readiness.names_of(options.prepare or options.check, data_dir=data_dir)
    except ValueError as error:
        parser.error(str(error))
    if options.prepare:
        _prepare(names, data_dir)
    with progress.shown():
        with _Hashing(data_dir) as hashing:
            records = readiness.check(names, data_dir=data_dir, overlap=options.overlap, progress=hashing)
    show(records, data_dir)
    try:
        leaking = show_leaks(records, options.corpus, data_dir) if options.corpus else False
    except (FileNotFoundError, ValueError) as error:  # of a file of the corpus
        parser.error(str(error))
    return 0 if all(record.ready for record in records) and not leaking else 1


def _prepare(names: Sequence[str], data_dir: Path) -> None:
    """Opens each task that is not ready, which prepares it. One that fails does not keep the others from it."""
    for record in readiness.check(names, data_dir=data_dir):
        if record.state not in ("ready", "differs"):
            try:
                open_task(record.task, data_dir=data_dir)
            except (ValueError, OSError) as error:  # the first line is why; the rest, what to do, comes with the table
                print(f"{record.task}: {str(error).splitlines()[0]}", file=sys.stderr)


def show(records: Sequence[Readiness], data_dir: Path) -> None:
    """Prints a table of what was found, and below it what to do about the rest."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    looked = any(record.overlaps is not None for record in records)
    table = Table(box=None, pad_edge=False, title=f"Tasks in {data_dir}", title_justify="left", title_style="bold")
    for title in ("task", "state", "train", "test", *(["overlap"] if looked else []), "from"):
        table.add_column(title, justify="right" if title in ("train", "test", "overlap") else "left", overflow="fold")
    for record in records:
        cells: list[str | Text] = [record.task, Text(record.state, _COLOURS.get(record.state, "red"))]
        cells += [_counts(record, split) for split in ("train", "test")]
        if looked:
            cells.append("–" if record.overlaps is None else Text(str(len(record.overlaps))))
        table.add_row(*cells, Text(record.origin))
    console.print(table)
    for record in records:
        lines = [*record.advice, *record.warnings, *_overlap_lines(record)]
        if lines:
            console.print(Text(f"\n{record.task}", "bold"))
            for line in lines:
                console.print(Text(line), soft_wrap=True)  # paths and commands stay whole
    if any(record.state == "missing" and record.what == "images" for record in records):
        console.print(
            f"\nInstead of any of them: images as {data_dir}/TASK/train/CLASS/*.jpg and test/CLASS/*.jpg.",
            soft_wrap=True,
        )
        if importlib.util.find_spec("tensorflow") is None:
            console.print(Text(_TENSORFLOW), soft_wrap=True)
    unready = sum(not record.ready for record in records)
    console.print(f"\n{len(records) - unready} of {len(records)} tasks are ready.")


def show_leaks(records: Sequence[Readiness], corpus: Sequence[str], data_dir: Path) -> bool:
    """Prints how many images of val and test of each task that can be opened stand in a corpus; whether any does."""
    sources = [captions.load_scenes("train", data_dir=data_dir)]
    sources += [source for path in corpus for source in captions.load_natural(path)]
    known = leaks.Corpus(source.images for source in sources)
    title = f"Images of the tasks in a corpus of {len(known):,}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for column in ("task", "split", "images", "exact", "near", "nearest"):
        table.add_column(column, justify="left" if column in ("task", "split") else "right")
    found: dict[str, list[str]] = {}
    for record in records:
        if record.state not in ("ready", "on first use", "differs"):  # opening it would prepare or download it
            table.add_row(record.task, f"not looked at: {record.state}", *[""] * 4)
            continue
        if record.what != "images":
            table.add_row(record.task, f"not looked at: {record.what}", *[""] * 4)
            continue
        for leak in leaks.find_leaks(open_task(record.task, data_dir=data_dir), known):
            cells = f"{leak.images:,}", f"{leak.exact:,}", f"{leak.near:,}", f"{leak.nearest:.1f}"
            table.add_row(record.task, leak.split, *cells)
            found.setdefault(record.task, []).extend(leak.names)
    console = Console(highlight=False)
    console.print()
    console.print(table)
    console.print(
        f"exact: the same pixels; near: within {leaks.NEAR:g} of 255, root mean square at {leaks.SIDE}×{leaks.SIDE} "
        "pixels; nearest: the smallest such distance.",
        soft_wrap=True,
    )
    for task, names in found.items():
        more = [f"… and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
        for line in [*names[:_LISTED], *more]:
            console.print(Text(f"  {task}: {line}"), soft_wrap=True)
    return any(found.values())


def _counts(record: Readiness, split: str) -> Text:
    """Images or texts found, and those expected where they differ or nothing was found."""
    found, expected = record.counts.get(split), record.expected.get(split)
    if found is None:
        return Text("–" if expected is None else f"({expected:,})", "dim")
    if expected is None or found == expected:
        return Text(f"{found:,}")
    return Text(f"{found:,} of {expected:,}", "red")


def _overlap_lines(record: Readiness) -> list[str]:
    if not record.overlaps:
        return []
    kinds: dict[str, set[int]] = {}
    for overlap in record.overlaps:
        pair = f"{overlap.second[0]} that stand in {overlap.first[0]}, too"
        kinds.setdefault(pair, set()).add(overlap.second[1])
    lines = [f"{len(examples):,} {record.what} of {pair}" for pair, examples in kinds.items()]
    lines += [f"  {first} = {second}" for first, second in (overlap.names for overlap in record.overlaps[:_LISTED])]
    more = len(record.overlaps) - _LISTED
    return lines + ([f"  … and {more} more"] if more > 0 else [])


class _Hashing(contextlib.ExitStack):
    """Progress of the search for overlaps, of which each task is a stage."""

    def __init__(self, data_dir: Path):
        super().__init__()
        self.task = ""
        progress.plan("images or texts in two splits", str(data_dir), ())

    def __call__(self, task: str, done: int, total: int) -> None:
        if task != self.task:
            self.task = task
            self.close()
            self.enter_context(progress.stage(f"hash {task}", total))
        progress.update(done, {})


if __name__ == "__main__":
    sys.exit(main())

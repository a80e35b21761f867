"""What merging does to single images: counts of what is kept and lost, which classes are confused, and examples."""

from __future__ import annotations

import base64
import io
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from tajax.records import Predictions
from tajax.report import charts
from tajax.report.charts import Axis
from tajax.report.runs import Run, Series, origin
from tajax.report.style import Figure
from tajax.report.tables import MISSING, Number, Table, percent
from tajax.results import Record, find

if TYPE_CHECKING:
    import altair

COLUMNS = ("both right", "only fine-tuned", "only merged", "neither")
MOST_CLASSES, MOST_MATRICES = 16, 24
SIDE, LARGEST_FILE = 128, 1 << 20  # pixels and bytes of an example
MOST_LETTERS = 400  # of a text that is shown


class Example(NamedTuple):
    """An image or a text with what it is and what three models take it for.

    Attributes:
        kind: what became of it.
        image: a `data:` address of a PNG; empty of a text, and where the file is absent or no such picture.
        text: the words of a text; empty of an image.
        label: the name of its class.
        predicted: `(model, name of the predicted class, whether that is right)`.
    """

    kind: str
    image: str
    text: str
    label: str
    predicted: tuple[tuple[str, str, bool], ...]


def tables(records: Sequence[Record]) -> list[Table]:
    """For each task how many test images the fine-tuned model, the merged one, both or neither gets right."""
    rows, found = [], find(records, Predictions)
    for record in found:
        counts = [n for row in record["correctness"] for n in row]
        lost = counts[1] / (counts[0] + counts[1]) if counts[0] + counts[1] else None
        shares = (percent(n / record["count"]) for n in counts)
        rows.append((str(record["task"]), *shares, percent(lost), Number(record["count"], 0)))
    if not rows:
        return []
    columns = list(zip(*(row[1:] for row in rows), strict=True))
    known = [all(isinstance(cell, Number) for cell in column) for column in columns]
    means = [
        Number(statistics.fmean(c.value for c in column), column[0].digits) if k else MISSING
        for column, k in zip(columns, known, strict=True)
    ]
    notes = (
        "Both: the fine-tuned and the merged model are right; only fine-tuned: merging loses it; only merged: merging "
        "gains it. Lost: of the images that the fine-tuned model gets right, the share that the merged one does not.",
    )
    title = "What merging keeps and loses, % of test images"
    return [Table(title, ("task", *COLUMNS, "lost", "images"), (*rows, ("mean", *means)), notes, 1, origin(found))]


def figures(series: Series) -> list[Figure]:
    """For each task the classes that the merged model predicts where the fine-tuned one predicts others."""
    found: dict[tuple[str, str, tuple[str, ...]], list[Predictions]] = {}
    for label, runs in series.items():
        for record in (r for run in runs for r in find(run.records, Predictions)):
            found.setdefault((str(record["task"]), label, tuple(map(str, record["classes"]))), []).append(record)
    if not found:
        return []
    tasks, labels = (list(dict.fromkeys(key[part] for key in found)) for part in (0, 1))
    ordered = sorted(found, key=lambda key: tasks.index(key[0]))
    most = max(MOST_MATRICES - MOST_MATRICES % len(labels), len(labels))
    panels = []
    for task, label, classes in ordered[:most]:
        heading = " · ".join((task, *((label,) if len(series) > 1 else ())))
        panels.append(_confusion(classes, found[task, label, classes], heading))
    left = " Over all seeds together." if any(len(records) > 1 for records in found.values()) else ""
    left += f" The first {most} of {len(found)}." if len(found) > most else ""
    caption = (
        "Of the test images that the fine-tuned model takes for the class of a row, the share in % that the "
        f"merged model takes for that of a column; the diagonal is agreement. All maps have one scale of "
        f"colours, from 0 to 100 % of a row. Of more classes the {MOST_CLASSES} confused most." + left
    )
    columns = len(labels) if len(labels) > 1 else 0
    title = "Merged against fine-tuned predictions"
    return [Figure("confusion", title, caption, tuple(panels), wide=False, columns=columns)]


def has(run: Run) -> bool:
    """Whether a run got as far as single images."""
    return bool(find(run.records, Predictions))


def examples(run: Run) -> dict[str, tuple[Example, ...]]:
    """The examples of each task, read with suspicion: small PNG or text files in the run's directory, nothing else."""
    made: dict[str, tuple[Example, ...]] = {}
    for record in find(run.records, Predictions):
        classes, shown = record["classes"], record.get("examples", ())
        kinds = list(dict.fromkeys(str(example["kind"]) for example in shown))
        for example in sorted(shown, key=lambda example: (kinds.index(str(example["kind"])), example["row"])):
            seen = {"pre-trained": example["pretrained"], "fine-tuned": example["single"], "merged": example["merged"]}
            named = tuple((title, _name(classes, index), index == example["label"]) for title, index in seen.items())
            file, label = str(example["file"]), _name(classes, example["label"])
            is_text = file.endswith(".txt")
            image, text = ("", _words(run.workdir, file)) if is_text else (_picture(run.workdir, file), "")
            task = str(record["task"])
            made[task] = (*made.get(task, ()), Example(str(example["kind"]), image, text, label, named))
    return made


def _confusion(classes: Sequence[str], records: Sequence[Predictions], title: str) -> altair.LayerChart:
    counts: dict[tuple[int, int], int] = {}
    for single, merged, count in (cell for record in records for cell in record["confusion"]):
        counts[single, merged] = counts.get((single, merged), 0) + count
    cells = [(single, merged, count) for (single, merged), count in counts.items()]
    apart: dict[int, int] = {}
    for single, merged, count in cells:
        for one in {single, merged} if single != merged else ():
            apart[one] = apart.get(one, 0) + count
    shown: Sequence[int] = range(len(classes))
    if len(classes) > MOST_CLASSES:
        shown = sorted(sorted(apart, key=lambda one: (-apart[one], one))[:MOST_CLASSES])
    place = {one: number for number, one in enumerate(shown)}
    totals: dict[int, int] = {}
    for single, _, count in cells:
        totals[single] = totals.get(single, 0) + count
    kept = [(place[s], place[m], 100 * n / totals[s]) for s, m, n in cells if s in place and m in place]
    there = {(i, j) for i, j, _ in kept}
    kept += [(place[s], j, 0.0) for s in totals if s in place for j in place.values() if (place[s], j) not in there]
    names = [classes[one] for one in shown]
    labels, of = without_common_words(names)
    titles = (f"fine-tuned{of and f': {of}'}", f"merged{of and f': {of}'}")
    share, shown_as = Axis("% of the row", ".0f"), (labels, labels)
    return charts.matrix(
        (names, names), kept, share, titles=titles, title=title, step=16, largest=100.0, labels=shown_as
    )


def without_common_words(names: Sequence[str]) -> tuple[list[str], str]:
    """Names without the words that all begin and end with, and these words around dots.

    Example:
        >>> without_common_words(["the digit one", "the digit two"])
        (['one', 'two'], 'the digit …')
        >>> without_common_words(["cat", "dog"])
        (['cat', 'dog'], '')
    """
    words = [name.split() for name in names]
    fewest = min(map(len, words)) - 1 if len(set(names)) > 1 else 0
    begin = next((n for n in range(fewest) if len({line[n] for line in words}) > 1), max(fewest, 0))
    end = next((n for n in range(fewest - begin) if len({line[-1 - n] for line in words}) > 1), max(fewest - begin, 0))
    if not begin + end:
        return list(names), ""
    around = [*words[0][:begin], "…", *words[0][len(words[0]) - end :]]
    return [" ".join(line[begin : len(line) - end]) for line in words], " ".join(around)


def _words(workdir: Path, file: str) -> str:
    path = _inside(workdir, file)
    try:
        words = path.read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError):
        return ""
    return words if len(words) <= MOST_LETTERS else words[:MOST_LETTERS].rstrip() + " …"


def _inside(workdir: Path, file: str) -> Path | None:
    """The file of an example, if it lies in the folder for them and is small."""
    root, path = (workdir / "examples").resolve(), (workdir / file).resolve()
    try:
        return path if root in path.parents and path.stat().st_size <= LARGEST_FILE else None
    except OSError:
        return None


def _picture(workdir: Path, file: str) -> str:
    path = _inside(workdir, file)
    try:
        if path is None:
            return ""
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as picture:
                small = picture.convert("RGB")
        small.thumbnail((SIDE, SIDE))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return ""
    content = io.BytesIO()
    small.save(content, "PNG", optimize=True)  # anew: nothing but pixels gets onto the page
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _name(classes: Sequence[object], index: object) -> str:
    return str(classes[index]) if isinstance(index, int) and 0 <= index < len(classes) else f"class {index}"

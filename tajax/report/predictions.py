"""What merging does to single images: counts of what is kept and lost, which classes are confused, and examples."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tajax.report import charts
from tajax.report.charts import Axis
from tajax.report.runs import Run, Series, several_seeds
from tajax.report.style import Figure
from tajax.report.tables import Table
from tajax.results import Record, find

STAGE = "predictions"
COLUMNS = ("both right", "only fine-tuned", "only merged", "neither")
MOST_CLASSES, MOST_MATRICES = 16, 24
SIDE, LARGEST_FILE = 128, 1 << 20  # pixels and bytes of an example
MODELS = (("pre-trained", "pretrained"), ("fine-tuned", "single"), ("merged", "merged"))


class Example(NamedTuple):
    """An image with what it is and what three models take it for.

    Attributes:
        kind: what became of it.
        image: a `data:` address of a PNG; empty where the file is absent or no such picture.
        label: the name of its class.
        predicted: `(model, name of the predicted class, whether that is right)`.
    """

    kind: str
    image: str
    label: str
    predicted: tuple[tuple[str, str, bool], ...]


def tables(records: Sequence[Record]) -> list[Table]:
    """For each task how many test images the fine-tuned model, the merged one, both or neither gets right."""
    rows, found = [], find(records, stage=STAGE)
    for record in found:
        counts = [n for row in record["correctness"] for n in row]
        lost = counts[1] / (counts[0] + counts[1]) if counts[0] + counts[1] else None
        shares = (f"{100 * n / record['count']:.1f}" for n in counts)
        rows.append(
            (str(record["task"]), *shares, "–" if lost is None else f"{100 * lost:.1f}", f"{record['count']:,}")
        )
    if not rows:
        return []
    notes = ("Shares of test images in %. Lost: of those that the fine-tuned model gets right.",)
    return [Table("What merging keeps", ("task", *COLUMNS, "lost", "images"), tuple(rows), notes)]


def figures(series: Series) -> list[Figure]:
    """For each task the classes that the merged model predicts where the fine-tuned one predicts others."""
    found = [(label, run, r) for label, runs in series.items() for run in runs for r in find(run.records, stage=STAGE)]
    if not found:
        return []
    panels = []
    for label, run, record in found[:MOST_MATRICES]:
        parts = [str(record["task"]), *([label] if len(series) > 1 else [])]
        parts += [f"seed {run.field('seed')}"] if any(map(several_seeds, series.values())) else []
        panels.append(_confusion(record, " · ".join(parts)))
    left = f" The first {MOST_MATRICES} of {len(found)}." if len(found) > MOST_MATRICES else ""
    caption = (
        "Of the test images that the fine-tuned model takes for the class of a row, the share in % that the "
        f"merged model takes for that of a column; the diagonal is agreement. Of more classes the "
        f"{MOST_CLASSES} confused most." + left
    )
    return [Figure("confusion", "Merged against fine-tuned predictions", caption, tuple(panels), wide=False)]


def examples(run: Run) -> dict[str, tuple[Example, ...]]:
    """The example images of each task, read with suspicion: small PNG files in the run's directory and nothing else."""
    made: dict[str, tuple[Example, ...]] = {}
    for record in find(run.records, stage=STAGE):
        classes, shown = record["classes"], record.get("examples", ())
        kinds = list(dict.fromkeys(str(example["kind"]) for example in shown))
        for example in sorted(shown, key=lambda example: (kinds.index(str(example["kind"])), example["row"])):
            named = tuple(
                (title, _name(classes, example[key]), example[key] == example["label"]) for title, key in MODELS
            )
            image, label = _picture(run.workdir, str(example["file"])), _name(classes, example["label"])
            task = str(record["task"])
            made[task] = (*made.get(task, ()), Example(str(example["kind"]), image, label, named))
    return made


def _confusion(record: Record, title: str) -> object:
    classes = [str(name) for name in record["classes"]]
    cells = [tuple(cell) for cell in record["confusion"]]
    apart: dict[int, int] = {}
    for single, merged, count in cells:
        for one in {single, merged} if single != merged else ():
            apart[one] = apart.get(one, 0) + count
    shown = range(len(classes))
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
    share = Axis("share, %", ".0f")
    return charts.matrix((names, names), kept, share, titles=("fine-tuned", "merged"), title=title, step=16)


def _picture(workdir: Path, file: str) -> str:
    root, path = (workdir / "examples").resolve(), (workdir / file).resolve()
    try:
        if root not in path.parents or path.stat().st_size > LARGEST_FILE:
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

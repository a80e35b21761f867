"""The playground of a page: accuracies of all tasks as one moves the coefficients.

In the linearised regimes a run has kept scores of some validation examples (`tajax.coded_scores`), from which their
accuracies follow at any coefficients. Of others the recorded grid of α is joined by straight lines, and called so.
"""

from __future__ import annotations

import base64
import bisect
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tajax import coded_scores, records
from tajax.coded_scores import CodedScores
from tajax.records import PlaygroundCoefs, SingleTask, Sweep, TaskAddition, TaskNegation
from tajax.regimes import REGIMES
from tajax.report.runs import Run
from tajax.report.tables import MISSING, Number, Table, coefficient, percent
from tajax.report.words import called
from tajax.results import find

FOLDER = "playground"
LARGEST_FILE = 8 << 20  # bytes
NO_LABEL = 2**16 - 1
"""On the page, the place of a label that is not among the classes of an example."""
SUM = "task_arithmetic"


class Measured(NamedTuple):
    """A task, or the control, whose accuracy is shown.

    Attributes:
        name: of the task.
        control: whether it is the control.
        single: the accuracy of the task's fine-tuned model on the same examples; None of the control.
        coded: of its examples; None where accuracies are interpolated.
        curve: its accuracies over the grid, where they are.
    """

    name: str
    control: bool
    single: float | None
    coded: CodedScores | None = None
    curve: tuple[float, ...] = ()


class Preset(NamedTuple):
    """Coefficients to start from."""

    name: str
    coefs: tuple[float, ...]


class Playground(NamedTuple):
    """What the page can be asked.

    Attributes:
        directions: the tasks whose vectors have a coefficient each; empty where there is one for all of them, α.
        low: the least coefficient.
        high: the largest one.
        measured: the tasks in order, then the control.
        grid: the recorded α, ascending, between which accuracies are interpolated; empty where they are exact.
        presets: θ₀, then what was tuned and what is best, as far as that is known.
        forget: for each direction how far against it the button goes that forgets its task.
        about: what these numbers are, in sentences.
        command: how its numbers are had in a terminal; coefficients follow it.
        examples: what these are called: images, or texts.
    """

    directions: tuple[str, ...]
    low: float
    high: float
    measured: tuple[Measured, ...]
    grid: tuple[float, ...]
    presets: tuple[Preset, ...]
    forget: tuple[float, ...]
    about: tuple[str, ...]
    command: str
    examples: str

    @property
    def exact(self) -> bool:
        """Whether accuracies are those of the model, and not interpolated."""
        return not self.grid

    @property
    def start(self) -> Preset:
        """What is shown first: the tuned α if there is one."""
        return self.presets[min(1, len(self.presets) - 1)]


def of_run(run: Run) -> Playground | None:
    """The playground of a run, if it has one.

    Raises:
        ValueError: a file with scores is damaged, or of other vectors than the record says.
    """
    if kept := find(run.records, records.Playground):
        try:
            return _exact(run, kept)
        except FileNotFoundError:  # a run without its files, as one that was copied
            return None
    regime = REGIMES.get(str(run.field("regime")))
    return _interpolated(run) if regime is not None and not regime.evaluate_linearized else None


def parsed(playground: Playground, text: str) -> tuple[float, ...]:
    """Coefficients as the address of the page and the command line write them, with commas between.

    Raises:
        ValueError: they are not as many as there are, not numbers, or beyond the ends.
    """
    names = playground.directions or ("α",)
    try:
        coefs = tuple(map(float, text.split(",")))
    except ValueError as error:
        raise ValueError(f"coefficients are {text!r}, want numbers with commas between ({error})") from error
    if len(coefs) != len(names):
        raise ValueError(f"{len(coefs)} coefficients, want {len(names)}: of {', '.join(names)}")
    for name, coef in zip(names, coefs, strict=True):
        if not playground.low <= coef <= playground.high:  # NaN neither
            raise ValueError(f"the coefficient of {name} is {coef}, want {playground.low:g} to {playground.high:g}")
    return coefs


def top1(playground: Playground, one: Measured, coefs: Sequence[float]) -> float:
    """The accuracy of a task at some coefficients, as the page works it out."""
    if one.coded is not None:
        right = coded_scores.correct(one.coded, np.asarray(coefs)[None])
        return int(right.sum()) / right.size
    grid, [at] = playground.grid, coefs
    k = min(max(bisect.bisect_right(grid, at) - 1, 0), len(grid) - 2)
    begin, end = one.curve[k : k + 2]
    return begin + (end - begin) * ((at - grid[k]) / (grid[k + 1] - grid[k]))


def table(playground: Playground, coefs: Sequence[float]) -> Table:
    """What the page shows at some coefficients, from `parsed`."""
    rows: list[tuple[str, ...]] = []
    reached, ratios = [], []
    written = [coefficient(coef) for coef in coefs]
    for number, one in enumerate(playground.measured):
        now = top1(playground, one, coefs)
        ratio = now / one.single if one.single else None
        coef = MISSING if one.control else written[number if playground.directions else 0]
        count = MISSING if one.coded is None else Number(len(one.coded.counts), 0)
        name = f"{one.name} (control)" if one.control else one.name
        rows.append((name, coef, percent(now), percent(one.single), percent(ratio), count))
        if not one.control:
            reached.append(now)
            ratios += [] if ratio is None else [ratio]
    means = (mean(reached), mean([one.single for one in playground.measured if one.single is not None]), mean(ratios))
    rows.append(("mean", MISSING, *map(percent, means), MISSING))
    kind = "" if playground.exact else ", interpolated between measured α"
    columns = ("task", "coefficient", "merged", "fine-tuned", "normalised", playground.examples)
    return Table(f"Validation accuracy at these coefficients, %{kind}", columns, tuple(rows), playground.about, 1)


def mean(values: Sequence[float]) -> float | None:
    """Added from the first to the last, as the page adds; None of none."""
    return sum(values) / len(values) if values else None


def data(playground: Playground) -> dict[str, object]:
    """What the script of the page reads, as JSON; codes are 16-bit, little-endian, in base64."""
    return {
        "low": playground.low,
        "high": playground.high,
        "vectors": len(playground.directions),
        "grid": playground.grid,
        "measured": [_measured(one) for one in playground.measured],
        "presets": [preset.coefs for preset in playground.presets],
        "start": playground.start.coefs,
        "forget": playground.forget,
        "command": playground.command,
    }


def _measured(one: Measured) -> dict[str, object]:
    told: dict[str, object] = {"name": one.name, "control": one.control, "single": one.single}
    if one.coded is None:
        return {**told, "curve": one.curve}
    coded = one.coded
    counts = coded.counts.astype(np.int64)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    is_label = coded.classes == np.repeat(coded.labels, counts)
    labels = np.full(len(counts), NO_LABEL, np.uint16)
    images = np.repeat(np.arange(len(counts)), counts)
    labels[images[is_label]] = (np.arange(len(starts)) - starts)[is_label]
    arrays = {"counts": coded.counts, "labels": labels, "codes": coded.codes}
    return {**told, **{name: _base64(array) for name, array in arrays.items()}}


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def _exact(run: Run, kept: Sequence[records.Playground]) -> Playground | None:
    directions = tuple(map(str, kept[0]["directions"]))
    read = {}
    for record in kept:
        path = _inside(run.workdir, str(record["task"]))
        coded, about = coded_scores.read(path)
        if about.directions != directions or about.task != record["task"]:
            raise ValueError(
                f"{path} is of {about.task} along {', '.join(about.directions)}, not what the record says."
            )
        read[about.task] = coded, about
    if not set(directions) <= set(read):  # the run has not come so far
        return None
    order = {name: number for number, name in enumerate(directions)}
    own = np.eye(len(directions))
    measured = [
        Measured(name, False, float(coded_scores.correct(read[name][0], own[[place]]).mean()), read[name][0])
        for name, place in order.items()
    ]
    measured += [Measured(name, True, None, coded) for name, (coded, _) in read.items() if name not in order]
    low, high = (end([about.bounds[side] for _, about in read.values()]) for side, end in ((0, max), (1, min)))
    if not low <= 0 <= high:
        raise ValueError(f"{run.workdir / FOLDER} holds scores for coefficients from {low:g} to {high:g}, without 0.")
    presets = [Preset("Pre-trained, θ₀", (0.0,) * len(directions))]
    addition = find(run.records, TaskAddition)
    if addition and str(addition[0].get("method", SUM)) == SUM:
        alpha = float(addition[0]["scaling_coef"])
        presets.append(Preset(f"Tuned α = {alpha:.3g}", (alpha,) * len(directions)))
    if best := find(run.records, PlaygroundCoefs):
        alpha = float(best[0]["common"])
        presets.append(Preset(f"Best α here, {alpha:.3g}", (alpha,) * len(directions)))
        presets.append(Preset("Best for each task here", tuple(map(float, best[0]["coefs"]))))
    presets = [one for one in presets if all(low <= coef <= high for coef in one.coefs)]
    usual = presets[min(1, len(presets) - 1)].coefs[0] or high
    negated = {str(r["task"]): float(r["scaling_coef"]) for r in find(run.records, TaskNegation)}
    forget = tuple(min(negated.get(name, 0.0) or usual, -low) for name in directions)
    sizes = sorted({len(one.coded.counts) for one in measured if one.coded is not None})
    many = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    what = called(run.records)
    total = sum(len(coded.counts) for coded, _ in read.values())
    changes = sum(about.changed * len(coded.counts) for coded, about in read.values()) / total
    whole = sum(int(coded.complete.sum()) for coded, _ in read.values()) / total
    held = f"every class that can win is held of {'all' if whole == 1 else f'{100 * whole:.1f} % of the'} {what}"
    told = (
        "Exact: the model is linearised, so the scores of an example are affine in the coefficients, and the page "
        f"holds those of {many} validation {what} of each task.",
        f"They are rounded to 16 bits: {100 * changes:.2g} % of predictions differ from those of the scores "
        f"themselves, measured over 256 random choices of the coefficients; {held}.",
        f"Normalised: by the fine-tuned model of each task on the same {what}. Best: chosen on these very {what}.",
    )
    return Playground(directions, low, high, tuple(measured), (), tuple(presets), forget, told, _command(run), what)


def _interpolated(run: Run) -> Playground | None:
    single = {str(r["task"]): float(r["top1"]) for r in find(run.records, SingleTask, split="val")}
    curves: dict[str, dict[float, float]] = {}
    for record in find(run.records, Sweep, split="val"):
        curves.setdefault(str(record["task"]), {})[float(record["scaling_coef"])] = float(record["top1"])
    grid = tuple(sorted(next(iter(curves.values()), {})))
    if len(grid) < 2 or any(sorted(curve) != list(grid) for curve in curves.values()):
        return None
    measured = tuple(
        Measured(name, False, single.get(name), curve=tuple(curve[coef] for coef in grid))
        for name, curve in curves.items()
    )
    presets = [Preset("Pre-trained, θ₀", (0.0,))] if grid[0] <= 0 <= grid[-1] else []
    if addition := find(run.records, TaskAddition):
        alpha = float(addition[0]["scaling_coef"])
        presets += [Preset(f"Tuned α = {alpha:.3g}", (alpha,))] if grid[0] <= alpha <= grid[-1] else []
    told = (
        f"Interpolated: the model is not linear in the coefficients. Validation accuracy was measured at {len(grid)} "
        "values of α; between two of them the page draws a straight line, and nothing was measured there.",
        "Normalised: by the fine-tuned model of each task.",
    )
    presets = presets or [Preset(f"α = {grid[0]:g}", (grid[0],))]
    return Playground(
        (), grid[0], grid[-1], measured, grid, tuple(presets), (), told, _command(run), called(run.records)
    )


def _inside(workdir: Path, task: str) -> Path:
    """The file of a task, which lies in the folder for them and is small."""
    root, path = (workdir / FOLDER).resolve(), (workdir / FOLDER / f"{task}.safetensors").resolve()
    if root not in path.parents:
        raise ValueError(f"{path} is not in {workdir / FOLDER}, where the scores of tasks are.")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; scores for a page have at most {LARGEST_FILE:,}.")
    return path


def _command(run: Run) -> str:
    return f"python -m tajax.report {shlex.quote(str(run.workdir))} --at="

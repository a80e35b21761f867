"""How the cost of a sweep grows with coefficients, task vectors, images and the model: one figure of four panels.

The first three panels are of --model, and the reference is measured at each point. In the last, larger models get
fewer images, the seconds are those of one image, and the reference evaluates one coefficient, its time taken 21 times.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable
from pathlib import Path

import growth_figure
import numpy as np
import procedures
import record
import reference
import workload
from timing import Contender, alternate

from experiments import figures
from tajax.evaluate import make_sweep_step, sweep

COEFFICIENTS = (1, 5, 21, 63)
VECTORS = (1, 2, 4, 8)
SHARES = (8, 4, 2, 1)  # what the number of images is divided by
MODELS = {"tiny": 64, "b32": 8, "b16": 4, "l14": 4}  # and images of each
REFERENCE = {"linear": procedures.edited_linearized, "non-linear": procedures.edited}

Lines = dict[str, float]
"""Median seconds of each line of the figure, at one point."""


def main() -> None:
    parser = workload.argument_parser(__doc__, repeats=2)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="those of the last panel")
    parser.set_defaults(images=128)
    options = parser.parse_args()
    with workload.prepared(options) as work:
        panels = {
            "coefficients": panel(COEFFICIENTS, lambda count: seconds(work, grid(count, 1), options.repeats)),
            "task vectors": panel(VECTORS, lambda count: seconds(work, grid(21, count), options.repeats)),
        }
    panels["images"] = panel([options.images // share for share in SHARES], lambda count: of_images(options, count))
    panels["model"] = panel(options.models, lambda model: of_one_image(options, model))
    record.write(options, [], images=options.images, panels=panels)
    drawn = growth_figure.draw(panels, model=Path(options.model).name, images=options.images)
    figures.save(drawn, options.results / "growth.png")


def panel(points: Iterable, measure: Callable[[object], Lines]) -> dict[str, list]:
    """The lines of a panel over its points."""
    points = list(points)
    measured = [measure(point) for point in points]
    return {"points": points} | {line: [at[line] for at in measured] for line in measured[0]}


def grid(coefficients: int, vectors: int) -> np.ndarray:
    """So many rows of coefficients, drawn from a seed, one a vector."""
    return np.random.default_rng(0).uniform(0, 1, (coefficients, vectors))


def of_images(options: argparse.Namespace, images: int) -> Lines:
    """A sweep of 21 coefficients of one vector over so many images."""
    options = copy.copy(options)
    options.images = images
    with workload.prepared(options) as work:
        return seconds(work, grid(21, 1), options.repeats)


def of_one_image(options: argparse.Namespace, model: str) -> Lines:
    """The linear sweep of a model, for one of its images; the reference's from one coefficient."""
    options = argparse.Namespace(
        **vars(options) | {"model": model, "images": MODELS.get(model, 8), "task_vectors": None}
    )
    with workload.prepared(options) as work:
        lines = seconds(work, grid(21, 1), options.repeats, kinds=("linear",), reference_points=1)
        lines["PyTorch, linear"] *= 21
        return {line: value / work.images for line, value in lines.items()}


def seconds(
    work: workload.Workload,
    coefs: np.ndarray,
    repeats: int,
    *,
    kinds: Iterable[str] = tuple(REFERENCE),
    reference_points: int | None = None,
) -> Lines:
    """Sweeps of some kinds, images in memory; the reference's over its first points alone, if so many are given."""
    taus, batches, weights = work.task_vectors(coefs.shape[1]), work.batches(), work.reference_head()
    states, images = [reference.state_from_tree(tau) for tau in taus], list(work.reference_reader()())
    contenders = {}
    for kind in kinds:
        step = make_sweep_step(work.encode, linearized=kind == "linear")
        model = work.reference_model(maths_attention=kind == "linear")

        def ours(step=step):
            return sweep(step, work.pretrained, taus, coefs, work.heads[0], batches)

        def theirs(points, model=model, edit=REFERENCE[kind]):
            return procedures.sweep(edit, model, states, points, weights, lambda: images)

        contenders[f"tajax, {kind}"] = Contender(ours)
        contenders[f"PyTorch, {kind}"] = Contender(
            lambda theirs=theirs: theirs(coefs[:reference_points]), warm_up=lambda theirs=theirs: theirs(coefs[:1])
        )
    return {line: timing.median for line, timing in alternate(contenders, repeats=repeats).items()}


if __name__ == "__main__":
    main()

"""A 25×25 map of the disentanglement error of two linear task vectors, against one linearised evaluation of both sets.

The naive way evaluates, at each of the 625 points and on both sets, the model with both vectors and the one with the
task's own: 1,250 evaluations. The reference makes one of them, at α = (1, 1), and its time is multiplied.
"""

from __future__ import annotations

import agreement
import numpy as np
import procedures
import record
import reference
import workload
from timing import Contender, alternate

from tajax.disentanglement import disentanglement_error
from tajax.evaluate import make_sweep_step, sweep

GRID = np.linspace(-3, 3, 25)  # of α₁ and of α₂, as in the tangent paper
EVALUATIONS = 2 * len(GRID) ** 2
POINTS = np.array([[1.0, 1.0], [-3.0, 3.0], [3.0, -3.0]])  # to compare; the first is timed


def main() -> None:
    options = workload.argument_parser(__doc__).parse_args()
    with workload.prepared(options, tasks=2) as work:
        tasks, sets, taus = range(len(work.heads)), [work.batches(0), work.batches(1)], work.task_vectors(2)
        step = make_sweep_step(work.encode, linearized=True)

        model, states = work.reference_model(maths_attention=True), [reference.state_from_tree(tau) for tau in taus]
        images, weights = [list(work.reference_reader(t)()) for t in tasks], [work.reference_head(t) for t in tasks]

        heads = tuple(work.heads)

        def whole_map():
            return disentanglement_error(
                work.encode, work.pretrained, *taus, *sets, coefs=GRID, heads=heads, linearized=True
            )

        def evaluations(taus, coefs):
            return [sweep(step, work.pretrained, taus, coefs, work.heads[t], sets[t]) for t in tasks]

        def reference_evaluations(coefs):
            edit = procedures.edited_linearized
            return [procedures.sweep(edit, model, states, coefs, weights[t], lambda t=t: images[t]) for t in tasks]

        timings = alternate(
            {
                "map": Contender(whole_map),
                "one": Contender(lambda: evaluations(taus[:1], POINTS[:1, :1])),
                "reference": Contender(lambda: reference_evaluations(POINTS[:1])),
            },
            repeats=options.repeats,
        )
        what = f"25×25 map, linear, 2 × {work.images} images"
        naive = record.times(timings["reference"], EVALUATIONS)
        rows = [
            record.cost(what, timings["map"], timings["one"], against="one evaluation", target=2.5),
            record.faster(what, timings["map"], naive, against=f"PyTorch, one of {EVALUATIONS:,} × {EVALUATIONS:,}"),
        ]
        agrees = {}
        for t, (counted, theirs) in enumerate(
            zip(evaluations(taus, POINTS), reference_evaluations(POINTS), strict=True)
        ):
            logits, labels = agreement.linear_logits(work.encode, work.pretrained, taus, POINTS, work.heads[t], sets[t])
            agrees[workload.TASKS[t]] = agreement.compare(logits, theirs, labels, counted=counted.correct)
        record.write(options, rows, images=work.images, batch_size=work.batch_size, agreement=agrees)


if __name__ == "__main__":
    main()

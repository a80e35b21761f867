"""A sweep of 21 coefficients over a sum of task vectors in the tangent space, against the papers' procedure.

Images are in memory on both sides: reading them again for each coefficient would only add to the reference. What it
takes to rebuild the models is timed apart and shown once counted and once not: its share falls as the data set grows.
"""

from __future__ import annotations

import agreement
import procedures
import record
import reference
import workload
from timing import Contender, alternate

import tajax
from tajax.evaluate import make_sweep_step, sweep

REGIMES = {"linear": "all", "linear_attention": "attention"}  # and what is trained in it
COEFS = workload.ALPHAS[:, None]


def main() -> None:
    options = workload.argument_parser(__doc__).parse_args()
    with workload.prepared(options) as work:
        measured = {regime: measure(work, regime, options.repeats) for regime in REGIMES}
        record.write(
            options,
            [row for rows, _ in measured.values() for row in rows],
            images=work.images,
            batch_size=work.batch_size,
            agreement={regime: agrees for regime, (_, agrees) in measured.items()},
        )


def measure(work: workload.Workload, regime: str, repeats: int) -> tuple[list[dict], dict]:
    """Rows and agreement of one regime."""
    (head,), batches = work.heads, work.batches()
    taus = [tajax.combine(work.task_vectors(2, rule=REGIMES[regime]))]
    step = make_sweep_step(work.encode, linearized=True)

    model, images, weights = (
        work.reference_model(maths_attention=True),
        list(work.reference_reader()()),
        work.reference_head(),
    )
    states = [reference.state_from_tree(taus[0])]
    if regime == "linear_attention":  # a tangent in the attention weights alone, as on our side
        states = [{name: value for name, value in states[0].items() if name.endswith(reference.ATTENTION_WEIGHTS)}]

    def ours(coefs):
        return sweep(step, work.pretrained, taus, coefs, head, batches)

    def theirs(coefs):
        return procedures.sweep(procedures.edited_linearized, model, states, coefs, weights, lambda: images)

    def rebuilding():
        for row in COEFS:
            procedures.edited_linearized(model, states, row)

    timings = alternate(
        {
            "sweep": Contender(lambda: ours(COEFS)),
            "one": Contender(lambda: ours(COEFS[-1:])),
            "reference": Contender(lambda: theirs(COEFS), warm_up=lambda: theirs(COEFS[:1])),
            "reference, rebuilding": Contender(rebuilding),
        },
        repeats=repeats,
    )
    what = f"21-α sweep, {regime}, {work.images} images"
    rows = [
        record.faster(what, timings["sweep"], timings["reference"], target=12),
        record.faster(
            what,
            timings["sweep"],
            record.less(timings["reference"], timings["reference, rebuilding"]),
            against="PyTorch less its rebuilding",
            target=12,
        ),
        record.cost(what, timings["sweep"], timings["one"], against="one evaluation", target=1.3),
    ]
    logits, labels = agreement.linear_logits(work.encode, work.pretrained, taus, COEFS, head, batches)
    counted = timings["sweep"].result.correct
    return rows, agreement.compare(logits, timings["reference"].result, labels, counted=counted)


if __name__ == "__main__":
    main()

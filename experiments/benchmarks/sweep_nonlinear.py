"""A sweep of 21 coefficients over a sum of task vectors, against a model that is rebuilt for each of them.

Once with reading and decoding: tajax opens the folder and decodes its files once, the reference for each coefficient,
as the papers' code does. Once with the images in memory on both sides, where what it takes to rebuild the models is
timed apart and shown once counted and once not: its share falls as the data set grows.
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

COEFS = workload.ALPHAS[:, None]


def main() -> None:
    options = workload.argument_parser(__doc__).parse_args()
    with workload.prepared(options) as work:
        (head,), batches = work.heads, work.batches()
        taus = [tajax.combine(work.task_vectors(2))]
        step = make_sweep_step(work.encode)

        model, read, weights = work.reference_model(), work.reference_reader(), work.reference_head()
        states, images = [reference.state_from_tree(taus[0])], list(read())

        def ours(batches):
            return sweep(step, work.pretrained, taus, COEFS, head, batches)

        def theirs(read, coefs=COEFS):
            return procedures.sweep(procedures.edited, model, states, coefs, weights, read)

        def rebuilding():
            for row in COEFS:
                procedures.edited(model, states, row)

        timings = alternate(
            {
                "files": Contender(lambda: ours(work.read())),
                "reference, files": Contender(lambda: theirs(read), lambda: theirs(read, COEFS[:1])),
                "memory": Contender(lambda: ours(batches)),
                "reference, memory": Contender(
                    lambda: theirs(lambda: images), lambda: theirs(lambda: images, COEFS[:1])
                ),
                "reference, rebuilding": Contender(rebuilding),
            },
            repeats=options.repeats,
        )
        what = f"21-α sweep, non-linear, {work.images} images"
        rows = [
            record.faster(f"{what} read and decoded", timings["files"], timings["reference, files"], target=1),
            record.faster(f"{what} in memory", timings["memory"], timings["reference, memory"]),
            record.faster(
                f"{what} in memory",
                timings["memory"],
                record.less(timings["reference, memory"], timings["reference, rebuilding"]),
                against="PyTorch less its rebuilding",
            ),
        ]
        logits, labels = agreement.nonlinear_logits(work.encode, work.pretrained, taus, COEFS, head, batches)
        counted = timings["files"].result.correct
        agrees = agreement.compare(logits, timings["reference, files"].result, labels, counted=counted)
        record.write(
            options,
            rows,
            images=work.images,
            batch_size=work.batch_size,
            agreement={"non-linear": agrees},
        )


if __name__ == "__main__":
    main()

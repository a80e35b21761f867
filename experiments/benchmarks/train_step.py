"""One optimiser step in each regime, on the same images with the same hyper-parameters, against PyTorch's."""

from __future__ import annotations

import jax
import numpy as np
import procedures
import record
import reference
import torch
import workload
from timing import Contender, alternate

import tajax
from tajax import finetune, optim, parallel
from tajax.data.preprocess import normalize
from tajax.parametrization import masked
from tajax.types import Batch

LEARNING_RATE = 1e-5  # the papers'; weight decay 0.1 and clipping at 1 are the defaults of tajax's optimiser
REGIMES = {  # what is trained, and whether in the tangent space
    "standard": ("all", False),
    "attention": ("attention", False),
    "linear": ("all", True),
    "linear_attention": ("attention", True),
}


def main() -> None:
    parser = workload.argument_parser(__doc__, repeats=3, model="b32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64], help="images a step")
    options = parser.parse_args()
    options.images = max(options.batch_sizes)
    rows, losses = [], {}
    with workload.prepared(options) as work:
        images = Batch(*(np.concatenate(leaves) for leaves in zip(*work.batches(), strict=True)))
        for size in options.batch_sizes:
            batch = Batch(*(leaf[:size] for leaf in images))
            for regime in REGIMES:
                what = f"training step, {regime}, batch {size}"
                timings = alternate(
                    {"tajax": tajax_step(work, batch, regime), "PyTorch": reference_step(work, batch, regime)},
                    repeats=options.repeats,
                )
                rows.append(record.cost(what, timings["tajax"], timings["PyTorch"], target=1.15))
                losses[what] = {name: timing.result for name, timing in timings.items()}
        record.write(options, rows, last_loss=losses)


def tajax_step(work: workload.Workload, batch: Batch, regime: str) -> Contender:
    """A step of tajax's optimiser, which goes on from the last; it returns the loss before it."""
    rule, linearized = REGIMES[regime]
    mask = tajax.param_mask(work.pretrained, rule)
    optimizer, trained = optim.adamw(LEARNING_RATE), masked(mask)
    train_step = finetune.make_train_step(work.encode, optimizer, trained, linearized=linearized)
    state = finetune.init_state(trained.init(work.pretrained), optimizer)
    placement = parallel.Replicated()
    state, pretrained, head = placement.params((state, work.pretrained, work.heads[0]))

    def step() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(train_step(state, pretrained, head, placement.batch(batch)))
        return float(metrics["loss"])

    return Contender(step)


def reference_step(work: workload.Workload, batch: Batch, regime: str) -> Contender:
    """The same in PyTorch, on images that are normalised already."""
    rule, tangent_space = REGIMES[regime]
    model = work.reference_model(maths_attention=tangent_space)
    names = [name for name, _ in model.named_parameters()]
    trained = [name for name in names if rule == "all" or name.endswith(reference.ATTENTION_WEIGHTS)]
    step = procedures.make_train_step(
        model, trained, work.reference_head(), tangent_space=tangent_space, learning_rate=LEARNING_RATE
    )
    images = np.asarray(normalize(batch.inputs, work.clip.preprocessing)).transpose(0, 3, 1, 2)
    images, labels = torch.tensor(images.copy()), torch.tensor(batch.label, dtype=torch.int64)
    return Contender(lambda: step(images, labels))


if __name__ == "__main__":
    main()

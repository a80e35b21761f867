"""Eight task vectors summed and applied, against loops over dictionaries of tensors."""

from __future__ import annotations

import jax
import procedures
import record
import reference
import workload
from timing import Contender, alternate

from tajax.merging import METHODS, compiled

VECTORS = 8
SCALING_COEF = 0.3


def main() -> None:
    options = workload.argument_parser(__doc__, repeats=5, model="b32").parse_args()
    reference.use_all_cores()
    clip = workload.load_clip(options.model)
    pretrained = clip.params["image"]
    taus = workload.task_vectors(pretrained, VECTORS, directory=options.task_vectors)
    states = [reference.state_from_tree(tau) for tau in taus]
    model = reference.image_tower(clip.config.vision, pretrained)
    origin = {name: value.clone() for name, value in model.state_dict().items()}
    merge = compiled(METHODS["task_arithmetic"])

    def ours():
        return jax.block_until_ready(merge(pretrained, taus, scaling_coef=SCALING_COEF))

    def theirs():
        model.load_state_dict(procedures.merge(origin, states, SCALING_COEF))
        return model.state_dict()

    timings = alternate({"tajax": Contender(ours), "PyTorch": Contender(theirs)}, repeats=options.repeats)
    merged = reference.state_from_tree(timings["tajax"].result)
    gap = max(float((merged[name] - value).abs().max()) for name, value in timings["PyTorch"].result.items())
    rows = [record.faster(f"{VECTORS} task vectors merged and applied", timings["tajax"], timings["PyTorch"])]
    record.write(options, rows, largest_gap=gap)


if __name__ == "__main__":
    main()
